//! The notebook's fine-tuning head: an MLP from features to class logits.

use candle_core::{D, Device, Result, Tensor};
use selfsame_kernels::relu;

use crate::init::Init;
use crate::layers::Linear;
use crate::mode::Mode;
use crate::params::{Gradients, ParamBuilder, ParamStore};
use crate::random::Stream;

/// Widths of the two hidden layers (the notebook's `FineTuneModel`).
const HIDDEN: [usize; 2] = [256, 128];

/// Share of hidden values set to 0 while training (the notebook's `nn.Dropout(0.3)`).
const DROPOUT: f64 = 0.3;

/// Linear(d, 256), ReLU, Dropout, Linear(256, 128), ReLU, Dropout, Linear(128, classes).
#[derive(Debug)]
pub struct MlpClassifier {
    layers: Vec<Linear>,
}

impl MlpClassifier {
    /// A classifier with PyTorch's default first values, drawn from the seed, and its parameters
    /// under the names of the notebook's `new_head`: `new_head.{0,3,6}.{weight,bias}`.
    ///
    /// # Errors
    /// [`candle_core::Error`] if the device is out of memory.
    pub fn new(
        in_dim: usize,
        num_classes: usize,
        seed: u64,
        device: &Device,
    ) -> Result<(Self, ParamStore)> {
        let build = |params: ParamBuilder<'_>| Self::construct(in_dim, num_classes, &params);
        let (_, specs) = ParamBuilder::declare(build)?;
        let store = ParamStore::draw(&specs, seed, device)?;
        let classifier = build(ParamBuilder::from_store(&store, Gradients::Recorded))?;
        Ok((classifier, store))
    }

    fn construct(in_dim: usize, num_classes: usize, params: &ParamBuilder<'_>) -> Result<Self> {
        let params = params.pp("new_head");
        let widths = [in_dim, HIDDEN[0], HIDDEN[1], num_classes];
        let layers = widths.windows(2).enumerate().map(|(i, pair)| {
            let init = Init::pytorch_default(pair[0]);
            Linear::new((pair[0], pair[1]), (init, init), &params.pp(3 * i))
        });
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// Class logits.
    ///
    /// # Shape
    /// `features`: `[B, d]`; the result is `[B, classes]`.
    /// # Errors
    /// [`candle_core::Error`] if the width differs.
    pub fn forward(&self, features: &Tensor, mode: &Mode) -> Result<Tensor> {
        let mut xs = features.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            xs = layer.forward(&xs)?;
            if i + 1 < self.layers.len() {
                xs = dropout(&relu(&xs)?, mode, i as u64)?;
            }
        }
        Ok(xs)
    }
}

/// Zeroes values with probability [`DROPOUT`] and scales the others, by a mask that is a pure
/// function of the draws and the layer. A row's part of it does not depend on other rows, nor on the
/// parts in which a batch is run.
fn dropout(xs: &Tensor, mode: &Mode, layer: u64) -> Result<Tensor> {
    const PURPOSE: u64 = 0x646f << 48; // "do"
    let Mode::Train(draws) = mode else {
        return Ok(xs.clone());
    };
    let mut stream = Stream::new([draws.seed, draws.step, draws.micro_batch, PURPOSE | layer]);
    let scale = (1.0 / (1.0 - DROPOUT)) as f32;
    let before = draws.first_row * xs.dim(D::Minus1)?;
    let all = (0..before + xs.elem_count()).map(|_| match stream.uniform() < DROPOUT {
        true => 0.0,
        false => scale,
    });
    let mask: Vec<f32> = all.skip(before).collect();
    xs * Tensor::from_vec(mask, xs.shape(), xs.device())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::Draws;
    use candle_core::DType;

    #[test]
    fn dropout_keeps_the_mean_and_is_off_in_evaluation() {
        let xs = Tensor::ones((100, 100), DType::F32, &Device::Cpu).unwrap();
        let draws = Draws {
            seed: 1,
            step: 2,
            micro_batch: 0,
            first_row: 0,
        };
        let dropped = dropout(&xs, &Mode::Train(draws), 0).unwrap();
        let mean = dropped.mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
        let zeros = dropped.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let share = zeros.iter().filter(|x| **x == 0.0).count() as f64 / 1e4;
        assert!((share - DROPOUT).abs() < 0.02, "{share}");
        let same = dropout(&xs, &Mode::Eval, 0).unwrap();
        assert_eq!(same.sum_all().unwrap().to_scalar::<f32>().unwrap(), 1e4);
    }

    #[test]
    fn a_row_drops_the_same_values_in_whatever_parts_a_batch_is_run() {
        let mask = |first_row, rows| {
            let draws = Draws {
                seed: 1,
                first_row,
                ..Draws::default()
            };
            let xs = Tensor::ones((rows, 7), DType::F32, &Device::Cpu).unwrap();
            let dropped = dropout(&xs, &Mode::Train(draws), 1).unwrap();
            dropped.to_vec2::<f32>().unwrap()
        };
        let (whole, parts) = (mask(0, 10), [mask(0, 4), mask(4, 6)]);
        assert_eq!(whole, parts.concat());
    }

    #[test]
    fn names_and_shapes_are_the_notebooks() {
        let (classifier, store) = MlpClassifier::new(8, 3, 0, &Device::Cpu).unwrap();
        let names: Vec<&str> = store.weights().keys().map(String::as_str).collect();
        assert_eq!(names[0], "new_head.0.bias");
        assert_eq!(names[5], "new_head.6.weight");
        let xs = Tensor::ones((5, 8), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(classifier.forward(&xs, &Mode::Eval).unwrap().dims(), [5, 3]);
    }
}
