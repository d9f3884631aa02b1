//! Which images of a chunk go through a residual branch (drop path).

use std::ops::Range;

use super::BranchFactors;
use super::pass::Chunk;

/// A branch of a block over a chunk. Images whose factor is zero are dropped and do not go through
/// it; inside it the others lie side by side, in their order.
pub(super) struct Branch<'a> {
    /// Of each image of the chunk; `None` keeps all as they are.
    factors: Option<&'a [f32]>,
    runs: Vec<Run>,
}

/// Neighbouring images that are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Run {
    /// Position in the chunk.
    first: usize,
    /// Position among those that are kept.
    at: usize,
    images: usize,
}

impl Run {
    /// Where the images are in a chunk, with so many numbers to an image.
    pub(super) fn outside(self, len: usize) -> Range<usize> {
        self.first * len..(self.first + self.images) * len
    }

    /// Where they are inside the branch.
    pub(super) fn inside(self, len: usize) -> Range<usize> {
        self.at * len..(self.at + self.images) * len
    }
}

/// The two branches of a block.
pub(super) struct Branches<'a> {
    pub(super) attention: Branch<'a>,
    pub(super) mlp: Branch<'a>,
}

impl<'a> Branches<'a> {
    /// Of each block; `factors` are those of all images, or empty.
    pub(super) fn of_blocks(
        chunk: Chunk,
        blocks: usize,
        factors: &'a [BranchFactors],
    ) -> Vec<Self> {
        let branch = |factors: Option<&'a Vec<f32>>| Branch::new(chunk, factors.map(Vec::as_slice));
        let block = |index: usize| {
            let factors = factors.get(index);
            Self {
                attention: branch(factors.and_then(|f| f.attention.as_ref())),
                mlp: branch(factors.and_then(|f| f.mlp.as_ref())),
            }
        };
        (0..blocks).map(block).collect()
    }
}

impl<'a> Branch<'a> {
    fn new(chunk: Chunk, factors: Option<&'a [f32]>) -> Self {
        let factors = factors.map(|factors| &factors[chunk.first..][..chunk.images]);
        let mut runs: Vec<Run> = Vec::new();
        let mut at = 0;
        for image in 0..chunk.images {
            if factors.is_some_and(|factors| factors[image] == 0.0) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.first + run.images == image => run.images += 1,
                _ => runs.push(Run {
                    first: image,
                    at,
                    images: 1,
                }),
            }
            at += 1;
        }
        Self { factors, runs }
    }

    /// Images that go through the branch.
    pub(super) fn kept(&self) -> usize {
        self.runs.iter().map(|run| run.images).sum()
    }

    /// The same if results are multiplied by factors.
    pub(super) fn scaled(&self) -> Option<usize> {
        self.factors.map(|_| self.kept())
    }

    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Takes the branch's results, which stand at the start of `ys`, to their images: there each is
    /// multiplied by its factor and added to the first numbers of that image in `residual`.
    pub(super) fn spread(&self, ys: &mut [f32], residual: &[f32]) {
        let factors = self.factors.unwrap_or_default();
        let images = factors.len().max(1);
        let (len, stride) = (ys.len() / images, residual.len() / images);
        let mut at = self.kept();
        // From the end, so that no result is overwritten before it has been moved.
        for (image, factor) in factors.iter().enumerate().rev() {
            let residual = &residual[image * stride..][..len];
            let (before, y) = ys.split_at_mut(image * len);
            let y = &mut y[..len];
            if *factor == 0.0 {
                y.copy_from_slice(residual);
                continue;
            }
            at -= 1;
            if at < image {
                y.copy_from_slice(&before[at * len..][..len]);
            }
            for (y, r) in y.iter_mut().zip(residual) {
                *y = *y * factor + r;
            }
        }
    }

    /// The gradient of the branch's results: that of the kept images times their factors, written to
    /// `room`, or `grad` itself where there are none.
    pub(super) fn gradient<'g>(&self, grad: &'g [f32], room: &'g mut [f32]) -> &'g [f32] {
        let Some(factors) = self.factors else {
            return grad;
        };
        let len = grad.len() / factors.len().max(1);
        let kept = factors.iter().zip(grad.chunks_exact(len.max(1)));
        let kept = kept.filter(|(factor, _)| **factor != 0.0);
        for ((factor, grad), y) in kept.zip(room.chunks_exact_mut(len.max(1))) {
            for (y, g) in y.iter_mut().zip(grad) {
                *y = g * factor;
            }
        }
        room
    }

    /// Copies the images that do not go through the branch.
    pub(super) fn copy_dropped(&self, ys: &mut [f32], xs: &[f32]) {
        let factors = self.factors.unwrap_or_default();
        let len = ys.len() / factors.len().max(1);
        for (image, _) in factors.iter().enumerate().filter(|(_, f)| **f == 0.0) {
            let image = image * len..(image + 1) * len;
            ys[image.clone()].copy_from_slice(&xs[image]);
        }
    }
}
