//! Many images at once on rayon's current pool.

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
    items
        .into_par_iter()
        .with_max_len(1)
        .map_init(Workspace::new, |workspace, item| work(workspace, item))
        .collect()
}
