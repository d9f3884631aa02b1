//! Commands that draw.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Arg, ArgGroup, Args};

use super::{Settings, WeightsArgs};

/// Lists apart what `preview` takes because one command line serves `train` and `plan` too.
fn of_train(flag: Arg) -> Arg {
    match flag.get_id().as_str() {
        "val" | "device" | "precision" | "threads" | "max_memory" => {
            flag.help_heading("Flags of train, without effect here")
        }
        _ => flag,
    }
}

/// Lists apart what pictures taken one by one have no use for, and names weights that have a network.
fn of_batches(flag: Arg) -> Arg {
    match flag.get_id().as_str() {
        "batch_size" | "workers" => {
            flag.help_heading("Flags of other commands, without effect here")
        }
        "weights" => flag.help(
            "A run directory, a file or a folder of weights, `random:ARCH[/PATCH][@SIZE][?seed=N]` \
             or `reference:W`, as for `embed`; not `pixels`",
        ),
        _ => flag,
    }
}

/// Flags of which one must be given; an error names them all.
fn one_of(name: &'static str, flags: [&'static str; 2]) -> ArgGroup {
    ArgGroup::new(name).args(flags).required(true)
}

#[derive(Debug, Args)]
#[command(mut_args(of_train))]
pub(crate) struct Preview {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// A picture; else one of --data.
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub(crate) image: Option<PathBuf>,
    /// Which picture of --data, from 0; the crops are those of its first epoch.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "image")]
    pub(crate) index: usize,
    /// Seed of the crops; default: the configuration's.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// The PNG file: single operations above, all views of multi-crop below.
    #[arg(long, value_name = "F.png")]
    pub(crate) out: PathBuf,
}

/// One picture, or some of a data set.
#[derive(Debug, Args)]
#[command(group(one_of("picture", ["image", "data"])))]
pub(crate) struct Pictures {
    /// A picture.
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// Pictures, some of which are chosen at random: a folder, a .csv file with a column of paths, or drawn
    /// ones, synthetic:portraits?count=2000&seed=0.
    #[arg(long, value_name = "SPEC")]
    pub(crate) data: Option<String>,
    /// How many of --data.
    #[arg(long, default_value_t = 8, conflicts_with = "image")]
    pub(crate) count: usize,
    /// Seed of the choice.
    #[arg(long, default_value_t = 0, conflicts_with = "image")]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
#[command(mut_args(of_batches))]
pub(crate) struct Attention {
    #[command(flatten)]
    pub(crate) weights: WeightsArgs,
    #[command(flatten)]
    pub(crate) pictures: Pictures,
    /// Transformer block, from 0; default: the last.
    #[arg(long, value_name = "N")]
    pub(crate) block: Option<usize>,
    /// Outline the fewest patches that hold this share of the attention, e.g. 0.6.
    #[arg(long, value_name = "SHARE")]
    pub(crate) mass: Option<f64>,
    /// One column for each snapshot of a run (--weights DIR): how attention grew.
    #[arg(long)]
    pub(crate) snapshots: bool,
    /// The whole picture at its own size, cropped to whole patches, instead of the evaluation
    /// transform.
    #[arg(long, conflicts_with = "image_size")]
    pub(crate) whole: bool,
    /// The PNG file.
    #[arg(long, value_name = "F.png")]
    pub(crate) out: PathBuf,
    /// One JSON object on stdout, everything else on stderr.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a map is drawn of.
#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    #[command(flatten)]
    pub(crate) weights: WeightsArgs,
    /// Pictures: a folder, a .csv file with a column of paths, or drawn ones,
    /// synthetic:portraits?count=2000&seed=0.
    #[arg(long, value_name = "SPEC")]
    pub(crate) data: String,
    /// The label that colours the points.
    #[arg(long, value_name = "NAME")]
    pub(crate) label: Option<String>,
    /// Seed of the start.
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// F.svg, F.png, or F.csv with the coordinates.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// One JSON object on stdout, everything else on stderr.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Tsne {
    #[command(flatten)]
    pub(crate) map: MapArgs,
    /// About how many neighbours a point has.
    #[arg(long, default_value_t = 30.0)]
    pub(crate) perplexity: f64,
    /// Iterations in all.
    #[arg(long, default_value = "1000")]
    pub(crate) iterations: NonZeroUsize,
}

#[derive(Debug, Args)]
pub(crate) struct Pca {
    #[command(flatten)]
    pub(crate) map: MapArgs,
    /// The features of single patches as red, green and blue beside their pictures (a PNG file).
    #[arg(long, conflicts_with_all = ["label", "batch_size", "workers"])]
    pub(crate) patches: bool,
    /// How many pictures with --patches.
    #[arg(long, default_value_t = 8, requires = "patches")]
    pub(crate) count: usize,
}

#[derive(Debug, Args)]
#[command(group(one_of("picture", ["image", "index"])))]
pub(crate) struct Neighbors {
    #[command(flatten)]
    pub(crate) weights: WeightsArgs,
    /// Pictures to search: a folder, a .csv file with a column of paths, or drawn ones,
    /// synthetic:portraits?count=2000&seed=0.
    #[arg(long, value_name = "SPEC")]
    pub(crate) data: String,
    /// The picture whose neighbours are shown; one of --data is not its own neighbour.
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// The same, as a picture of --data, from 0; it is not its own neighbour.
    #[arg(long, value_name = "N")]
    pub(crate) index: Option<usize>,
    /// How many neighbours.
    #[arg(long, default_value_t = 9)]
    pub(crate) count: usize,
    /// The PNG file.
    #[arg(long, value_name = "F.png")]
    pub(crate) out: PathBuf,
    /// One JSON object on stdout, everything else on stderr.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Run directory; the run may be going on.
    pub(crate) run: PathBuf,
    /// The page; default: report.html in the run directory.
    #[arg(long, value_name = "F.html")]
    pub(crate) out: Option<PathBuf>,
    /// One JSON object on stdout, everything else on stderr.
    #[arg(long)]
    pub(crate) json: bool,
}
