//! What DINO optimises, and how the numbers around it move: the loss (Eq. 1-3 of Caron et al.
//! 2021, arXiv 2104.14294), the centre (Eq. 4), the momentum teacher and the schedules.
//! Beside them stand the figures that tell learning from collapse.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use selfsame_objectives::{Center, dino_loss, teacher_entropy};
//!
//! # fn main() -> candle_core::Result<()> {
//! let device = Device::Cpu;
//! // One image, two global and one local view, four prototypes; rows are view-major.
//! let student_logits = Tensor::zeros((3, 4), candle_core::DType::F32, &device)?;
//! let teacher_logits = Tensor::zeros((2, 4), candle_core::DType::F32, &device)?;
//! let mut center = Center::new(4, 0.9, &device)?;
//!
//! let dino = dino_loss(&student_logits, &teacher_logits, center.tensor(), 3, 0.1, 0.04)?;
//! center.update(&teacher_logits.mean_keepdim(0)?)?;
//!
//! // Student and teacher are uniform: the loss is ln 4, and nothing is left to learn.
//! assert!((dino.loss.to_scalar::<f32>()? - 4f32.ln()).abs() < 1e-6);
//! let floor = teacher_entropy(&dino.teacher_probs)?.to_scalar::<f32>()?;
//! assert!((floor - 4f32.ln()).abs() < 1e-6);
//! # Ok(())
//! # }
//! ```
//!
//! # What this crate does not know
//! Networks, optimizers, ranks (the centre takes a mean that somebody else averaged), files and
//! the command line.

mod center;
pub mod collapse;
mod dino_loss;
mod momentum_teacher;
pub mod schedule;

pub use candle_core;
pub use center::Center;
pub use dino_loss::{DinoLoss, dino_loss, dino_loss_part, teacher_entropy, teacher_probs};
pub use momentum_teacher::update_teacher;
pub use schedule::{Now, ScheduleConfig, ScheduleError, Schedules, WeightDecayUpdate};

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
