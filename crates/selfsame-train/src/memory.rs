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
/// An estimate for training on the CPU: within 20 % of the peak that six recipes reach
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

/// Images of each resolution in a batch, and their side.
fn resolutions(config: &RunConfig) -> [(usize, usize); 2] {
    let (batch, augment) = (config.train.batch_size, &config.augment);
    let globals = (batch.saturating_mul(2), augment.global_size);
    let locals = (
        batch.saturating_mul(augment.local_crops),
        augment.local_size,
    );
    [globals, locals]
}

/// Numbers of a batch's crops.
fn pixels(config: &RunConfig) -> usize {
    let of_resolution = resolutions(config).map(|(rows, side)| product(&[3, rows, side, side]));
    of_resolution.into_iter().fold(0, usize::saturating_add)
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
        // With drop path, 2 of 17 widths of a token more are kept: gradients of scaled branches.
        let dropped = |bytes: usize| match config.model.drop_path_rate > 0.0 {
            true => bytes.saturating_add(bytes / 17 * 2),
            false => bytes,
        };
        let (mut activations, mut student_rows) = (0, 0);
        for (rows, side) in resolutions(config) {
            if rows == 0 {
                continue;
            }
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

        // The held-out pictures have one of their own.
        let caches = 1 + usize::from(!config.data.val.is_empty());
        let mib = usize::try_from(config.data.cache_mib).unwrap_or(usize::MAX);

        Ok(Self {
            program: 40 << 20,
            weights: 2 * FLOAT * numbers(false),
            optimizer: moments * FLOAT * numbers(true),
            gradients: FLOAT * numbers(true),
            activations,
            outputs: product(&[FLOAT, rows, config.head.out_dim])
                .saturating_add(product(&[FLOAT, copies])),
            crops: product(&[FLOAT, pixels(config), batches]),
            cache: product(&[caches, mib, 1 << 20]),
        })
    }

    /// The same for a ResNet on a CUDA device, through which a batch goes in one piece; `None` for
    /// other networks, whose parts suit the device. Only what lies on the device counts; the driver
    /// takes some hundred MiB more.
    ///
    /// # Errors
    /// Those of [`MemoryEstimate::of`].
    pub fn on_cuda(config: &RunConfig) -> Result<Option<Self>, TrainError> {
        if config.model.arch.is_vit() {
            return Ok(None);
        }
        let host = Self::of(config)?;
        let (student, _) = Network::outline(&config.model, &config.head)?;
        let student = student.with_precision(config.train.precision.of_products());
        let activations = resolutions(config).map(|(rows, side)| {
            let each = student.bytes_per_image_on_cuda(side, side);
            rows.saturating_mul(each)
        });
        Ok(Some(Self {
            program: 0,
            activations: activations.into_iter().fold(0, usize::saturating_add),
            // The batch at work and the next one.
            crops: product(&[FLOAT, 2, pixels(config)]),
            cache: 0,
            ..host
        }))
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
    use crate::config::Precision;
    use selfsame_models::Arch;

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

    #[test]
    fn held_out_pictures_have_a_cache_of_their_own() {
        let mut config = RunConfig::default();
        config.data.cache_mib = 100;
        let cache = |config: &RunConfig| MemoryEstimate::of(config).unwrap().cache >> 20;
        assert_eq!(cache(&config), 100);
        config.data.val = "synthetic:portraits".into();
        assert_eq!(cache(&config), 200);
    }

    /// Peaks of a run's allocations on a device, in MiB, counted by an emulated driver that runs no
    /// kernels.
    #[test]
    fn a_resnet_needs_of_a_device_what_was_counted_there() {
        for (arch, batch, precision, counted) in [
            (Arch::Resnet50, 16, Precision::Bf16, 2808),
            (Arch::Resnet50, 16, Precision::F32, 4731),
            (Arch::Resnet50, 64, Precision::Bf16, 9135),
            (Arch::Resnet50, 64, Precision::F32, 16_689),
            (Arch::Resnet18, 64, Precision::Bf16, 3153),
        ] {
            let mut config = RunConfig::default();
            config.model.arch = arch;
            config.optim.name = OptimizerKind::Sgd;
            config.head.kind = HeadKind::Official;
            config.head.out_dim = 65_536;
            config.head.norm_last_layer = true;
            config.augment.global_size = 224;
            config.augment.local_size = 96;
            config.augment.local_crops = 8;
            config.train.batch_size = batch;
            config.train.precision = precision;
            let estimate = MemoryEstimate::on_cuda(&config).unwrap().unwrap();
            let mib = (estimate.total() >> 20) as f64;
            let apart = (mib / f64::from(counted) - 1.0).abs();
            assert!(
                apart < 0.05,
                "{arch:?} {batch} {precision:?}: {mib} of {counted} MiB"
            );
        }
        let vit = RunConfig::default();
        assert!(MemoryEstimate::on_cuda(&vit).unwrap().is_none());
    }
}
