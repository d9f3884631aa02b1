//! `selfsame neighbors`

use std::path::Path;

use anyhow::Context;
use selfsame_checkpoint::write_bytes;
use selfsame_data::Limits;
use selfsame_data::decode::decode_file;
use selfsame_eval::{Features, Own, neighbors};
use selfsame_report::{Sheet, SheetCell, encode_png};
use selfsame_train::embed_picture;
use serde_json::json;

use crate::cli::Neighbors;
use crate::embedding::embed_all;
use crate::exit::{Done, extension, usage};
use crate::figures::neighbors::{found, labels, query};
use crate::overwriting::{refuse_overwriting, refuse_overwriting_pictures};
use crate::scores::print_json;
use crate::stderr::tell;
use crate::weights::Weights;
use crate::{data, device};

/// Cells of a row.
const COLUMNS: usize = 5;

pub(crate) fn run(args: &Neighbors) -> anyhow::Result<Done> {
    let flags = &args.weights;
    extension(&args.out, &["png"])?;
    let out = ("--out", args.out.as_path());
    let mut inputs = vec![
        ("--weights", Path::new(&flags.weights)),
        ("--data", Path::new(&args.data)),
    ];
    inputs.extend(args.image.as_deref().map(|path| ("--image", path)));
    refuse_overwriting(out, &inputs)?;
    if args.count == 0 {
        return Err(usage("--count 0: at least one neighbour is needed"));
    }
    device::set_threads(flags.threads)?;
    let device = device::open(&flags.device)?;
    let set = data::of_flags(&args.data, flags)?;
    refuse_overwriting_pictures(out, ("--data", set.as_ref()))?;
    let weights = Weights::open(&flags.weights, flags.which, flags.arch.as_deref(), &device)?;
    let crop = weights.eval_crop(flags)?;
    // The picture asked about, and its place in the set if it is one of it.
    let (name, notes, picture, own) = match &args.image {
        Some(path) => {
            let picture = decode_file(path, &Limits::default())
                .with_context(|| format!("{}", path.display()))?;
            let name = path.file_name().unwrap_or(path.as_os_str());
            (
                name.to_string_lossy().into_owned(),
                Vec::new(),
                picture,
                None,
            )
        }
        None => {
            let index = args.index.unwrap_or(0);
            if index >= set.len() {
                let n = set.len();
                return Err(usage(format!(
                    "--index {index}: {} has {n} pictures",
                    args.data
                )));
            }
            let name = set.name(index).to_owned();
            let picture = set.decode(index).with_context(|| name.clone())?;
            (name, labels(&set, index), picture, Some(index))
        }
    };
    let samples: Vec<usize> = (0..set.len()).filter(|i| Some(*i) != own).collect();
    if samples.is_empty() {
        return Err(usage(format!(
            "--data {}: there is no picture beside the one asked about",
            args.data
        )));
    }
    let bank = embed_all(&set, &args.data, &samples, &weights, flags, &device)?;
    let asked = embed_picture(weights.extractor(), &crop.apply(&picture), &device)?;
    let asked = Features::new(1, asked.len(), asked)?;
    let nearest = neighbors(&bank.features, &asked, args.count, Own::Keep)?;
    let (rows, similarities) = nearest.row(0);
    let nearest: Vec<(usize, f32)> = rows
        .iter()
        .zip(similarities)
        .map(|(row, similarity)| (bank.samples[*row as usize], *similarity))
        .collect();
    let mut cells = vec![query(&name, notes, &picture, &crop)];
    cells.extend(found(&set, &crop, &nearest)?);
    let rows = cells.chunks(COLUMNS).map(<[SheetCell]>::to_vec).collect();
    let heading = format!(
        "Nearest of {} pictures: {}",
        bank.samples.len(),
        weights.describe()
    );
    write_bytes(&args.out, &encode_png(&Sheet { heading, rows }.draw())?)?;
    tell!("wrote {}", args.out.display());
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
            "of": name,
            "n": bank.samples.len(),
            "skipped": samples.len() - bank.samples.len(),
            "weights": weights.describe(),
            "out": args.out,
        }));
    }
    Ok(Done::Well)
}
