//! How much memory a run will need at its peak, told from its configuration alone.

use selfsame_models::{HeadKind, Network, ParamKind};
use serde::Serialize;

use crate::config::{OptimizerKind, RunConfig};
use crate::error::TrainError;
use crate::learner::images_a_part;

/// Bytes of a number in memory; bf16 products round from f32.
const FLOAT: usize = 4;

/// What a run needs of memory at its peak, in bytes, by what it is needed for.
///
/// An estimate for training on the CPU: within 20 % of the peak that four presets reach
/// (docs/reliability.md). Decoding pictures of many megapixels and k-NN over more than some
/// thousand pictures come on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// The program, its threads and their work space.
    pub program: usize,
    /// Student and teacher.
    pub weights: usize,
    /// Moments of the optimizer.
    pub optimizer: usize,
    /// Gradients of the student.
    pub gradients: usize,
    /// What the backward pass needs of the forward pass of one part of a batch.
    pub activations: usize,
    /// Logits and probabilities over the prototypes, and copies of the last layer if it needs some.
    pub outputs: usize,
    /// Batches of crops: the one at work and those made ahead.
    pub crops: usize,
    /// Decoded pictures that are kept (`data.cache_mib`).
    pub cache: usize,
}

/// What no number holds is the largest one.
fn product(factors: &[usize]) -> usize {
    factors.iter().fold(1, |a, b| a.saturating_mul(*b))
}

impl MemoryEstimate {
    /// The estimate for a configuration.
    ///
    /// # Errors
    /// [`TrainError::Model`] with every problem of the model's and the head's table.
    pub fn of(config: &RunConfig) -> Result<Self, TrainError> {
        let (student, specs) = Network::outline(&config.model, &config.head)?;
        let numbers = |trainable_only: bool| -> usize {
            let counted = |kind| !trainable_only || kind == ParamKind::Trainable;
            let specs = specs.iter().filter(|spec| counted(spec.kind));
            specs.map(|spec| spec.shape.elem_count()).sum()
        };
        let moments = match config.optim.name {
            OptimizerKind::AdamW => 2,
            OptimizerKind::Sgd | OptimizerKind::Lars => 1,
        };

        let batch = config.train.batch_size;
        let (global, local) = (config.augment.global_size, config.augment.local_size);
        let locals = batch.saturating_mul(config.augment.local_crops);
        let groups = [(batch.saturating_mul(2), global), (locals, local)];
        // With drop path, 2 of 17 widths of a token more are kept: gradients of scaled branches.
        let dropped = |bytes: usize| match config.model.drop_path_rate > 0.0 {
            true => bytes.saturating_add(bytes / 17 * 2),
            false => bytes,
        };
        let (mut activations, mut student_rows) = (0, 0);
        for (rows, side) in groups.into_iter().filter(|(rows, _)| *rows > 0) {
            let each = student.bytes_per_image(side, side);
            match images_a_part(&student, config.part_bytes(), rows, [side, side]) {
                Some(size) => {
                    let kept = size.min(rows).saturating_mul(each);
                    activations = activations.max(dropped(kept));
                    student_rows = student_rows.max(size.min(rows));
                }
                None => {
                    // The backward pass holds gradients of some maps beside the maps.
                    let maps = rows.saturating_mul(each.saturating_add(each / 5));
                    activations = activations.saturating_add(maps);
                    student_rows = student_rows.saturating_add(rows);
                }
            }
        }
        // Logits, softmax and their gradient; those of the teacher without one.
        let rows = product(&[3, student_rows]).saturating_add(product(&[2, 2, batch]));
        let pixels = product(&[3, 2, batch, global, global])
            .saturating_add(product(&[3, locals, local, local]));
        // Trained lengths of the last layer's rows take the long way: copies of the whole layer.
        let long_way = config.head.kind == HeadKind::Official && !config.head.norm_last_layer;
        let last_layer = specs
            .iter()
            .filter(|spec| spec.name.starts_with("head.last_layer"));
        let copies: usize = match long_way {
            true => {
                6 * last_layer
                    .map(|spec| spec.shape.elem_count())
                    .sum::<usize>()
            }
            false => 0,
        };
        // One at work, one on its way from the loader and one from host to device.
        let ahead = match config.data.workers {
            0 => 1,
            workers => config.data.prefetch_batches.max(workers),
        };
        let batches = ahead
            .saturating_add(config.train.accumulate)
            .saturating_add(2);

        Ok(Self {
            program: 40 << 20,
            weights: 2 * FLOAT * numbers(false),
            optimizer: moments * FLOAT * numbers(true),
            gradients: FLOAT * numbers(true),
            activations,
            outputs: product(&[FLOAT, rows, config.head.out_dim])
                .saturating_add(product(&[FLOAT, copies])),
            crops: product(&[FLOAT, pixels, batches]),
            cache: usize::try_from(config.data.cache_mib.saturating_mul(1 << 20))
                .unwrap_or(usize::MAX),
        })
    }

    /// The peak: all of it together.
    pub fn total(&self) -> usize {
        let parts = self.parts().into_iter();
        parts.fold(0, |sum, (_, bytes)| sum.saturating_add(bytes))
    }

    /// Every part in words, in the order of the fields.
    pub fn parts(&self) -> [(&'static str, usize); 8] {
        [
            ("the program and its threads", self.program),
            ("weights of student and teacher", self.weights),
            ("optimizer", self.optimizer),
            ("gradients", self.gradients),
            ("activations of one part of a batch", self.activations),
            ("outputs over the prototypes", self.outputs),
            ("batches of crops", self.crops),
            ("kept pictures (data.cache_mib)", self.cache),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_number_holds_are_too_large() {
        let mut config = RunConfig::default();
        config.train.batch_size = usize::MAX / 2;
        config.augment.local_crops = usize::MAX / 3;
        config.augment.global_size = 16_384;
        config.data.prefetch_batches = usize::MAX;
        let estimate = MemoryEstimate::of(&config).unwrap();
        assert_eq!(estimate.crops, usize::MAX);
        assert_eq!(estimate.total(), usize::MAX);
    }
}
