//! Loops of batch normalisation over rows `[R, C]` of channels that lie side by side.

use super::dispatch;
use super::math::fma;

/// Columns and rows whose sums are held in registers at a time: few rows, so that a map that is not
/// in the cache is read as it lies.
const COLUMNS: usize = 16;
const ROWS: usize = 8;

/// Two values of each element, whose sums are wanted.
trait Terms {
    /// Adds those of the `N` elements from `at` on to `a` and `b`.
    fn add<const N: usize>(&mut self, at: usize, a: &mut [f64; N], b: &mut [f64; N]);
}

/// The `N` elements from `at` on.
#[inline(always)]
fn lanes<const N: usize>(xs: &[f32], at: usize) -> &[f32; N] {
    xs[at..at + N].first_chunk().expect("as many as asked for")
}

/// Adds, column by column, the sums over rows of both values to `sums`: those of the first value,
/// then those of the second.
#[inline(always)]
fn add_column_sums(len: usize, channels: usize, sums: &mut [f64], mut terms: impl Terms) {
    let (first, second) = sums.split_at_mut(channels);
    let whole = channels / COLUMNS * COLUMNS;
    for start in (0..len).step_by(ROWS * channels) {
        let end = len.min(start + ROWS * channels);
        for column in (0..whole).step_by(COLUMNS) {
            let (mut a, mut b) = ([0f64; COLUMNS], [0f64; COLUMNS]);
            for row in (start + column..end).step_by(channels) {
                terms.add(row, &mut a, &mut b);
            }
            for j in 0..COLUMNS {
                first[column + j] += a[j];
                second[column + j] += b[j];
            }
        }
        for column in whole..channels {
            let (mut a, mut b) = ([0f64], [0f64]);
            for row in (start + column..end).step_by(channels) {
                terms.add(row, &mut a, &mut b);
            }
            first[column] += a[0];
            second[column] += b[0];
        }
    }
}

/// A value and its square.
struct Moments<'a>(&'a [f32]);

impl Terms for Moments<'_> {
    #[inline(always)]
    fn add<const N: usize>(&mut self, at: usize, a: &mut [f64; N], b: &mut [f64; N]) {
        let x = lanes::<N>(self.0, at);
        for j in 0..N {
            let x = f64::from(x[j]);
            a[j] += x;
            b[j] += x * x;
        }
    }
}

#[inline(always)]
fn moments_body<const FMA: bool>(xs: &[f32], sums: &mut [f64]) {
    add_column_sums(xs.len(), sums.len() / 2, sums, Moments(xs));
}
dispatch! {
    /// Adds the column sums of `xs` and of its square to `sums` `[2, C]`.
    moments => moments_body(xs: &[f32], sums: &mut [f64])
}

/// A gradient, and it times a value.
struct GradTerms<'a> {
    grad: &'a [f32],
    xs: &'a [f32],
}

impl Terms for GradTerms<'_> {
    #[inline(always)]
    fn add<const N: usize>(&mut self, at: usize, a: &mut [f64; N], b: &mut [f64; N]) {
        let (grad, x) = (lanes::<N>(self.grad, at), lanes::<N>(self.xs, at));
        for j in 0..N {
            let g = f64::from(grad[j]);
            a[j] += g;
            b[j] += g * f64::from(x[j]);
        }
    }
}

#[inline(always)]
fn grad_sums_body<const FMA: bool>(grad: &[f32], xs: &[f32], sums: &mut [f64]) {
    add_column_sums(grad.len(), sums.len() / 2, sums, GradTerms { grad, xs });
}
dispatch! {
    /// Adds the column sums of `grad` and of `grad · xs` to `sums` `[2, C]`.
    grad_sums => grad_sums_body(grad: &[f32], xs: &[f32], sums: &mut [f64])
}

/// As [`GradTerms`], of gradients that are first set to zero where a ReLU's output is.
struct MaskedGradTerms<'a> {
    grad: &'a mut [f32],
    ys: &'a [f32],
    xs: &'a [f32],
}

impl Terms for MaskedGradTerms<'_> {
    #[inline(always)]
    fn add<const N: usize>(&mut self, at: usize, a: &mut [f64; N], b: &mut [f64; N]) {
        let (y, mut masked) = (lanes::<N>(self.ys, at), *lanes::<N>(self.grad, at));
        for j in 0..N {
            // A NaN is not ≤ 0 and lets the gradient through, as in `relu`.
            masked[j] = if y[j] <= 0.0 { 0.0 } else { masked[j] };
        }
        self.grad[at..at + N].copy_from_slice(&masked);
        let x = lanes::<N>(self.xs, at);
        for j in 0..N {
            let g = f64::from(masked[j]);
            a[j] += g;
            b[j] += g * f64::from(x[j]);
        }
    }
}

#[inline(always)]
fn masked_grad_sums_body<const FMA: bool>(
    grad: &mut [f32],
    ys: &[f32],
    xs: &[f32],
    sums: &mut [f64],
) {
    let terms = MaskedGradTerms { grad, ys, xs };
    add_column_sums(xs.len(), sums.len() / 2, sums, terms);
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

#[inline(always)]
fn bias_relu_body<const FMA: bool>(ys: &mut [f32], bias: &[f32]) {
    for y in ys.chunks_exact_mut(bias.len()) {
        for (y, bias) in y.iter_mut().zip(bias) {
            *y = rectified(*y + bias);
        }
    }
}
dispatch! {
    /// `ys = relu(ys + bias)`.
    bias_relu => bias_relu_body(ys: &mut [f32], bias: &[f32])
}

#[inline(always)]
fn bias_add_relu_body<const FMA: bool>(ys: &mut [f32], bias: &[f32], added: &[f32]) {
    let n = bias.len();
    for (y, added) in ys.chunks_exact_mut(n).zip(added.chunks_exact(n)) {
        for ((y, bias), added) in y.iter_mut().zip(bias).zip(added) {
            *y = rectified(*y + bias + added);
        }
    }
}
dispatch! {
    /// `ys = relu(ys + bias + added)`.
    bias_add_relu => bias_add_relu_body(ys: &mut [f32], bias: &[f32], added: &[f32])
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

#[inline(always)]
fn largest_body<const FMA: bool>(
    xs: &[f32],
    positions: &[u32],
    ys: &mut [f32],
    winners: &mut [u32],
) {
    let channels = ys.len();
    let winners = &mut winners[..channels];
    ys.fill(f32::NEG_INFINITY);
    winners.fill(positions.first().copied().unwrap_or_default());
    for position in positions {
        let x = &xs[*position as usize * channels..][..channels];
        for j in 0..channels {
            let wins = x[j] > ys[j] || x[j].is_nan();
            ys[j] = if wins { x[j] } else { ys[j] };
            winners[j] = if wins { *position } else { winners[j] };
        }
    }
}
dispatch! {
    /// Per column the largest value of some rows of `xs`, and in which of them it stands: the first
    /// of equal ones, the last NaN.
    largest => largest_body(
        xs: &[f32],
        positions: &[u32],
        ys: &mut [f32],
        winners: &mut [u32],
    )
}

#[inline(always)]
fn add_to_winners_body<const FMA: bool>(
    grad: &[f32],
    winners: &[u32],
    positions: &[u32],
    dx: &mut [f32],
) {
    let channels = grad.len();
    let winners = &winners[..channels];
    for position in positions {
        let dx = &mut dx[*position as usize * channels..][..channels];
        for j in 0..channels {
            dx[j] += if winners[j] == *position {
                grad[j]
            } else {
                0.0
            };
        }
    }
}
dispatch! {
    /// Adds a row of gradients, column by column, to the row of `dx` that [`largest`] found.
    add_to_winners => add_to_winners_body(
        grad: &[f32],
        winners: &[u32],
        positions: &[u32],
        dx: &mut [f32],
    )
}
