//! Loads and stores that cannot leave their slice: the whole `unsafe` of the vector routines, and
//! how slices are cut into vectors.

#[cfg(target_arch = "aarch64")]
pub(super) mod aarch64;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86_64;

/// The last vector of a row.
#[inline(always)]
pub(super) fn last<T, const N: usize>(row: &[T]) -> &[T; N] {
    row.last_chunk().expect("a row of at least a vector")
}

#[inline(always)]
pub(super) fn last_mut<T, const N: usize>(row: &mut [T]) -> &mut [T; N] {
    row.last_chunk_mut().expect("a row of at least a vector")
}

/// First indices of blocks of `width` that together cover `0..len`.
///
/// The last block is moved back to end at `len`, so it may overlap the one before: only for
/// routines that may write an element twice. None if `len` is less than one block.
#[inline(always)]
pub(super) fn blocks(len: usize, width: usize) -> impl Iterator<Item = usize> {
    let last = len.checked_sub(width);
    let count = if last.is_some() {
        len.div_ceil(width)
    } else {
        0
    };
    let last = last.unwrap_or(0);
    (0..count).map(move |i| (i * width).min(last))
}
