//! What a block's backward pass needs of its forward pass, for one chunk of images.

use crate::buffers::Buffer;

use super::pass::Pass;

/// The parts of one buffer.
///
/// `R` rows of tokens go into the block, `Q` come out of it: as many, or one for each image.
/// The backward pass overwrites values with their gradients where nobody needs the values any
/// more; those are marked by an arrow.
#[derive(Debug)]
pub(super) struct Saved {
    buffer: Buffer,
    lens: [usize; PARTS],
}

const PARTS: usize = 12;

/// Attention weights of an image that are in memory at a time where nothing is kept (64 MiB).
const PROBS: usize = 1 << 24;

/// What of a block there must be room for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    /// Only the class token leaves the block.
    pub(super) class_only: bool,
    /// It has branch factors.
    pub(super) scaled: bool,
    /// A backward pass follows.
    pub(super) keep: bool,
}

/// Mutable views of all parts.
pub(super) struct Parts<'a> {
    /// `[R, D]`: the block's input → its gradient.
    pub(super) x: &'a mut [f32],
    /// `[R, 2]`: mean and 1/std of the first norm.
    pub(super) stats1: &'a mut [f32],
    /// `[R, D]`: after the first norm.
    pub(super) y1: &'a mut [f32],
    /// `[R, 3·D]` → gradient.
    pub(super) qkv: &'a mut [f32],
    /// Per image `[H, Q/images, N]`: attention weights; fewer queries at a time where nothing is
    /// kept and they are many.
    pub(super) probs: &'a mut [f32],
    /// `[Q, D]`: what the heads mixed.
    pub(super) mixed: &'a mut [f32],
    /// `[Q, D]`: after the first residual → its gradient.
    pub(super) mid: &'a mut [f32],
    /// `[Q, 2]`: mean and 1/std of the second norm.
    pub(super) stats2: &'a mut [f32],
    /// `[Q, D]`: after the second norm.
    pub(super) y2: &'a mut [f32],
    /// `[Q, F]`: the GELU's slope → gradient before the GELU.
    pub(super) slope: &'a mut [f32],
    /// `[Q, F]`: after the GELU.
    pub(super) hidden: &'a mut [f32],
    /// `[2·Q, D]`: gradients of the branches times their factors; empty without factors.
    pub(super) branches: &'a mut [f32],
}

/// Read-only views of what the gradients of the weights are made of.
pub(super) struct Inputs<'a> {
    pub(super) x: &'a [f32],
    pub(super) y1: &'a [f32],
    pub(super) d_qkv: &'a [f32],
    pub(super) mixed: &'a [f32],
    pub(super) d_mid: &'a [f32],
    pub(super) y2: &'a [f32],
    pub(super) d_hidden: &'a [f32],
    pub(super) hidden: &'a [f32],
    pub(super) branches: &'a [f32],
}

impl Saved {
    /// Room for `images` images of a pass.
    pub(super) fn new(pass: &Pass, images: usize, room: Room) -> Self {
        let lens = Self::lens(pass, images, room);
        Self {
            buffer: Buffer::take(lens.iter().sum()),
            lens,
        }
    }

    /// Numbers of each part.
    pub(super) fn lens(pass: &Pass, images: usize, room: Room) -> [usize; PARTS] {
        let (d, n, f) = (pass.width, pass.tokens, pass.hidden);
        let rows = images * n;
        let out = if room.class_only { images } else { rows };
        let of_a_query = pass.options.num_heads * n;
        let queries = match room.keep {
            true => out / images,
            false => (out / images).min((PROBS / of_a_query).max(1)),
        };
        let probs = images * queries * of_a_query;
        let branches = if room.scaled { 2 * out * d } else { 0 };
        [
            rows * d,
            rows * 2,
            rows * d,
            rows * 3 * d,
            probs,
            out * d,
            out * d,
            out * 2,
            out * d,
            out * f,
            out * f,
            branches,
        ]
    }

    pub(super) fn parts(&mut self) -> Parts<'_> {
        let mut rest: &mut [f32] = &mut self.buffer;
        let mut next = |index: usize| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(self.lens[index]);
            rest = after;
            part
        };
        Parts {
            x: next(0),
            stats1: next(1),
            y1: next(2),
            qkv: next(3),
            probs: next(4),
            mixed: next(5),
            mid: next(6),
            stats2: next(7),
            y2: next(8),
            slope: next(9),
            hidden: next(10),
            branches: next(11),
        }
    }

    pub(super) fn inputs(&self) -> Inputs<'_> {
        let part = |index: usize| {
            let start: usize = self.lens[..index].iter().sum();
            &self.buffer[start..][..self.lens[index]]
        };
        Inputs {
            x: part(0),
            y1: part(2),
            d_qkv: part(3),
            mixed: part(5),
            d_mid: part(6),
            y2: part(8),
            d_hidden: part(9),
            hidden: part(10),
            branches: part(11),
        }
    }
}
