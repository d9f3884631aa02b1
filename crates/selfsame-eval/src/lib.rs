//! What image features are worth: nearest neighbours, linear classifiers, regressions and the figures they are judged by.
//! Everything here is host mathematics on a matrix of features and a list of labels, with the same bits for any number
//! of threads.
//!
//! ```
//! use selfsame_eval::{Features, KnnConfig, LabelEncoder, knn, metrics};
//!
//! # fn main() -> Result<(), selfsame_eval::EvalError> {
//! let bank = Features::new(4, 2, vec![1.0, 0.1, 1.0, 0.0, 0.0, 1.0, 0.1, 1.0])?;
//! let texts = ["m", "m", "f", "f"];
//! let encoder = LabelEncoder::fit(texts); // f = 0, m = 1
//! let labels: Vec<usize> = texts.iter().filter_map(|text| encoder.encode(text)).collect();
//!
//! let queries = Features::new(2, 2, vec![0.9, 0.2, -0.1, 0.8])?;
//! let answers = knn(&bank, &labels, &queries, &KnnConfig { ks: vec![1, 200], ..KnnConfig::default() })?;
//! assert_eq!(answers[0].predictions, [1, 0]);
//! assert_eq!(answers[1].k_used, 4); // the bank holds no more
//! println!("{:.0} % right", 100.0 * metrics::accuracy(&[1, 0], &answers[0].predictions)?);
//! # Ok(()) }
//! ```
//!
//! It does not know files, images, networks, plots, or the state of a training run: whoever calls it brings features.

mod effective_rank;
mod error;
mod features;
mod knn;
mod labels;
mod lbfgs;
pub mod linear_probe;
pub mod logistic;
mod matrix;
pub mod metrics;
mod neighbors;
mod pca;
mod random;
pub mod ridge;
mod tsne;
mod view_auc;

/// What multiplies matrices; [`EvalError::Tensor`] holds its error.
pub use candle_core;
pub use effective_rank::effective_rank;
pub use error::EvalError;
pub use features::Features;
pub use knn::{KnnAnswers, KnnConfig, Vote, knn, knn_ranked, knn_regress};
pub use labels::{LabelEncoder, number};
pub use neighbors::{Neighbors, Own, neighbors};
pub use pca::Pca;
pub use random::choose;
pub use tsne::{Tsne, TsneConfig, tsne};
pub use view_auc::view_auc;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
