//! Many images at once on rayon's current pool.

use std::sync::Mutex;

use rayon::prelude::*;

use crate::workspace::Workspace;

/// Does `work` for each item, handing each thread its own [`Workspace`]; results in the items' order.
///
/// The result is the same for any number of threads as long as `work` is a function of its item,
/// which it is when all its randomness comes from a [`crate::SampleKey`].
pub fn map_images<I, R, F>(items: Vec<I>, work: F) -> Vec<R>
where
    I: Send,
    R: Send,
    F: Fn(&mut Workspace, I) -> R + Sync,
{
    // `map_init` would make one for each item, since each item is a piece of work by itself.
    let idle = Mutex::new(Vec::new());
    items
        .into_par_iter()
        .with_max_len(1)
        .map(|item| {
            let mut workspace = locked(&idle).pop().unwrap_or_default();
            let result = work(&mut workspace, item);
            locked(&idle).push(workspace);
            result
        })
        .collect()
}

/// The workspaces that no thread has in use.
fn locked(idle: &Mutex<Vec<Workspace>>) -> std::sync::MutexGuard<'_, Vec<Workspace>> {
    idle.lock()
        .expect("nothing that can panic runs while it is held")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_uses_its_workspace_again() {
        for (threads, most) in [(1, 1), (3, 3)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let seen = pool.unwrap().install(|| {
                map_images((0..40).collect(), |workspace, _: usize| {
                    workspace.planes.data.push(0);
                    workspace.planes.data.len()
                })
            });
            let made = seen.iter().filter(|uses| **uses == 1).count();
            assert!((1..=most).contains(&made), "{threads} threads: {seen:?}");
        }
    }
}
