//! Into how many parts a batch is cut.

use selfsame_models::Network;

/// How many of `rows` crops go forward and backward together, so that their activations stay within
/// `part_bytes`; `None` if all must.
pub(crate) fn images_a_part(
    student: &Network,
    part_bytes: usize,
    rows: usize,
    [height, width]: [usize; 2],
) -> Option<usize> {
    let most = student.images_within(part_bytes, height, width)?;
    Some(even_part(rows, most))
}

/// The size of parts of `rows` that are about equal, at most `most` each.
pub(super) fn even_part(rows: usize, most: usize) -> usize {
    let even = rows.div_ceil(rows.div_ceil(most).max(1));
    // Round numbers are shared evenly among threads.
    let round = even.next_multiple_of(16);
    if even > 16 && round <= most {
        round
    } else {
        even
    }
}
