//! Named gradients become named updates: AdamW, SGD and LARS as PyTorch and the reference
//! implementation of DINO compute them, with gradient clipping before them.
//! All maps are ordered by parameter name, and state goes in and out under those names.
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use candle_core::{Device, Var};
//! use selfsame_optim::{ClipMode, Decayed, Grads, Optimizer, OptimizerKind};
//!
//! # fn main() -> candle_core::Result<()> {
//! let weight = Var::new(&[[3f32, -4.0]], &Device::Cpu)?;
//! let weights = BTreeMap::from([("head.weight".to_owned(), weight)]);
//! let mut optimizer = Optimizer::new(OptimizerKind::AdamW, &weights, Decayed::WeightsOnly)?;
//! for _ in 0..200 {
//!     let loss = weights["head.weight"].sqr()?.sum_all()?;
//!     let mut grads = Grads::backward(&loss, &weights)?;
//!     grads.clip(3.0, ClipMode::Global)?;
//!     optimizer.step(&weights, &grads, 0.1, 0.04)?;
//! }
//! assert!(weights["head.weight"].sqr()?.sum_all()?.to_scalar::<f32>()? < 1e-3);
//! # Ok(())
//! # }
//! ```
//!
//! # What this crate does not know
//! Layers, the loss, schedules (it is handed numbers), ranks and files.

mod adamw;
mod clip;
mod grads;
mod lr_scaling;
mod momentum;
mod optimizer;
mod param_group;
mod state;
mod whole_step;

pub use candle_core;
pub use clip::ClipMode;
pub use grads::{GradSum, Grads};
pub use lr_scaling::{LrScaling, scaled_lr};
pub use optimizer::{Optimizer, OptimizerKind};
pub use param_group::{Decayed, is_decayed};
pub use state::StateError;
pub use whole_step::WholeStep;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
