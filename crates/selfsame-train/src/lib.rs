//! The training loop of Selfsame, and what is run with a trained backbone: DINO pretraining,
//! resuming, replaying captured steps, embedding a data set, fine-tuning.
//!
//! It ties data, models, objectives, optimizer, checkpoints and evaluation together. It never
//! knows the command line, TOML, annotation formats or plots, and it never prints: an [`Observer`]
//! is told what happens.
//!
//! ```
//! use selfsame_train::{RunConfig, TrainConfig};
//!
//! let config = RunConfig {
//!     train: TrainConfig { epochs: 5, ..TrainConfig::default() },
//!     ..RunConfig::default()
//! };
//! let problems = config.check();
//! assert!(problems[0].starts_with("optim.warmup_epochs"), "10 epochs of warm-up do not fit in 5");
//! ```

mod attention;
mod capture;
mod config;
mod data_record;
mod device_batch;
mod embed;
mod error;
mod feed;
mod finetune;
mod learner;
mod linear;
mod memory;
mod metrics;
mod monitor;
mod observer;
mod pace;
mod plan;
mod replay;
mod run_files;
mod run_length;
mod scoring;
mod skips;
mod snapshot;
mod stop;
mod tensorboard;
mod trainer;
mod verdict;
mod views;

pub use attention::{CellMaps, MapKind, attention, cell_side, patch_features};
pub use capture::{BadFigure, Capture, CaptureInfo, write_capture, write_state};
pub use config::{
    ClipMode, DataConfig, LrScaling, NonFinite, ObjectiveConfig, OptimConfig, OptimizerKind,
    Precision, RunConfig, TrainConfig, WeightDecayUpdate,
};
pub use device_batch::{DeviceBatch, Uploader, upload_eval};
pub use embed::{
    EVAL_BATCH, EmbedOptions, Embedded, Embedder, Extractor, each_once, embed_picture,
};
pub use error::{TrainError, lacks_device_memory};
pub use finetune::{FinetuneConfig, FinetuneEvent, Finetuning, LabelledSamples, Predictions};
pub use learner::{Learner, Pending, StepFigures};
pub use linear::{LinearScores, classes_of, official_linear};
pub use memory::MemoryEstimate;
pub use metrics::{EvalLine, MetricsFile, MetricsLine, StepLine, ViewsLine, read_metrics};
pub use monitor::{MAX_SCORED, Monitor};
pub use observer::{Observer, Progress, RunFacts};
pub use plan::{Plan, Trial, shrink_them};
pub use replay::{ReplayLine, replay};
pub use run_files::{CAPTURES, METRICS_FILE, PICTURES_FILE, SKIPPED_FILE, SNAPSHOTS, capture_dir};
pub use run_length::RunLength;
pub use snapshot::{backbone_tensors, weights_metadata};
pub use stop::StopFlag;
pub use tensorboard::{EventFile, Scalar, read_events, scalars};
pub use trainer::{Init, Outcome, Run, train};
pub use verdict::{Judgement, Verdict, Watch, judge, judge_run, verdict};
pub use views::{ViewScore, ViewScorer};

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
