use std::path::Path;

use selfsame_files::{UNFINISHED, remove, rename};

use crate::load::looks_whole;
use crate::run_dir::{list, sibling};

/// Removes checkpoints up to `newest_step` except the newest `keep` that look whole; 0 keeps all.
///
/// One that is damaged does not count as kept, or a run could be left with nothing but damaged
/// ones. Those after `newest_step` belong to an abandoned future and are not touched. Whatever
/// cannot be removed is left for the next time: the checkpoint just saved is good all the same.
pub(crate) fn keep_newest(run_dir: &Path, newest_step: u64, keep: usize) {
    let Ok(checkpoints) = list(run_dir) else {
        return;
    };
    let mut whole = 0;
    for (step, dir) in checkpoints
        .into_iter()
        .rev()
        .filter(|(step, _)| *step <= newest_step)
    {
        if keep == 0 || whole < keep {
            whole += usize::from(looks_whole(&dir));
            continue;
        }
        // Renamed first: killed half-way, it leaves something that is known to be unfinished.
        let doomed = sibling(run_dir, UNFINISHED, step);
        if rename(&dir, &doomed).is_ok() {
            let _ = remove(&doomed);
        }
    }
}
