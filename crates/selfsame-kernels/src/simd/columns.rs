//! Loops of batch normalisation over rows `[R, C]` of channels that lie side by side.

use super::dispatch;
use super::math::fma;

/// Columns whose sums are held in registers at a time.
const COLUMNS: usize = 16;

/// Adds, column by column, the sums over rows of the two values of `term(index)` to `sums`: those
/// of the first value, then those of the second.
#[inline(always)]
fn add_column_sums(
    len: usize,
    channels: usize,
    sums: &mut [f64],
    mut term: impl FnMut(usize) -> (f64, f64),
) {
    let (first, second) = sums.split_at_mut(channels);
    let whole = channels / COLUMNS * COLUMNS;
    for column in (0..whole).step_by(COLUMNS) {
        let (mut a, mut b) = ([0f64; COLUMNS], [0f64; COLUMNS]);
        for start in (column..len).step_by(channels) {
            for j in 0..COLUMNS {
                let (x, y) = term(start + j);
                a[j] += x;
                b[j] += y;
            }
        }
        for j in 0..COLUMNS {
            first[column + j] += a[j];
            second[column + j] += b[j];
        }
    }
    for column in whole..channels {
        for index in (column..len).step_by(channels) {
            let (x, y) = term(index);
            first[column] += x;
            second[column] += y;
        }
    }
}

#[inline(always)]
fn moments_body<const FMA: bool>(xs: &[f32], sums: &mut [f64]) {
    add_column_sums(xs.len(), sums.len() / 2, sums, |i| {
        let x = f64::from(xs[i]);
        (x, x * x)
    });
}
dispatch! {
    /// Adds the column sums of `xs` and of its square to `sums` `[2, C]`.
    moments => moments_body(xs: &[f32], sums: &mut [f64])
}

#[inline(always)]
fn grad_sums_body<const FMA: bool>(grad: &[f32], xs: &[f32], sums: &mut [f64]) {
    let xs = &xs[..grad.len()];
    add_column_sums(grad.len(), sums.len() / 2, sums, |i| {
        let g = f64::from(grad[i]);
        (g, g * f64::from(xs[i]))
    });
}
dispatch! {
    /// Adds the column sums of `grad` and of `grad · xs` to `sums` `[2, C]`.
    grad_sums => grad_sums_body(grad: &[f32], xs: &[f32], sums: &mut [f64])
}

#[inline(always)]
fn masked_grad_sums_body<const FMA: bool>(
    grad: &mut [f32],
    ys: &[f32],
    xs: &[f32],
    sums: &mut [f64],
) {
    let (ys, xs) = (&ys[..grad.len()], &xs[..grad.len()]);
    add_column_sums(grad.len(), sums.len() / 2, sums, |i| {
        // A NaN is not ≤ 0 and lets the gradient through, as in `relu`.
        let masked = if ys[i] <= 0.0 { 0.0 } else { grad[i] };
        grad[i] = masked;
        let g = f64::from(masked);
        (g, g * f64::from(xs[i]))
    });
}
dispatch! {
    /// Sets `grad` to zero where the ReLU's output `ys` is, then does what [`grad_sums`] does.
    masked_grad_sums => masked_grad_sums_body(
        grad: &mut [f32],
        ys: &[f32],
        xs: &[f32],
        sums: &mut [f64],
    )
}

/// What normalises a value: `(x − mean) · scale + bias`, each `[C]`.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub(crate) mean: &'a [f32],
    pub(crate) scale: &'a [f32],
    pub(crate) bias: &'a [f32],
}

impl<'a> Affine<'a> {
    /// Slices of one length, so that the loops need no checks.
    #[inline(always)]
    fn parts(self) -> (usize, &'a [f32], &'a [f32], &'a [f32]) {
        let n = self.mean.len();
        (n, self.mean, &self.scale[..n], &self.bias[..n])
    }
}

/// As `relu` does it: a NaN goes through.
#[inline(always)]
fn rectified(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn norm_relu_body<const FMA: bool>(xs: &[f32], norm: Affine<'_>, ys: &mut [f32]) {
    let (n, mean, scale, bias) = norm.parts();
    for (x, y) in xs.chunks_exact(n).zip(ys.chunks_exact_mut(n)) {
        for j in 0..n {
            y[j] = rectified(fma::<FMA>(x[j] - mean[j], scale[j], bias[j]));
        }
    }
}
dispatch! {
    /// `ys = relu(norm(xs))`.
    norm_relu => norm_relu_body(xs: &[f32], norm: Affine<'_>, ys: &mut [f32])
}

#[inline(always)]
fn norm_add_relu_body<const FMA: bool>(
    xs: &[f32],
    norm: Affine<'_>,
    added: &[f32],
    ys: &mut [f32],
) {
    let (n, mean, scale, bias) = norm.parts();
    let rows = xs.chunks_exact(n).zip(added.chunks_exact(n));
    for ((x, added), y) in rows.zip(ys.chunks_exact_mut(n)) {
        for j in 0..n {
            y[j] = rectified(fma::<FMA>(x[j] - mean[j], scale[j], bias[j]) + added[j]);
        }
    }
}
dispatch! {
    /// `ys = relu(norm(xs) + added)`.
    norm_add_relu => norm_add_relu_body(
        xs: &[f32],
        norm: Affine<'_>,
        added: &[f32],
        ys: &mut [f32],
    )
}

#[inline(always)]
fn norms_add_relu_body<const FMA: bool>(
    xs: &[f32],
    norm: Affine<'_>,
    added: &[f32],
    norm_of_added: Affine<'_>,
    ys: &mut [f32],
) {
    let (n, mean, scale, bias) = norm.parts();
    let (_, mean_of, scale_of, bias_of) = norm_of_added.parts();
    let (mean_of, scale_of, bias_of) = (&mean_of[..n], &scale_of[..n], &bias_of[..n]);
    let rows = xs.chunks_exact(n).zip(added.chunks_exact(n));
    for ((x, added), y) in rows.zip(ys.chunks_exact_mut(n)) {
        for j in 0..n {
            let added = fma::<FMA>(added[j] - mean_of[j], scale_of[j], bias_of[j]);
            y[j] = rectified(fma::<FMA>(x[j] - mean[j], scale[j], bias[j]) + added);
        }
    }
}
dispatch! {
    /// `ys = relu(norm(xs) + norm_of_added(added))`.
    norms_add_relu => norms_add_relu_body(
        xs: &[f32],
        norm: Affine<'_>,
        added: &[f32],
        norm_of_added: Affine<'_>,
        ys: &mut [f32],
    )
}

/// Factors of the gradient of a batch norm: `grad · of_grad + (x − mean) · of_centered + constant`,
/// each `[C]`.
#[derive(Clone, Copy)]
pub(crate) struct GradFactors<'a> {
    pub(crate) mean: &'a [f32],
    pub(crate) of_grad: &'a [f32],
    pub(crate) of_centered: &'a [f32],
    pub(crate) constant: &'a [f32],
}

#[inline(always)]
fn norm_grad_body<const FMA: bool>(
    grad: &[f32],
    xs: &[f32],
    factors: GradFactors<'_>,
    dx: &mut [f32],
) {
    let n = factors.mean.len();
    let (mean, of_grad) = (factors.mean, &factors.of_grad[..n]);
    let (of_centered, constant) = (&factors.of_centered[..n], &factors.constant[..n]);
    let rows = xs.chunks_exact(n).zip(grad.chunks_exact(n));
    for ((x, g), d) in rows.zip(dx.chunks_exact_mut(n)) {
        for j in 0..n {
            let of_x = fma::<FMA>(x[j] - mean[j], of_centered[j], constant[j]);
            d[j] = fma::<FMA>(g[j], of_grad[j], of_x);
        }
    }
}
dispatch! {
    /// Gradient of a batch norm's input `xs`.
    norm_grad => norm_grad_body(
        grad: &[f32],
        xs: &[f32],
        factors: GradFactors<'_>,
        dx: &mut [f32],
    )
}

#[inline(always)]
fn norm_grad_replace_body<const FMA: bool>(grad: &mut [f32], xs: &[f32], factors: GradFactors<'_>) {
    let n = factors.mean.len();
    let (mean, of_grad) = (factors.mean, &factors.of_grad[..n]);
    let (of_centered, constant) = (&factors.of_centered[..n], &factors.constant[..n]);
    for (x, g) in xs.chunks_exact(n).zip(grad.chunks_exact_mut(n)) {
        for j in 0..n {
            let of_x = fma::<FMA>(x[j] - mean[j], of_centered[j], constant[j]);
            g[j] = fma::<FMA>(g[j], of_grad[j], of_x);
        }
    }
}
dispatch! {
    /// As [`norm_grad`], in the place of `grad`.
    norm_grad_replace => norm_grad_replace_body(
        grad: &mut [f32],
        xs: &[f32],
        factors: GradFactors<'_>,
    )
}
