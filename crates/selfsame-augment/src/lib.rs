//! A decoded image and a seed become normalised crops, as DINO's multi-crop wants them.
//! Every operation gives the same bytes as Pillow and torchvision, and every
//! random number is a pure function of (run seed, epoch, sample, view).
//!
//! ```
//! use selfsame_augment::{AugmentConfig, MultiCrop, SampleKey};
//!
//! let config = AugmentConfig { local_size: 64, local_crops: 4, ..AugmentConfig::default() };
//! let multi_crop = MultiCrop::new(config)?;
//! let image = image::RgbImage::from_fn(200, 150, |x, y| image::Rgb([x as u8, y as u8, 90]));
//! let key = SampleKey { run_seed: 42, epoch: 0, sample: 7 };
//!
//! let views = multi_crop.crops(&image, key); // global 1, global 2, local 1, …
//! assert_eq!(views.len(), 6);
//! assert_eq!(views[0].data.len(), 3 * 128 * 128);
//! assert_eq!(views, multi_crop.crops(&image, key)); // the same key, the same bits
//! # Ok::<(), selfsame_augment::AugmentError>(())
//! ```
//!
//! Drawing and applying are two steps: [`MultiCrop::draw`] gives a [`DrawnView`] per view (the crop
//! box and each operation with its values), and [`MultiCrop::apply`] carries one out.
//! The single operations stand in [`ops`].
//!
//! **What this crate does not know:** files, paths, labels, image formats, tensors, devices,
//! epochs as anything but a number in a seed, and which view goes to the student or the teacher.

mod chw;
mod compose;
mod config;
mod drawn;
mod error;
mod eval_crop;
mod multi_crop;
pub mod ops;
pub mod parallel;
mod random_resized_crop;
mod seed;
mod simd;
mod standard_crop;
mod workspace;

pub use chw::{ChwImage, Normalize};
pub use config::{AugmentConfig, IMAGENET_MEAN, IMAGENET_STD, Interpolation, ViewOp};
pub use drawn::{CropBox, DrawnOp, DrawnView};
pub use error::{AugmentError, NameError};
pub use eval_crop::EvalCrop;
/// What pictures are made of, here without any format of files: who decodes with it asks for `png` or `jpeg`.
pub use image;
pub use multi_crop::MultiCrop;
pub use random_resized_crop::random_resized_crop;
pub use seed::{SampleKey, Stream};
pub use simd::Level;
pub use standard_crop::StandardCrop;
pub use workspace::Workspace;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
