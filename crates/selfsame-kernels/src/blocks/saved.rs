//! What a block's backward pass needs of its forward pass, for one chunk of images.

use crate::buffers::Buffer;

use super::pass::Pass;

/// The parts of one buffer.
///
/// `R` rows of tokens go into the block, `Q` come out of it: as many, or one for each image. Where
/// branches drop images, what is inside them has `R'` and `Q'` rows.
/// The backward pass overwrites values with their gradients where nobody needs the values any
/// more; those are marked by an arrow.
#[derive(Debug)]
pub(super) struct Saved {
    buffer: Buffer,
    /// Numbers that there is room for, and that are in use.
    parts: [(usize, usize); PARTS],
    scaled: [bool; 2],
}

const PARTS: usize = 13;

/// Whose images a part holds.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// All of the chunk.
    Block,
    /// Those that go through the attention branch.
    Attention,
    /// Those that go through the MLP branch.
    Mlp,
}

const KINDS: [Kind; PARTS] = {
    use Kind::{Attention as A, Block as B, Mlp as M};
    [B, A, A, A, A, A, B, M, M, M, M, A, M]
};

/// Attention weights of an image that are in memory at a time where nothing is kept (64 MiB).
const PROBS: usize = 1 << 24;

/// What of a block there must be room for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    /// Only the class token leaves the block.
    pub(super) class_only: bool,
    /// Images that go through the attention branch, if it has factors.
    pub(super) attention: Option<usize>,
    /// The same of the MLP branch.
    pub(super) mlp: Option<usize>,
    /// A backward pass follows.
    pub(super) keep: bool,
}

/// Mutable views of all parts.
pub(super) struct Parts<'a> {
    /// `[R, D]`: the block's input → its gradient.
    pub(super) x: &'a mut [f32],
    /// `[R', 2]`: mean and 1/std of the first norm.
    pub(super) stats1: &'a mut [f32],
    /// `[R', D]`: after the first norm.
    pub(super) y1: &'a mut [f32],
    /// `[R', 3·D]` → gradient.
    pub(super) qkv: &'a mut [f32],
    /// Per kept image `[H, Q/images, N]`: attention weights; fewer queries at a time where nothing is
    /// kept and they are many.
    pub(super) probs: &'a mut [f32],
    /// `[Q', D]`: what the heads mixed.
    pub(super) mixed: &'a mut [f32],
    /// `[Q, D]`: after the first residual → its gradient.
    pub(super) mid: &'a mut [f32],
    /// `[Q', 2]`: mean and 1/std of the second norm.
    pub(super) stats2: &'a mut [f32],
    /// `[Q', D]`: after the second norm.
    pub(super) y2: &'a mut [f32],
    /// `[Q', F]`: the GELU's slope → gradient before the GELU.
    pub(super) slope: &'a mut [f32],
    /// `[Q', F]`: after the GELU.
    pub(super) hidden: &'a mut [f32],
    /// `[Q', D]`: gradient of the attention branch times its factors; empty without factors.
    pub(super) attention_grad: &'a mut [f32],
    /// The same of the MLP branch.
    pub(super) mlp_grad: &'a mut [f32],
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
    /// `None` without factors.
    pub(super) attention_grad: Option<&'a [f32]>,
    pub(super) mlp_grad: Option<&'a [f32]>,
}

impl Saved {
    /// Room for `images` images of a pass. There is as much of it where some are dropped, so that
    /// buffers serve every chunk.
    pub(super) fn new(pass: &Pass, images: usize, room: Room) -> Self {
        let lens = Self::lens(pass, images, room);
        let used = |index: usize| match (KINDS[index], room.attention, room.mlp) {
            (Kind::Attention, Some(kept), _) | (Kind::Mlp, _, Some(kept)) => {
                lens[index] / images.max(1) * kept
            }
            _ => lens[index],
        };
        Self {
            buffer: Buffer::take(lens.iter().sum()),
            parts: std::array::from_fn(|index| (lens[index], used(index))),
            scaled: [room.attention.is_some(), room.mlp.is_some()],
        }
    }

    /// Numbers that there is room for in each part.
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
        let grad = |scaled: Option<usize>| if scaled.is_some() { out * d } else { 0 };
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
            grad(room.attention),
            grad(room.mlp),
        ]
    }

    pub(super) fn parts(&mut self) -> Parts<'_> {
        let mut rest: &mut [f32] = &mut self.buffer;
        let mut next = |index: usize| {
            let (len, used) = self.parts[index];
            let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            &mut part[..used]
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
            attention_grad: next(11),
            mlp_grad: next(12),
        }
    }

    pub(super) fn inputs(&self) -> Inputs<'_> {
        let part = |index: usize| {
            let start: usize = self.parts[..index].iter().map(|(len, _)| len).sum();
            &self.buffer[start..][..self.parts[index].1]
        };
        let [attention, mlp] = self.scaled;
        Inputs {
            x: part(0),
            y1: part(2),
            d_qkv: part(3),
            mixed: part(5),
            d_mid: part(6),
            y2: part(8),
            d_hidden: part(9),
            hidden: part(10),
            attention_grad: attention.then(|| part(11)),
            mlp_grad: mlp.then(|| part(12)),
        }
    }
}
