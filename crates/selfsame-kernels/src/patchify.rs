//! Images cut into patches, so that a patch embedding is one matrix product.
#![expect(unsafe_code, reason = "outputs are written, not zeroed first")]

use crate::composed;
use crate::gemm::Precision;
use crate::host::{self, for_each_chunk, fused, slice, with_slice, written_by};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

/// Cuts images into non-overlapping square patches, row by row.
///
/// Each patch is flattened as channel, row, column: the order of a convolution's weight
/// `[out, C, P, P]` reshaped to `[out, C·P·P]`, so [`crate::linear`] with it equals the convolution
/// with stride P.
///
/// # Shape
/// `xs`: `[B, C, H, W]`; the result is `[B, (H/P)·(W/P), C·P·P]`.
/// # Errors
/// If H or W is not a multiple of `patch`.
pub fn patchify(xs: &Tensor, patch: usize) -> Result<Tensor> {
    let (_, _, h, w) = xs.dims4()?;
    if patch == 0 || h % patch != 0 || w % patch != 0 {
        bail!("patchify: {h}x{w} is not a multiple of the patch size {patch}");
    }
    if !fused(&[xs]) {
        return composed::patchify(xs, patch);
    }
    xs.contiguous()?.apply_op1(Patchify { patch })
}

/// Whether [`patch_tokens`] is for these crops: f32 on a CUDA device.
pub fn has_patch_tokens(crops: &Tensor, dim: usize) -> bool {
    cfg!(feature = "cuda")
        && crops.device().is_cuda()
        && crops.dtype() == DType::F32
        && crops.elem_count() > 0
        && !crops.track_op()
        && dim.is_multiple_of(2)
}

/// Patches embedded by one product, behind a class token: `offsets` are what is added, the class
/// token and position embeddings, the bias too.
///
/// On CUDA devices alone, see [`has_patch_tokens`]; the crops get no gradient.
///
/// # Shape
/// `crops`: `[B, C, H, W]`, `weight`: `[D, C·P·P]`, `offsets`: `[1 + N, D]` with N patches; the result
/// is `[B, 1 + N, D]`, f32.
/// # Errors
/// If the shapes do not fit, or on another device.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
pub fn patch_tokens(
    crops: &Tensor,
    weight: &Tensor,
    offsets: &Tensor,
    patch: usize,
    precision: Precision,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if has_patch_tokens(crops, weight.dim(0)?) {
        return crate::cuda::ops::patch_tokens(crops, weight, offsets, patch, precision);
    }
    bail!("patch_tokens: for f32 crops on a cuda device");
}

struct Patchify {
    patch: usize,
}

/// Calls `f(offset in the image, offset in the patches)` for each run of `patch` pixels.
fn for_each_run(dims: (usize, usize, usize), patch: usize, mut f: impl FnMut(usize, usize)) {
    let (c, h, w) = dims;
    let cols = w / patch;
    for row in 0..h / patch {
        for col in 0..cols {
            let start = (row * cols + col) * c * patch * patch;
            for channel in 0..c {
                for y in 0..patch {
                    let pixel = (channel * h + row * patch + y) * w + col * patch;
                    f(pixel, start + (channel * patch + y) * patch);
                }
            }
        }
    }
}

impl CustomOp1 for Patchify {
    fn name(&self) -> &'static str {
        "patchify"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = layout.shape().dims4()?;
        let (xs, patch, len) = (slice(xs, layout)?, self.patch, c * h * w);
        // SAFETY: chunks of one image cover the output; the runs cover each of them.
        let ys = unsafe {
            written_by(xs.len(), |ys| {
                for_each_chunk(ys, len, |i, ys| {
                    let image = &xs[i * len..][..len];
                    for_each_run((c, h, w), patch, |from, to| {
                        for (y, x) in ys[to..to + patch].iter_mut().zip(&image[from..]) {
                            y.write(*x);
                        }
                    });
                });
            })
        };
        Ok((
            CpuStorage::F32(ys),
            (b, h / patch * (w / patch), c * patch * patch).into(),
        ))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, c, h, w) = xs.dims4()?;
        let (patch, len) = (self.patch, c * h * w);
        let dx = with_slice(&grad.contiguous()?, |grad| {
            // SAFETY: chunks of one image cover the output; the runs cover each of them.
            Ok(unsafe {
                written_by(grad.len(), |dx| {
                    for_each_chunk(dx, len, |i, dx| {
                        let grad = &grad[i * len..][..len];
                        for_each_run((c, h, w), patch, |to, from| {
                            for (d, g) in dx[to..to + patch].iter_mut().zip(&grad[from..]) {
                                d.write(*g);
                            }
                        });
                    });
                })
            })
        })?;
        Ok(Some(host::tensor(dx, xs.shape())?))
    }
}
