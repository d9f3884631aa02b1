//! Stochastic depth (Huang et al. 2016): whole residual branches left out per image.

use candle_core::{Result, Tensor};

use crate::mode::{Branch, Mode};

/// Leaves a branch out with probability `rate`, and scales it by 1/(1 − rate) where it stays.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DropPath {
    /// Position of the block, part of the mask's key.
    pub(crate) block: usize,
    /// Probability of leaving a branch out; 0 costs nothing.
    pub(crate) rate: f64,
}

impl DropPath {
    /// `xs`: `[B, ...]`, one decision per row of the first dimension.
    pub(crate) fn forward(
        &self,
        xs: Tensor,
        mode: &Mode,
        group: usize,
        branch: Branch,
    ) -> Result<Tensor> {
        let Mode::Train(draws) = mode else {
            return Ok(xs);
        };
        if self.rate == 0.0 {
            return Ok(xs);
        }
        let (rows, keep) = (xs.dim(0)?, 1.0 - self.rate);
        let kept = draws.kept_rows(group, self.block, branch, rows, keep);
        let mask = kept
            .into_iter()
            .map(|kept| if kept { (1.0 / keep) as f32 } else { 0.0 });
        let mut shape = vec![1; xs.rank()];
        shape[0] = rows;
        let mask = Tensor::from_vec(mask.collect::<Vec<_>>(), shape, xs.device())?;
        xs.broadcast_mul(&mask)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::mode::Draws;

    fn rows(mode: Mode) -> Vec<f32> {
        let ones = Tensor::ones((4000, 1, 2), DType::F32, &Device::Cpu).unwrap();
        let drop_path = DropPath {
            block: 1,
            rate: 0.2,
        };
        let ys = drop_path.forward(ones, &mode, 0, Branch::Mlp).unwrap();
        ys.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_row_is_dropped_whole_or_scaled_whole_and_the_mean_stays() {
        let values = rows(Mode::Train(Draws {
            seed: 3,
            ..Default::default()
        }));
        for row in values.chunks_exact(2) {
            assert!(row == [0.0, 0.0] || row == [1.25, 1.25], "{row:?}");
        }
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
    }

    #[test]
    fn equal_draws_give_equal_masks_and_evaluation_none() {
        let draws = Draws {
            seed: 3,
            step: 9,
            micro_batch: 0,
        };
        assert_eq!(rows(Mode::Train(draws)), rows(Mode::Train(draws)));
        assert_ne!(
            rows(Mode::Train(draws)),
            rows(Mode::Train(Draws { step: 10, ..draws }))
        );
        assert!(rows(Mode::Eval).iter().all(|value| *value == 1.0));
    }
}
