//! The command line. Every flag is a contract with scripts; add, do not change.

mod looking;
mod reading;
mod size;
mod unknown;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Arg, Args, Parser, Subcommand, ValueEnum};

pub(crate) use looking::{Attention, MapArgs, Neighbors, Pca, Pictures, Preview, Report, Tsne};
use reading::Reading;
use size::memory_size;
pub(crate) use unknown::with_key;

/// Self-supervised pretraining of image backbones on your own pictures (DINO).
#[derive(Debug, Parser)]
#[command(name = "selfsame", version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train, evaluate and export on drawn portraits, in about a minute on two cores.
    Demo(Demo),
    /// Pretrain a backbone without labels.
    Train(Train),
    /// Continue a run from its newest good checkpoint.
    Resume(Resume),
    /// Say what a run would be: steps, memory, time, warnings. Trains nothing.
    Plan(Plan),
    /// Show the resolved configuration as TOML, each value with where it came from.
    Config(Config),
    /// Write the features of every picture of a data set.
    Embed(Embed),
    /// Score features by k nearest neighbours.
    Knn(Knn),
    /// Score features by a linear classifier.
    Linear(Linear),
    /// Train a classifier on a pretrained backbone.
    Finetune(Finetune),
    /// Write which class each picture is of, by a fine-tuned classifier.
    Predict(Predict),
    /// Draw what the augmentation makes of a picture.
    Preview(Preview),
    /// Draw where a backbone looks.
    Attention(Attention),
    /// Draw a map in which pictures with similar features are near (t-SNE).
    Tsne(Tsne),
    /// Draw features along their principal components.
    Pca(Pca),
    /// Show the pictures whose features are nearest to a given one's.
    Neighbors(Neighbors),
    /// Write one page about a run: verdict, curves, scores, maps, attention.
    Report(Report),
    /// Decode every file and list what cannot be used.
    CheckData(CheckData),
    /// Write copies of pictures that are no larger than training needs.
    Shrink(Shrink),
    /// Write weights for other programs.
    Export(Export),
    /// Say what a weights file is: layout, architecture, every name and shape.
    Inspect(Inspect),
    /// Run captured steps again and write what they gave.
    Replay(Replay),
}

/// A name of which none has capitals.
fn lower_case(name: &str) -> Result<String, std::convert::Infallible> {
    Ok(name.to_lowercase())
}

// Said of flags that several commands take.
const RESUME: &str = "Continue if the run directory holds a run already";
const ACCEPT_DATA_CHANGE: &str =
    "With --resume: go on although the pictures are not those that the run began with";
const CAPTURE_STEP: &str = "Save this step, so that it can be replayed";
const OF_TRAIN: &str = "Flags of train, without effect here";
const NO_REPORT: &str = "Do not write report.html at the end";
const PLAN_ENDS: &str = "A run that does not fit into memory or on the disk ends this with 1; `train` \
                         refuses it with 2.";

/// Names the weights of commands that need a network which is ours.
fn of_own_network(flag: Arg) -> Arg {
    match flag.get_id().as_str() {
        "weights" => flag.help(
            "A run directory, a file or a folder of weights, or `random:ARCH[/PATCH][@SIZE]\
             [?seed=N]`, as for `embed`; not `pixels`, not `reference:W`",
        ),
        _ => flag,
    }
}

/// Names the weights of `predict`.
fn of_finetuning(flag: Arg) -> Arg {
    match flag.get_id().as_str() {
        "weights" => {
            flag.help("The folder that `finetune` made, or the finetuned.safetensors in it")
        }
        _ => flag,
    }
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Run directory; an earlier demo there goes on if it was stopped, and else is replaced.
    #[arg(long, default_value = "runs/demo")]
    pub(crate) run: PathBuf,
    /// Seed of data, weights and crops.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

/// Flags of `train` that `plan` and `config` take, so that one command line serves all three.
#[derive(Debug, Args)]
#[command(next_help_heading = OF_TRAIN)]
pub(crate) struct OnlyTrain {
    #[arg(long, help = ACCEPT_DATA_CHANGE)]
    accept_data_change: bool,
    #[arg(long, value_name = "N", help = CAPTURE_STEP)]
    capture_step: Option<u64>,
    #[arg(long, help = NO_REPORT)]
    no_report: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Config {
    #[command(flatten)]
    pub(crate) settings: Settings,
    #[arg(long = "resume", help = RESUME, help_heading = OF_TRAIN)]
    _resume: bool,
    #[command(flatten)]
    _only_train: OnlyTrain,
    /// Run directory.
    #[arg(long = "run", value_name = "DIR")]
    _run: Option<PathBuf>,
    /// Weights to start from.
    #[arg(long, value_name = "W")]
    pub(crate) init: Option<String>,
}

/// Flags that decide a configuration.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// Training pictures: a folder, a .csv file with a column of paths, or drawn ones,
    /// synthetic:portraits?count=2000&seed=0.
    #[arg(long, value_name = "SPEC")]
    pub(crate) data: Option<String>,
    /// Held-out pictures, for the k-NN score during training.
    #[arg(long, value_name = "SPEC")]
    pub(crate) val: Option<String>,
    /// A named set of values: notebook, official, official-boost, official-resnet50,
    /// no-multicrop, small, cpu, cpu-hour, gpu-minutes, demo; default: notebook.
    #[arg(long, value_name = "NAME", value_parser = lower_case)]
    pub(crate) preset: Option<String>,
    /// A TOML file that overrides the preset; `selfsame config` shows every key.
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) config: Option<PathBuf>,
    /// One value that overrides everything else, e.g. --set optim.lr=1e-3; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// auto, cpu, cuda or cuda:N; default: auto.
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// f32, bf16 or, on CUDA devices, tf32; default: f32.
    #[arg(long)]
    pub(crate) precision: Option<String>,
    /// Compute threads; default: 0, one per core.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Refuse a run that needs more memory, e.g. 8GiB; default: what the machine has.
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub(crate) max_memory: Option<u64>,
    /// How a folder is read: auto, agedb, utkface, classes, flat; default: auto.
    #[arg(long)]
    pub(crate) layout: Option<String>,
    /// Folder that the paths of a CSV resolve against.
    #[arg(long, value_name = "DIR")]
    pub(crate) images_root: Option<PathBuf>,
    /// Let a CSV name files outside its root folder.
    #[arg(long)]
    pub(crate) allow_outside: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Train {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Run directory; must be new or empty unless --resume.
    #[arg(long, value_name = "DIR")]
    pub(crate) run: PathBuf,
    /// Weights to start from.
    #[arg(long, value_name = "W")]
    pub(crate) init: Option<String>,
    #[arg(long, help = RESUME)]
    pub(crate) resume: bool,
    #[arg(long, requires = "resume", help = ACCEPT_DATA_CHANGE)]
    pub(crate) accept_data_change: bool,
    #[arg(long, value_name = "N", help = CAPTURE_STEP)]
    pub(crate) capture_step: Option<u64>,
    #[arg(long, help = NO_REPORT)]
    pub(crate) no_report: bool,
}

#[derive(Debug, Args)]
#[command(after_help = PLAN_ENDS)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Run directory of `train`: whether it can be that, and has room on its disk.
    #[arg(long, value_name = "DIR")]
    pub(crate) run: Option<PathBuf>,
    /// Weights to start from; whether they fit is told here too.
    #[arg(long, value_name = "W")]
    pub(crate) init: Option<String>,
    /// Estimate no time: no trial steps on a network that is thrown away.
    #[arg(long)]
    pub(crate) no_trial: bool,
    /// One JSON object on stdout, everything else on stderr.
    #[arg(long)]
    pub(crate) json: bool,
    #[arg(long, help = RESUME)]
    pub(crate) resume: bool,
    #[command(flatten)]
    _only_train: OnlyTrain,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// Run directory.
    pub(crate) run: PathBuf,
    #[arg(long, help = NO_REPORT)]
    pub(crate) no_report: bool,
    /// Go on although the pictures are not those that the run began with.
    #[arg(long)]
    pub(crate) accept_data_change: bool,
    /// A value to change; few may change in mid-run. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Compute threads; 0: one per core.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Refuse to go on with more memory, e.g. 8GiB; default: what the run had.
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub(crate) max_memory: Option<u64>,
}

/// Which weights, and how pictures are prepared for them.
#[derive(Clone, Debug, Args)]
pub(crate) struct WeightsArgs {
    /// A run directory, a .safetensors or .pth file (ours, timm's, Hugging Face's, official DINO's
    /// or DINOv2's), a folder of timm, Hugging Face or a fine-tuning, `pixels` or
    /// `random:ARCH[/PATCH][@SIZE][?seed=N]`; `hf:ORG/NAME[@REVISION]` in builds with the hub;
    /// `reference:W` runs W by candle-transformers.
    #[arg(long, value_name = "W")]
    pub(crate) weights: String,
    /// Which network of a run or checkpoint.
    #[arg(long, value_enum, default_value_t = Which::Teacher)]
    pub(crate) which: Which,
    /// Architecture, where neither metadata nor shapes tell it, e.g. vit_small/16; else another patch
    /// or image size for the same one.
    #[arg(long)]
    pub(crate) arch: Option<String>,
    /// Side of the evaluated crop in pixels, in `knn --against` of both sides; default: what the
    /// weights were trained at, 64 for `pixels`.
    #[arg(long, value_parser = size::pixels())]
    pub(crate) image_size: Option<usize>,
    /// Shorter side after the resize over the image size, e.g. 256/224; default: 1, in `linear
    /// --protocol official` 256/224.
    #[arg(long, value_name = "RATIO", value_parser = size::ratio)]
    pub(crate) resize: Option<f64>,
    /// bilinear or bicubic; with _pillow13 behind it the bytes of Pillow 13; default: bicubic, in
    /// `predict` that of the fine-tuning.
    #[arg(long)]
    pub(crate) interpolation: Option<String>,
    /// Images at a time, in `finetune` those of a step; default: 64, in `finetune` 32.
    #[arg(long, value_name = "N", value_parser = size::count)]
    pub(crate) batch_size: Option<NonZeroUsize>,
    /// Loader threads.
    #[arg(long, default_value_t = 2)]
    pub(crate) workers: usize,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// Compute threads; 0: one per core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    #[command(flatten)]
    pub(crate) reading: Reading,
}

impl WeightsArgs {
    /// `--batch-size`, or what the command takes without it.
    pub(crate) fn images_at_a_time(&self, default: usize) -> usize {
        self.batch_size.map_or(default, NonZeroUsize::get)
    }

    /// `--interpolation`, or what is taken without it.
    pub(crate) fn filter(&self) -> &str {
        self.interpolation.as_deref().unwrap_or("bicubic")
    }
}

/// Student or teacher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    Teacher,
    Student,
}

impl From<Which> for selfsame_models::Which {
    fn from(which: Which) -> Self {
        match which {
            Which::Teacher => Self::Teacher,
            Which::Student => Self::Student,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Embed {
    #[command(flatten)]
    pub(crate) weights: WeightsArgs,
    /// Pictures: a folder, a .csv file with a column of paths, or drawn ones,
    /// synthetic:portraits?count=2000&seed=0.
    #[arg(long, value_name = "SPEC")]
    pub(crate) data: String,
    /// F.safetensors (with the pictures' names in its metadata), F.csv (with a name in each row) or
    /// F.npy (rows alone). Rows are in the byte order of the pictures' paths, whatever the order in
    /// the .csv of --data; pictures that cannot be decoded have none.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Scale each row to length 1.
    #[arg(long)]
    pub(crate) normalize: bool,
}

#[derive(Debug, Args)]
#[command(mut_args(of_finetuning))]
pub(crate) struct Predict {
    #[command(flatten)]
    pub(crate) weights: WeightsArgs,
    /// Pictures: a folder, a .csv file with a column of paths, or drawn ones,
    /// synthetic:portraits?count=2000&seed=0.
    #[arg(long, value_name = "SPEC")]
    pub(crate) data: String,
    /// A .csv file: a picture's path, the most probable class, its probability, and that of each.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// One JSON object on stdout, everything else on stderr.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Training and test pictures with a label.
#[derive(Debug, Args)]
pub(crate) struct Labelled {
    #[command(flatten)]
    pub(crate) weights: WeightsArgs,
    /// Labelled pictures to learn from: a folder, a .csv file with a column of paths, or drawn ones,
    /// synthetic:portraits?count=2000&seed=0.
    #[arg(long, value_name = "SPEC")]
    pub(crate) train: String,
    /// Labelled pictures to test on; those of --train, however spelled: leave-one-out (knn only).
    #[arg(long, value_name = "SPEC")]
    pub(crate) test: String,
    /// The label to predict.
    #[arg(long, value_name = "NAME")]
    pub(crate) label: String,
    /// One JSON object on stdout, everything else on stderr.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Knn {
    #[command(flatten)]
    pub(crate) data: Labelled,
    /// Numbers of neighbours.
    #[arg(long, value_delimiter = ',', default_value = "10,20,100,200")]
    pub(crate) k: Vec<usize>,
    /// Temperature of the weighted vote.
    #[arg(long, default_value_t = 0.07)]
    pub(crate) temperature: f64,
    /// How neighbours are counted.
    #[arg(long, value_enum, default_value_t = VoteArg::Weighted)]
    pub(crate) vote: VoteArg,
    /// Predict a number: mean absolute error and R².
    #[arg(long)]
    pub(crate) regress: bool,
    /// Compare with a second set of weights on the same pictures (paired bootstrap); not with
    /// --regress.
    #[arg(long, value_name = "W", conflicts_with = "regress")]
    pub(crate) against: Option<String>,
}

/// How neighbours are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VoteArg {
    Weighted,
    Majority,
}

#[derive(Debug, Args)]
pub(crate) struct Linear {
    #[command(flatten)]
    pub(crate) data: Labelled,
    /// sgd: the protocol's optimizer; logistic: L-BFGS, C chosen on a held-out part.
    #[arg(long, value_enum, default_value_t = Method::Sgd)]
    pub(crate) method: Method,
    /// notebook: fixed features; official: new random crops in every epoch and the class tokens of
    /// the last four blocks, of ViT-B that of the last one and the mean of the patches.
    #[arg(long, value_enum, default_value_t = Protocol::Notebook)]
    pub(crate) protocol: Protocol,
    /// Passes over the training pictures (sgd only); default: 100.
    #[arg(long)]
    pub(crate) epochs: Option<usize>,
    /// Learning rate at the start (sgd only); default: 0.01, in `--protocol official` 0.001.
    #[arg(long)]
    pub(crate) lr: Option<f64>,
    /// Predict a number by ridge regression, alpha chosen on a held-out part: mean absolute error
    /// and R².
    #[arg(long, conflicts_with_all = ["method", "protocol", "epochs", "lr"])]
    pub(crate) regress: bool,
    /// Seed of first weights, order and crops, and of what is held out.
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
}

/// How the linear classifier is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    Sgd,
    Logistic,
}

/// Whose linear protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    Notebook,
    Official,
}

#[derive(Debug, Args)]
#[command(mut_args(of_own_network))]
pub(crate) struct Finetune {
    #[command(flatten)]
    pub(crate) data: Labelled,
    /// Folder for the result; must be new or empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) run: PathBuf,
    /// Train the head only.
    #[arg(long)]
    pub(crate) freeze: bool,
    /// Passes over the training pictures.
    #[arg(long, default_value_t = 5)]
    pub(crate) epochs: usize,
    /// Learning rate.
    #[arg(long, default_value_t = 1e-4)]
    pub(crate) lr: f64,
    /// Seed of head, order, crops and dropout.
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// Go on from the checkpoint in the folder, if there is one.
    #[arg(long)]
    pub(crate) resume: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckData {
    /// A folder, a .csv file with a column of paths, or synthetic:portraits?count=2000&seed=0.
    pub(crate) data: String,
    /// Side of the largest crop that training will take, in pixels.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) crop_size: u32,
    #[command(flatten)]
    pub(crate) reading: Reading,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Shrink {
    /// A folder, or a .csv file with a column of paths.
    pub(crate) data: String,
    /// Folder for the copies, under the names that pictures have in DATA: a new one, or one of an earlier
    /// call, which goes on.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Shorter side of a copy in pixels; smaller pictures are copied as they are.
    #[arg(long, value_name = "N", default_value = "512", value_parser = size::pixels())]
    pub(crate) side: usize,
    /// Quality of JPEG; files named .png are written as PNG.
    #[arg(long, value_name = "1-100", default_value_t = 92, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) quality: u8,
    /// Threads; 0: one per core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    #[command(flatten)]
    pub(crate) reading: Reading,
    /// One JSON object on stdout, everything else on stderr.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(mut_args(of_own_network))]
pub(crate) struct Export {
    #[arg(long, value_name = "W")]
    pub(crate) weights: String,
    /// Which network of a run.
    #[arg(long, value_enum, default_value_t = Which::Teacher)]
    pub(crate) which: Which,
    /// Layout of the result.
    #[arg(long, value_enum)]
    pub(crate) format: Format,
    /// Folder for the result.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

/// Layouts that other programs load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// `timm.create_model('local-dir:DIR', pretrained=True)`.
    Timm,
    /// `ViTModel.from_pretrained(DIR, add_pooling_layer=False)`, `ResNetModel.from_pretrained(DIR)`.
    Hf,
    /// `backbone.…` and `head.…`, the names of the official DINO code, in safetensors.
    Dino,
    /// model.onnx, opset 17, for any batch size.
    Onnx,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A run directory, a file or a folder of weights, or `random:…`, as for `embed`.
    pub(crate) weights: String,
    /// Which network of a run.
    #[arg(long, value_enum, default_value_t = Which::Teacher)]
    pub(crate) which: Which,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Folder of a capture.
    pub(crate) capture: PathBuf,
    /// Steps to run; 0: as many as there are batches for.
    #[arg(long, default_value_t = 0)]
    pub(crate) steps: u64,
    /// Where the figures go, a JSON line per step; default: stdout.
    #[arg(long, value_name = "F.jsonl")]
    pub(crate) out: Option<PathBuf>,
    /// Where the state after the last step goes.
    #[arg(long, value_name = "F.safetensors")]
    pub(crate) save: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// Compute threads; 0: one per core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
}
