//! Softmax over rows, and the DINO loss on it.

use super::{Arg, Element, Launch, Source, size, threads_along};
use candle_core::Result;

/// Sizes of a softmax over rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Softmax {
    element: Element,
    rows: u32,
    width: u32,
    is_log: bool,
}

impl Softmax {
    pub(crate) fn new(
        element: Element,
        rows: usize,
        width: usize,
        is_log: bool,
    ) -> Result<Softmax> {
        Ok(Softmax {
            element,
            rows: size(rows)?,
            width: size(width)?,
            is_log,
        })
    }

    fn launch<P>(&self, kernel: &'static str, args: Vec<Arg<P>>) -> Launch<P> {
        Launch {
            source: Source::Softmax,
            kernel,
            grid: [self.rows, 1],
            block: [threads_along(self.width), 1],
            shared_bytes: 0,
            args,
        }
    }

    /// `ys = softmax((xs − center) · scale)`, or its logarithm; without a centre it is 0.
    pub(crate) fn forward<P>(&self, xs: P, center: Option<P>, ys: P, scale: f32) -> Launch<P> {
        let args = vec![
            Arg::Pointer(xs),
            Arg::optional(center),
            Arg::Pointer(ys),
            Arg::U32(self.width),
            Arg::F32(scale),
            Arg::U32(u32::from(self.is_log)),
        ];
        self.launch(self.element.pick("softmax_f32", "softmax_bf16"), args)
    }

    /// `dx` by the result of the forward pass, for a scale of 1.
    pub(crate) fn grad<P>(&self, ys: P, grad: P, dx: P) -> Launch<P> {
        let mut args: Vec<_> = [ys, grad, dx].map(Arg::Pointer).into();
        args.extend([self.width, u32::from(self.is_log)].map(Arg::U32));
        self.launch(
            self.element.pick("softmax_grad_f32", "softmax_grad_bf16"),
            args,
        )
    }
}

/// What [`crate::soft_cross_entropy_rows`] is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrossEntropy {
    pub(crate) element: Element,
    /// Rows of the student that are here.
    pub(crate) rows: usize,
    /// Prototypes.
    pub(crate) width: usize,
    /// Images.
    pub(crate) batch: usize,
    pub(crate) num_crops: usize,
    pub(crate) first_row: usize,
    pub(crate) student_temp: f64,
}

impl CrossEntropy {
    /// Pairs of views times images, which the loss is a mean over.
    fn terms(&self) -> f64 {
        ((2 * self.num_crops - 2) * self.batch) as f64
    }

    /// `losses`: `[rows]`; `grad` is shaped as the student's logits.
    pub(crate) fn forward<P>(
        &self,
        [student, teacher]: [P; 2],
        grad: Option<P>,
        losses: P,
    ) -> Result<Launch<P>> {
        let width = size(self.width)?;
        size(self.first_row + self.rows)?;
        let args = vec![
            Arg::Pointer(student),
            Arg::Pointer(teacher),
            Arg::optional(grad),
            Arg::Pointer(losses),
            Arg::U32(width),
            Arg::U32(size(self.batch)?),
            Arg::U32(self.first_row as u32),
            Arg::F32((1.0 / self.student_temp) as f32),
            Arg::F32((1.0 / (self.terms() * self.student_temp)) as f32),
        ];
        Ok(Launch {
            source: Source::Softmax,
            kernel: self.element.pick("cross_entropy_f32", "cross_entropy_bf16"),
            grid: [size(self.rows)?, 1],
            block: [threads_along(width), 1],
            shared_bytes: 0,
            args,
        })
    }

    /// The loss from those of the rows.
    pub(crate) fn total<P>(&self, losses: P, loss: P) -> Result<Launch<P>> {
        scaled_sum(losses, loss, self.rows, (1.0 / self.terms()) as f32)
    }
}

/// `sum = factor · Σ xs`
fn scaled_sum<P>(xs: P, sum: P, len: usize, factor: f32) -> Result<Launch<P>> {
    let len = size(len)?;
    Ok(Launch {
        source: Source::Sums,
        kernel: "scaled_sum",
        grid: [1, 1],
        block: [threads_along(len), 1],
        shared_bytes: 0,
        args: vec![
            Arg::Pointer(xs),
            Arg::Pointer(sum),
            Arg::U32(len),
            Arg::F32(factor),
        ],
    })
}

/// `ys = xs` times a number on the device.
pub(crate) fn scaled<P>(
    element: Element,
    xs: P,
    factor: P,
    ys: P,
    len: usize,
) -> Result<Launch<P>> {
    let len = size(len)?;
    let mut args: Vec<_> = [xs, factor, ys].map(Arg::Pointer).into();
    args.push(Arg::U32(len));
    Ok(Launch {
        source: Source::Softmax,
        kernel: element.pick("scaled_f32", "scaled_bf16"),
        grid: [len.div_ceil(256), 1],
        block: [256, 1],
        shared_bytes: 0,
        args,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_for_each_row_of_the_loss() {
        let loss = CrossEntropy {
            element: Element::F32,
            rows: 96,
            width: 65_536,
            batch: 16,
            num_crops: 10,
            first_row: 64,
            student_temp: 0.1,
        };
        let launch = loss.forward([0, 1], Some(2), 3).unwrap();
        assert_eq!((launch.grid, launch.block), ([96, 1], [1024, 1]));
        // 18 pairs of views of 16 images.
        let factor = (1.0 / (18.0 * 16.0 * 0.1)) as f32;
        assert_eq!(
            launch.args[6..],
            [Arg::U32(64), Arg::F32(10.0), Arg::F32(factor)]
        );
        assert_eq!(loss.total(0, 1).unwrap().grid, [1, 1]);
    }
}
