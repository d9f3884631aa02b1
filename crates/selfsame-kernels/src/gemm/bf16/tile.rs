//! The inner loop: a tile of the result is kept in registers.
#![expect(unsafe_code, reason = "instructions of AVX512-BF16")]

use std::arch::x86_64::{
    __m512, __m512bh, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

/// Rows of a tile, and the width of the left matrix's panels.
pub(super) const ROWS: usize = 14;
/// Columns of a tile, and the width of the right matrix's panels.
pub(super) const COLS: usize = 32;
/// f32 in a register.
const LANES: usize = 16;

/// Writes, or with `add` adds, the product of two panels: `rows` by `cols` of it, at most a tile,
/// to `out`, whose rows lie `stride` apart.
///
/// # Panics
/// If `left` holds fewer than `depth` steps of [`ROWS`] words or `right` of [`COLS`], or `out` does
/// not reach over the tile.
/// # Safety
/// The processor has AVX-512F and AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply(
    depth: usize,
    left: &[u32],
    right: &[u32],
    out: &mut [f32],
    stride: usize,
    add: bool,
    (rows, cols): (usize, usize),
) {
    assert!(
        left.len() / ROWS >= depth && right.len() / COLS >= depth,
        "a panel ends before its last step"
    );
    if rows == ROWS && cols == COLS {
        let reach = (ROWS - 1).saturating_mul(stride).saturating_add(COLS);
        assert!(reach <= out.len(), "a tile does not fit its slice");
        // SAFETY: the processor has the instructions, as the caller says; the panels hold `depth`
        // steps, and `out` the whole tile.
        unsafe { whole(depth, left, right, out.as_mut_ptr(), stride, add) }
        return;
    }
    let mut tile = [0f32; ROWS * COLS];
    // SAFETY: as above; the buffer is a whole tile.
    unsafe { whole(depth, left, right, tile.as_mut_ptr(), COLS, false) }
    for (r, sums) in tile.chunks_exact(COLS).enumerate().take(rows) {
        let out = &mut out[r * stride..][..cols];
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = if add { *out + sum } else { *sum };
        }
    }
}

/// # Safety
/// The processor has AVX-512F and AVX512-BF16. `left` holds at least `depth` steps of [`ROWS`]
/// words, `right` of [`COLS`]. `out` is valid for a whole tile.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn whole(
    depth: usize,
    left: &[u32],
    right: &[u32],
    out: *mut f32,
    stride: usize,
    add: bool,
) {
    const VECTORS: usize = COLS / LANES;
    let (mut left, mut right) = (left.as_ptr(), right.as_ptr());
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    for _ in 0..depth {
        // SAFETY: the panels hold `depth` steps, and each goes one step on.
        unsafe {
            let mut columns = [as_pairs(_mm512_setzero_ps()); VECTORS];
            for (v, column) in columns.iter_mut().enumerate() {
                *column = as_pairs(_mm512_loadu_ps(right.add(v * LANES).cast()));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let row = as_pairs(_mm512_set1_ps(f32::from_bits(*left.add(r))));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpbf16_ps(*sum, row, column);
                }
            }
            left = left.add(ROWS);
            right = right.add(COLS);
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (v, sum) in sums.iter().enumerate() {
            // SAFETY: row and columns lie within the tile.
            unsafe {
                let out = out.add(r * stride + v * LANES);
                let sum = if add {
                    _mm512_add_ps(_mm512_loadu_ps(out), *sum)
                } else {
                    *sum
                };
                _mm512_storeu_ps(out, sum);
            }
        }
    }
}

#[inline(always)]
fn as_pairs(bits: __m512) -> __m512bh {
    // SAFETY: both are 512 plain bits.
    unsafe { std::mem::transmute(bits) }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_tile_that_does_not_fit_is_refused() {
        if !super::super::is_native() {
            return;
        }
        let (stride, depth) = (40, 3);
        let multiply = |[left, right, out]: [usize; 3]| {
            let (left, right) = (vec![0; left], vec![0; right]);
            let mut out = vec![0.0; out];
            // SAFETY: the processor has the instructions.
            let run = || unsafe {
                let tile = (ROWS, COLS);
                multiply(depth, &left, &right, &mut out, stride, false, tile);
            };
            let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
            panic.downcast_ref::<&str>().copied()
        };
        let fit = [depth * ROWS, depth * COLS, (ROWS - 1) * stride + COLS];
        assert_eq!(multiply(fit), None);
        for short in 0..3 {
            let mut lens = fit;
            lens[short] -= 1;
            let message = multiply(lens).expect("a panic");
            assert!(message.starts_with("a "), "{message}");
        }
    }
}
