//! `selfsame neighbors`

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use image::RgbImage;
use selfsame_checkpoint::write_bytes;
use selfsame_data::{Dataset, Limits, repeated};
use selfsame_eval::{Features, Own, neighbors};
use selfsame_report::{Sheet, SheetCell, encode_png};
use selfsame_train::{Embedded, embed_picture};
use serde_json::json;

use crate::cli::Neighbors;
use crate::embedding::embed_all;
use crate::exit::{Done, usage};
use crate::figures::neighbors::{SIDE, found, labels, query};
use crate::figures::pictures::{check_image, check_sheet, of_image, told};
use crate::figures::{remark, whose};
use crate::out;
use crate::overwriting::{refuse_overwriting, refuse_overwriting_pictures};
use crate::scores::print_json;
use crate::stderr::tell;
use crate::weights::Weights;
use crate::{data, device};

/// Cells of a row.
const COLUMNS: usize = 5;

pub(crate) fn run(args: &Neighbors) -> anyhow::Result<Done> {
    let flags = &args.weights;
    check_out(args)?;
    if args.count == 0 {
        return Err(usage("--count 0: at least one neighbour is needed"));
    }
    if let Some(path) = &args.image {
        check_image(path)?;
    }
    device::set_threads(flags.threads)?;
    let device = device::open(&flags.device)?;
    let set = data::of_flags(&args.data, flags)?;
    refuse_overwriting_pictures(("--out", &args.out), ("--data", set.as_ref()))?;
    let asked = match &args.image {
        Some(path) => Asked::of_file(path, &set, &flags.reading.limits())?,
        None => Asked::of_set(args.index.unwrap_or(0), &set, &args.data)?,
    };
    let samples = others(&asked, set.as_ref(), &args.data)?;
    let count = args.count.min(samples.len());
    let rows = |count: usize| (count + 1).div_ceil(COLUMNS);
    check_sheet("--count", count, rows, COLUMNS, SIDE)?;

    let weights = Weights::open(&flags.weights, flags.which, flags.arch.as_deref(), &device)?;
    let crop = weights.eval_crop(flags)?;
    let bank = embed_all(&set, &args.data, &samples, &weights, flags, &device)?;
    let features = embed_picture(weights.extractor(), &crop.apply(&asked.picture), &device)?;
    let nearest = nearest(&bank, features, count)?;

    let mut cells = vec![query(&asked.name, asked.labels, &asked.picture, &crop)];
    cells.extend(found(&set, &crop, &nearest)?);
    let sheet = Sheet {
        heading: format!("Nearest of {} pictures", bank.samples.len()),
        remarks: vec![
            remark(format!("to {}, by cosine distance of features", asked.name)),
            remark(whose(&weights, flags)),
        ],
        rows: cells.chunks(COLUMNS).map(<[SheetCell]>::to_vec).collect(),
    };
    write_bytes(&args.out, &encode_png(&sheet.draw())?)?;
    let shown = told(nearest.len(), bank.samples.len(), args.count);
    tell!("wrote {}: {shown}", args.out.display());
    if args.json {
        let one = |(sample, similarity): &(usize, f32)| {
            json!({
                "file": set.name(*sample),
                "index": sample,
                "distance": 1.0 - f64::from(*similarity),
                "labels": set.labels(*sample),
            })
        };
        print_json(&json!({
            "neighbors": nearest.iter().map(one).collect::<Vec<_>>(),
            "of": asked.name,
            "index": asked.places.first(),
            "n": bank.samples.len(),
            "skipped": samples.len() - bank.samples.len(),
            "weights": weights.describe(),
            "out": args.out.to_string_lossy(),
        }));
    }
    Ok(Done::Well)
}

/// Refuses a result that cannot be written, or that would go over what it is made from.
fn check_out(args: &Neighbors) -> anyhow::Result<()> {
    out::kind(&args.out, &["png"])?;
    let mut inputs = vec![
        ("--weights", Path::new(&args.weights.weights)),
        ("--data", Path::new(&args.data)),
    ];
    inputs.extend(args.image.as_deref().map(|path| ("--image", path)));
    refuse_overwriting(("--out", &args.out), &inputs)
}

/// The picture asked about.
struct Asked {
    name: String,
    labels: Vec<String>,
    picture: RgbImage,
    /// Where it is in the set to search, if it is one of it.
    places: Vec<usize>,
}

impl Asked {
    /// That of `--image`; said, if it is one of the set.
    fn of_file(path: &Path, set: &Arc<dyn Dataset>, limits: &Limits) -> anyhow::Result<Self> {
        let (name, picture) = of_image(path, limits)?;
        let places = places(path, set.as_ref());
        let labels = places.first().map(|i| labels(set, *i));
        if let Some(index) = places.first() {
            tell!(
                "note: --image {} is picture {index} of --data and no neighbour of its own",
                path.display()
            );
        }
        Ok(Self {
            name,
            labels: labels.unwrap_or_default(),
            picture,
            places,
        })
    }

    /// That of `--index` in the set that `--data` names as `spec`.
    fn of_set(index: usize, set: &Arc<dyn Dataset>, spec: &str) -> anyhow::Result<Self> {
        if index >= set.len() {
            let n = set.len();
            return Err(usage(format!("--index {index}: {spec} has {n} pictures")));
        }
        let name = set.name(index).to_owned();
        Ok(Self {
            picture: set.decode(index).with_context(|| name.clone())?,
            labels: labels(set, index),
            places: vec![index],
            name,
        })
    }
}

/// The pictures to search, all but the one asked about.
///
/// What is listed again would be found twice, and a copy of the picture itself before all others.
fn others(asked: &Asked, set: &dyn Dataset, spec: &str) -> anyhow::Result<Vec<usize>> {
    let own = &asked.places;
    let in_turn = own.iter().copied().chain(0..set.len());
    let again: BTreeSet<usize> = repeated(set, in_turn).into_iter().collect();
    let samples: Vec<usize> = (0..set.len())
        .filter(|i| !own.contains(i) && !again.contains(i))
        .collect();
    let copies = set.len() - samples.len() - own.len();
    if copies > 0 {
        tell!("--data {spec}: {copies} pictures are listed before; each counts once");
    }
    if samples.is_empty() {
        return Err(usage(format!(
            "--data {spec}: there is no picture beside the one asked about"
        )));
    }
    Ok(samples)
}

/// The pictures whose features are nearest, with cosine similarities.
fn nearest(bank: &Embedded, asked: Vec<f32>, count: usize) -> anyhow::Result<Vec<(usize, f32)>> {
    let asked = Features::new(1, asked.len(), asked)?;
    let nearest = neighbors(&bank.features, &asked, count, Own::Keep)?;
    let (rows, similarities) = nearest.row(0);
    let pairs = rows.iter().zip(similarities);
    Ok(pairs
        .map(|(row, similarity)| (bank.samples[*row as usize], *similarity))
        .collect())
}

/// Where in a data set a file is, whatever path leads to it.
fn places(file: &Path, set: &dyn Dataset) -> Vec<usize> {
    let Ok(at) = file.canonicalize() else {
        return Vec::new();
    };
    let is_it = |index: &usize| {
        set.path(*index).is_some_and(|path| {
            // Asked of few: where links lead takes long for a million files.
            let may_be = path.file_name() == at.file_name() || path.is_symlink();
            may_be && path.canonicalize().is_ok_and(|path| path == at)
        })
    };
    (0..set.len()).filter(is_it).collect()
}
