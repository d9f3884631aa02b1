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
/// # Safety
/// The processor has AVX-512F and AVX512-BF16. `left` holds at least `depth` steps of [`ROWS`]
/// words, `right` of [`COLS`]. `out` reaches over the tile.
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
    debug_assert!(left.len() >= depth * ROWS && right.len() >= depth * COLS);
    if rows == ROWS && cols == COLS {
        debug_assert!(out.len() >= (ROWS - 1) * stride + COLS);
        // SAFETY: the panels hold `depth` steps, and `out` the whole tile.
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
/// As [`multiply`], with `out` valid for a whole tile.
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
