//! Products by blocks that fit the caches, each packed before it is multiplied.
#![expect(unsafe_code, reason = "calls of functions compiled for AVX512-BF16")]

use std::cell::RefCell;

use super::super::{Mat, View};
use super::pack::{Vectors, pack};
use super::tile;

/// Elements along the inner dimension of a block.
const INNER: usize = 768;
/// Columns of a block of the right matrix, which stays in the second cache.
const COLUMNS: usize = 512;
/// Rows of a block of the left matrix.
const ROWS: usize = 12 * tile::ROWS;

thread_local! {
    /// Packed blocks of both matrices, kept between products.
    static BLOCKS: RefCell<(Vec<u32>, Vec<u32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// `out (+)= a · b`; `view` has a column stride of 1.
///
/// # Panics
/// On a processor for which [`super::is_native`] does not hold, or if a view reaches over the end of
/// its slice.
pub(super) fn product(out: &mut [f32], view: View, add: bool, a: Mat<'_>, b: Mat<'_>) {
    assert!(
        super::is_native(),
        "a product of bf16 without its instructions"
    );
    // SAFETY: the processor has the instructions.
    unsafe { blocks(out, view, add, a, b) }
}

/// # Safety
/// The processor has the features named below.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn blocks(out: &mut [f32], view: View, add: bool, a: Mat<'_>, b: Mat<'_>) {
    let inner = a.1.cols;
    let block = inner
        .div_ceil(inner.div_ceil(INNER).max(1))
        .next_multiple_of(2);
    BLOCKS.with_borrow_mut(|(left, right)| {
        for first_col in (0..view.cols).step_by(COLUMNS) {
            let cols = COLUMNS.min(view.cols - first_col);
            for first in (0..inner).step_by(block.max(2)) {
                let len = block.min(inner - first);
                let depth = len.div_ceil(2);
                let columns = Vectors {
                    count: cols,
                    len,
                    stride: b.1.col_stride,
                    step: b.1.row_stride,
                };
                let start = first * b.1.row_stride + first_col * b.1.col_stride;
                room(right, cols.next_multiple_of(tile::COLS) * depth);
                // SAFETY: the processor has the instructions, as the caller says.
                unsafe { pack::<{ tile::COLS }>(right, &b.0[start..], columns, depth) };
                for first_row in (0..view.rows).step_by(ROWS) {
                    let rows = ROWS.min(view.rows - first_row);
                    let lines = Vectors {
                        count: rows,
                        len,
                        stride: a.1.row_stride,
                        step: a.1.col_stride,
                    };
                    let start = first_row * a.1.row_stride + first * a.1.col_stride;
                    room(left, rows.next_multiple_of(tile::ROWS) * depth);
                    // SAFETY: as above.
                    unsafe { pack::<{ tile::ROWS }>(left, &a.0[start..], lines, depth) };
                    for row in (0..rows).step_by(tile::ROWS) {
                        for col in (0..cols).step_by(tile::COLS) {
                            let at = (first_row + row) * view.row_stride + first_col + col;
                            // SAFETY: as above.
                            unsafe {
                                tile::multiply(
                                    depth,
                                    &left[row * depth..][..tile::ROWS * depth],
                                    &right[col * depth..][..tile::COLS * depth],
                                    &mut out[at..],
                                    view.row_stride,
                                    add || first > 0,
                                    (tile::ROWS.min(rows - row), tile::COLS.min(cols - col)),
                                );
                            }
                        }
                    }
                }
            }
        }
    });
}

fn room(words: &mut Vec<u32>, len: usize) {
    if words.len() < len {
        words.resize(len, 0);
    }
}
