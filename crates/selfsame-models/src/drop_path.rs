//! Stochastic depth (Huang et al. 2016): whole residual branches left out per image.

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
    /// Of a block of `depth`, at a rate that grows linearly from 0 to `rate`
    /// (`torch.linspace(0, drop_path_rate, depth)` in both references).
    pub(crate) fn linear(rate: f64, block: usize, depth: usize) -> Self {
        let share = block as f64 / (depth - 1).max(1) as f64;
        Self {
            block,
            rate: rate * share,
        }
    }

    /// What a branch is multiplied by, for each of `rows` images; `None` leaves all as they are.
    pub(crate) fn factors(
        &self,
        rows: usize,
        mode: &Mode,
        group: usize,
        branch: Branch,
    ) -> Option<Vec<f32>> {
        let Mode::Train(draws) = mode else {
            return None;
        };
        if self.rate == 0.0 {
            return None;
        }
        let keep = 1.0 - self.rate;
        let kept = draws.kept_rows(group, self.block, branch, rows, keep);
        let factor = |kept| if kept { (1.0 / keep) as f32 } else { 0.0 };
        Some(kept.into_iter().map(factor).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::Draws;

    fn factors(mode: Mode) -> Option<Vec<f32>> {
        let drop_path = DropPath {
            block: 1,
            rate: 0.2,
        };
        drop_path.factors(4000, &mode, 0, Branch::Mlp)
    }

    #[test]
    fn an_image_is_dropped_or_scaled_and_the_mean_stays() {
        let factors = factors(Mode::Train(Draws {
            seed: 3,
            ..Default::default()
        }))
        .unwrap();
        assert!(factors.iter().all(|f| [0.0, 1.25].contains(f)));
        let mean = factors.iter().sum::<f32>() / factors.len() as f32;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
    }

    #[test]
    fn equal_draws_give_equal_masks_and_evaluation_none() {
        let draws = Draws {
            seed: 3,
            step: 9,
            micro_batch: 0,
            first_row: 0,
        };
        assert_eq!(factors(Mode::Train(draws)), factors(Mode::Train(draws)));
        assert_ne!(
            factors(Mode::Train(draws)),
            factors(Mode::Train(Draws { step: 10, ..draws }))
        );
        assert_eq!(factors(Mode::Eval), None);
    }
}
