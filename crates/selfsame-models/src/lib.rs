//! Pixels to features to prototype logits: vision transformers and ResNets, the two published
//! forms of the DINO head, and their parameters under the names that timm, torchvision and the
//! official DINO code use.
//! Every operation that candle lacks, or whose gradient it cuts, comes from `selfsame-kernels`.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use selfsame_models::{Arch, Draws, HeadConfig, Mode, ModelConfig, Network};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = ModelConfig {
//!     arch: Arch::VitTiny,
//!     depth: 1,
//!     patch_size: 8,
//!     image_size: 32,
//!     ..Default::default()
//! };
//! let head = HeadConfig { out_dim: 64, ..Default::default() };
//! let (student, weights) = Network::new(&model, &head, 42, &Device::Cpu)?;
//! let (teacher, _) = Network::teacher_of(&model, &head, &weights)?;
//!
//! // Two global crops of 32 pixels and three local ones of 16, four images each.
//! let global = Tensor::zeros((2 * 4, 3, 32, 32), DType::F32, &Device::Cpu)?;
//! let local = Tensor::zeros((3 * 4, 3, 16, 16), DType::F32, &Device::Cpu)?;
//! let mode = Mode::Train(Draws { seed: 42, step: 0, micro_batch: 0 , first_row: 0});
//! let student_logits = student.forward_all(&[global.clone(), local], &mode)?;
//! let teacher_logits = teacher.forward_all(&[global], &mode)?;
//! assert_eq!(student_logits.dims(), [20, 64]);
//! assert_eq!(teacher_logits.dims(), [8, 64]);
//! # Ok(())
//! # }
//! ```
//!
//! Features of somebody's weights, by any of the layouts that [`read_weights`] knows: example
//! `features`. [`candle_core`] is handed on, so that nobody has to find out its version.
//!
//! The crate does not know image files, augmentation, losses, optimizers or ranks.

mod backbone;
mod batch_stats;
mod classifier;
mod config;
mod dino_head;
mod dinov2;
mod drop_path;
mod error;
mod init;
mod input;
pub mod interop;
mod layers;
mod mode;
mod named;
mod network;
mod params;
mod patch_kernel;
pub mod pos_embed;
mod random;
#[cfg(feature = "reference")]
mod reference;
mod resnet;
mod vit;

pub use backbone::{
    Backbone, BackboneModel, backbone_specs, build_backbone, build_backbone_with, check_backbone,
    draw_backbone,
};
pub use batch_stats::BatchStats;
pub use candle_core;
pub use classifier::MlpClassifier;
pub use config::{
    Arch, HeadConfig, HeadKind, InitForm, MlpKind, ModelConfig, PosEmbedResample, VitDims,
};
pub use dino_head::DinoHead;
pub use error::{ModelError, ParseArchError, WeightMismatch};
pub use init::Init;
pub use input::InputConfig;
pub use interop::{
    Beside, Difference, INPUT_KEY, ImportedWeights, InferredModel, Layout, MODEL_KEY, Which,
    fit_patches, fit_positions, infer, infer_head, infer_model, is_pth, read_weights, to_hf,
    to_own_names,
};
pub use mode::{Draws, Mode};
pub use named::NamedArch;
pub use network::{Network, network_specs};
pub use params::{Gradients, ParamKind, ParamSpec, ParamStore};
#[cfg(feature = "reference")]
pub use reference::reference_backbone;
/// Devices and how products are computed, for programs that know models and not their kernels:
/// whoever builds a network has to check its device and can give it a [`Precision`].
pub use selfsame_kernels::{
    CropUploader, Precision, check_device, device_memory, keep_freed_memory,
};

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
