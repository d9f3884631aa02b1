//! Bounds-checked front of the `gemm` crate for strided f32 matrices.
#![expect(unsafe_code, reason = "the gemm crate takes raw pointers")]

mod bf16;

use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::time::Instant;

/// Sizes and strides of a matrix within a slice that starts at its first element.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl View {
    /// Rows one after the other.
    pub(crate) fn row_major(rows: usize, cols: usize) -> View {
        View::strided(rows, cols, cols)
    }

    /// Rows that start `row_stride` elements apart.
    pub(crate) fn strided(rows: usize, cols: usize, row_stride: usize) -> View {
        View {
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    /// The transpose, over the same elements.
    pub(crate) fn t(self) -> View {
        View {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Elements that the view reaches over; more than any slice has if that is no number.
    fn extent(&self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            return 0;
        }
        let last_row = (self.rows - 1).saturating_mul(self.row_stride);
        let last_col = (self.cols - 1).saturating_mul(self.col_stride);
        last_row.saturating_add(last_col).saturating_add(1)
    }

    /// Whether its rows, or its columns, lie one behind the other: each element then has a place of
    /// its own, and several threads can write them.
    fn is_spread(&self) -> bool {
        let (row, col) = (View { cols: 1, ..*self }, View { rows: 1, ..*self });
        self.extent() == 0 || self.col_stride >= row.extent() || self.row_stride >= col.extent()
    }
}

/// A matrix to read.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a>(pub(crate) &'a [f32], pub(crate) View);

/// Who works on one product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread, which is itself one of many.
    One,
    /// The current rayon pool. The result has the same bits as with [`Threads::One`].
    Pool,
}

/// What the products of linear layers and convolutions are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// Factors rounded to bf16, sums in f32; weights, activations and gradients stay f32.
    Bf16,
}

impl Precision {
    /// Whether this processor has instructions for it; otherwise it is slower than f32.
    pub fn is_native(self) -> bool {
        match self {
            Precision::F32 => true,
            Precision::Bf16 => bf16::is_native(),
        }
    }

    /// How many times as long as in f32 a product takes on one core of this processor: instructions
    /// for bf16 need not be faster. Timed once in a process, some hundredths of a second.
    pub fn cost(self) -> f64 {
        static BF16: OnceLock<f64> = OnceLock::new();
        match self {
            Precision::F32 => 1.0,
            Precision::Bf16 => *BF16.get_or_init(|| timed(Precision::Bf16) / timed(Precision::F32)),
        }
    }
}

/// Seconds of a product of the size that a chunk of images has: the least of some, as others may be
/// at work.
fn timed(precision: Precision) -> f64 {
    let (rows, inner, cols) = (400, 384, 384);
    let (a, b) = (vec![0.5; rows * inner], vec![0.25; cols * inner]);
    let mut out = vec![0.0; rows * cols];
    let time = |out: &mut [f32]| {
        let start = Instant::now();
        let a = Mat(&a, View::row_major(rows, inner));
        let b = Mat(&b, View::row_major(cols, inner).t());
        product(out, View::row_major(rows, cols), false, a, b, precision);
        start.elapsed().as_secs_f64()
    };
    (0..8).map(|_| time(&mut out)).fold(f64::INFINITY, f64::min)
}

/// `out = a · b`, or `out += a · b` with `add`, on the calling thread.
///
/// # Panics
/// If the sizes do not fit, or a view reaches over the end of its slice.
pub(crate) fn product(
    out: &mut [f32],
    view: View,
    add: bool,
    a: Mat<'_>,
    b: Mat<'_>,
    precision: Precision,
) {
    match (precision, add) {
        (Precision::Bf16, _) => {
            check(out.len(), view, a, b);
            bf16::product(out, view, add, a, b);
        }
        (Precision::F32, true) => multiply_add(out, view, a, b, Threads::One),
        (Precision::F32, false) => multiply_into(out, view, a, b, Threads::One),
    }
}

/// `out = a · b`; writes every element of the view, none outside.
///
/// # Panics
/// If the sizes do not fit, or a view reaches over the end of its slice.
pub(crate) fn multiply(
    out: &mut [MaybeUninit<f32>],
    view: View,
    a: Mat<'_>,
    b: Mat<'_>,
    threads: Threads,
) {
    check(out.len(), view, a, b);
    // SAFETY: all views lie within their slices, checked above; the elements of `out` need not be initialised,
    // as they are not read.
    unsafe { run(out.as_mut_ptr().cast(), view, false, a, b, threads) }
}

/// `out = a · b`, over what stood there.
///
/// # Panics
/// If the sizes do not fit, or a view reaches over the end of its slice.
pub(crate) fn multiply_into(out: &mut [f32], view: View, a: Mat<'_>, b: Mat<'_>, threads: Threads) {
    check(out.len(), view, a, b);
    // SAFETY: all views lie within their slices, checked above.
    unsafe { run(out.as_mut_ptr(), view, false, a, b, threads) }
}

/// `out += a · b`.
///
/// # Panics
/// If the sizes do not fit, or a view reaches over the end of its slice.
pub(crate) fn multiply_add(out: &mut [f32], view: View, a: Mat<'_>, b: Mat<'_>, threads: Threads) {
    check(out.len(), view, a, b);
    // SAFETY: all views lie within their slices, checked above, and all elements are initialised.
    unsafe { run(out.as_mut_ptr(), view, true, a, b, threads) }
}

/// # Panics
/// If the sizes do not fit, or a view reaches over the end of its slice.
fn check(out: usize, view: View, a: Mat<'_>, b: Mat<'_>) {
    assert!(view.extent() <= out, "the product does not fit its slice");
    assert!(view.is_spread(), "elements of the product share a place");
    assert!(
        a.1.extent() <= a.0.len(),
        "the left matrix is larger than its slice"
    );
    assert!(
        b.1.extent() <= b.0.len(),
        "the right matrix is larger than its slice"
    );
    assert_eq!(a.1.cols, b.1.rows, "inner sizes differ");
    assert_eq!(
        (view.rows, view.cols),
        (a.1.rows, b.1.cols),
        "outer sizes differ"
    );
}

/// # Safety
/// `out` is valid for writes over the extent of `view`, and for reads if `add`; sizes and views have
/// passed [`check`].
unsafe fn run(out: *mut f32, view: View, add: bool, a: Mat<'_>, b: Mat<'_>, threads: Threads) {
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        // With one thread too: the parallel path chooses other block sizes.
        Threads::Pool => gemm::Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: the caller vouches for `out` and for the views of `a` and `b`, which are slices,
    // and they cannot overlap `out`, which is borrowed mutably. All strides that are taken fit in
    // isize, as slices cannot be longer; that of a single row or column is not.
    unsafe {
        gemm::gemm(
            view.rows,
            view.cols,
            a.1.cols,
            out,
            view.col_stride as isize,
            view.row_stride as isize,
            add,
            a.0.as_ptr(),
            a.1.col_stride as isize,
            a.1.row_stride as isize,
            b.0.as_ptr(),
            b.1.col_stride as isize,
            b.1.row_stride as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product_of(view: View, a: View) {
        let (mut out, numbers) = (vec![0.0; 6], [1.0; 6]);
        let b = Mat(&numbers, View::row_major(a.cols, view.cols));
        multiply_into(&mut out, view, Mat(&numbers, a), b, Threads::One);
    }

    #[test]
    fn views_within_their_slices_are_taken() {
        let out = View::row_major(3, 2);
        product_of(out, out);
        product_of(View::strided(1, 2, 0), View::row_major(1, 2));
        product_of(View::strided(2, 2, 4), View::strided(2, 2, 0));
        product_of(View::row_major(3, 0), View::row_major(3, 2));
    }

    #[test]
    #[should_panic(expected = "the left matrix is larger than its slice")]
    fn a_view_whose_end_is_no_number_is_refused() {
        let half = usize::MAX / 2 + 1;
        product_of(View::row_major(3, 2), View::strided(3, 2, half));
    }

    #[test]
    #[should_panic(expected = "elements of the product share a place")]
    fn a_product_onto_itself_is_refused() {
        product_of(View::strided(3, 2, 1), View::row_major(3, 2));
    }
}
