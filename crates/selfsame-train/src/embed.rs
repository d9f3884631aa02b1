//! A data set through a frozen backbone: features, labels, names.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use selfsame_data::augment::ChwImage;
use selfsame_data::{Dataset, EvalLoader, EvalTransform, Ledger};
use selfsame_eval::{Features, choose};
use selfsame_models::{Backbone, Mode};

use crate::device_batch::{upload_eval, upload_picture};
use crate::error::TrainError;
use crate::stop::StopFlag;

/// What turns evaluation images into features.
#[derive(Clone, Copy)]
pub enum Extractor<'a> {
    /// A backbone's output, `[B, D]`.
    Backbone(&'a dyn Backbone),
    /// Class tokens of the last four blocks (of all, if there are fewer), concatenated, as the
    /// official linear protocol for ViT-S (eval_linear.py, `--n_last_blocks 4`); a ResNet's
    /// pooled output.
    LastFourClassTokens(&'a dyn Backbone),
    /// Class token and mean of the patches of the last block, concatenated, as the official linear
    /// protocol for ViT-B (eval_linear.py, `--n_last_blocks 1 --avgpool_patchtokens true`); a
    /// ResNet's pooled output twice.
    ClassTokenAndMean(&'a dyn Backbone),
    /// The pixels themselves: the baseline that learned features must beat.
    Pixels,
}

impl std::fmt::Debug for Extractor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Backbone(_) => "Backbone",
            Self::LastFourClassTokens(_) => "LastFourClassTokens",
            Self::ClassTokenAndMean(_) => "ClassTokenAndMean",
            Self::Pixels => "Pixels",
        })
    }
}

impl Extractor<'_> {
    /// How many outputs of the backbone stand side by side in a row of features.
    pub fn parts(&self) -> usize {
        match self {
            Self::Backbone(_) | Self::Pixels => 1,
            Self::LastFourClassTokens(backbone) => backbone.num_blocks().clamp(1, 4),
            Self::ClassTokenAndMean(_) => 2,
        }
    }

    fn extract(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Backbone(backbone) => backbone.forward(images, &Mode::Eval),
            Self::LastFourClassTokens(backbone) => {
                let layers =
                    backbone.intermediate_layers(images, backbone.num_blocks().clamp(1, 4))?;
                let tokens: Vec<&Tensor> = layers.iter().map(|(cls, _)| cls).collect();
                Tensor::cat(&tokens, 1)
            }
            Self::ClassTokenAndMean(backbone) => {
                let layers = backbone.intermediate_layers(images, 1)?;
                let (class, patches) = &layers[0];
                Tensor::cat(&[class, &patches.mean(1)?], 1)
            }
            Self::Pixels => images.flatten_from(1),
        }
    }
}

/// Images per forward pass where nothing else is asked for.
pub const EVAL_BATCH: usize = 64;

/// Settings of an [`Embedder`].
#[derive(Clone, Debug)]
pub struct EmbedOptions {
    /// Images per forward pass.
    pub batch_size: usize,
    /// Loader threads.
    pub workers: usize,
    /// Crop and normalisation.
    pub transform: EvalTransform,
}

/// Features in the order of the samples asked for, less those that could not be decoded.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// Indices into the data set, a row of features each.
    pub samples: Vec<usize>,
    /// `[N, D]`.
    pub features: Features,
}

/// What turns samples of data sets into features.
#[derive(Clone, Debug)]
pub struct Embedder<'a> {
    /// The network and which of its outputs, or the pixels.
    pub extractor: Extractor<'a>,
    /// Batches and crop.
    pub options: EmbedOptions,
    /// Where the network is.
    pub device: &'a Device,
    /// Takes what cannot be used.
    pub ledger: Arc<Ledger>,
}

impl Embedder<'_> {
    /// Features of `samples` of `dataset`. Unusable files go to the ledger and are left out;
    /// `progress` is told how many samples are done.
    ///
    /// # Errors
    /// [`TrainError::Unusable`] if there are samples and none can be decoded, [`TrainError::Data`]
    /// from the loader, [`TrainError::Tensor`] from the network.
    pub fn embed(
        &self,
        dataset: &Arc<dyn Dataset>,
        samples: &[usize],
        progress: impl FnMut(usize),
    ) -> Result<Embedded, TrainError> {
        let done = self.embed_unless(&StopFlag::default(), dataset, samples, progress)?;
        Ok(done.expect("nobody asks it to stop"))
    }

    /// [`embed`](Self::embed), given up with `None` before the next batch once a stop is
    /// requested.
    pub(crate) fn embed_unless(
        &self,
        stop: &StopFlag,
        dataset: &Arc<dyn Dataset>,
        samples: &[usize],
        mut progress: impl FnMut(usize),
    ) -> Result<Option<Embedded>, TrainError> {
        let loader = EvalLoader {
            dataset: dataset.clone(),
            transform: self.options.transform.clone(),
            batch_size: self.options.batch_size,
            workers: self.options.workers,
            ledger: self.ledger.clone(),
        };
        let mut done = Vec::with_capacity(samples.len());
        let mut data = Vec::new();
        let mut d = 0;
        for batch in loader.batches(samples.to_vec())? {
            if stop.requested().is_some() {
                return Ok(None);
            }
            let batch = batch?;
            let rows = self.extractor.extract(&upload_eval(&batch, self.device)?)?;
            d = rows.dims2()?.1;
            data.extend(rows.flatten_all()?.to_vec1::<f32>()?);
            done.extend(batch.samples);
            progress(done.len());
        }
        if done.is_empty() && !samples.is_empty() {
            let (dataset, ledger) = (dataset.as_ref(), &self.ledger);
            return Err(TrainError::unusable(
                "pictures", 0, dataset, samples, ledger,
            ));
        }
        Ok(Some(Embedded {
            features: Features {
                n: done.len(),
                d,
                data,
            },
            samples: done,
        }))
    }
}

/// At most so many samples, drawn from all and in their order, without pictures that are listed again,
/// and how many those were.
pub fn each_once(dataset: &dyn Dataset, most: usize) -> (Vec<usize>, usize) {
    let mut samples = choose(dataset.len(), most, 0);
    samples.sort_unstable();
    let again = selfsame_data::repeated(dataset, samples.iter().copied());
    samples.retain(|sample| again.binary_search(sample).is_err());
    (samples, again.len())
}

/// Features of one prepared picture.
///
/// # Errors
/// [`TrainError::Tensor`] from the network.
pub fn embed_picture(
    extractor: Extractor<'_>,
    picture: &ChwImage,
    device: &Device,
) -> Result<Vec<f32>, TrainError> {
    let picture = upload_picture(&picture.data, [picture.size; 2], device)?;
    Ok(extractor.extract(&picture)?.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use selfsame_models::{Arch, ModelConfig, build_backbone, draw_backbone};

    use super::*;

    #[test]
    fn the_probe_of_a_large_network_takes_class_token_and_mean_of_patches() {
        let model = ModelConfig {
            arch: Arch::VitTiny,
            embed_dim: 32,
            num_heads: 1,
            depth: 2,
            patch_size: 8,
            image_size: 16,
            ..ModelConfig::default()
        };
        let params = draw_backbone(&model, 0, &Device::Cpu).unwrap();
        let backbone = build_backbone(&model, &params).unwrap();
        let backbone = backbone.as_ref();
        let values = (0..2 * 3 * 16 * 16).map(|i| (i % 23) as f32 / 23.0);
        let images = Tensor::from_iter(values, &Device::Cpu).unwrap();
        let images = images.reshape((2, 3, 16, 16)).unwrap();
        let rows = |extractor: Extractor<'_>| -> Vec<Vec<f32>> {
            extractor.extract(&images).unwrap().to_vec2().unwrap()
        };
        let (both, class) = (
            rows(Extractor::ClassTokenAndMean(backbone)),
            rows(Extractor::Backbone(backbone)),
        );
        let (_, patches) = &backbone.intermediate_layers(&images, 1).unwrap()[0];
        let patches: Vec<Vec<Vec<f32>>> = patches.to_vec3().unwrap();
        for ((both, class), patches) in both.iter().zip(&class).zip(&patches) {
            assert_eq!((both.len(), patches.len()), (64, 4));
            for i in 0..32 {
                let mean = patches.iter().map(|patch| patch[i]).sum::<f32>() / 4.0;
                assert!((both[i] - class[i]).abs() < 1e-5);
                assert!((both[32 + i] - mean).abs() < 1e-5);
            }
        }
    }
}
