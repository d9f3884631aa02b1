//! `selfsame neighbors`

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use selfsame_checkpoint::write_bytes;
use selfsame_data::{Dataset, repeated};
use selfsame_eval::{Features, Own, neighbors};
use selfsame_report::{Sheet, SheetCell, encode_png};
use selfsame_train::embed_picture;
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
    out::kind(&args.out, &["png"])?;
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
    if let Some(path) = &args.image {
        check_image(path)?;
    }
    device::set_threads(flags.threads)?;
    let device = device::open(&flags.device)?;
    let set = data::of_flags(&args.data, flags)?;
    refuse_overwriting_pictures(out, ("--data", set.as_ref()))?;
    // The picture asked about, and its places in the set if it is one of it.
    let (name, notes, picture, own) = match &args.image {
        Some(path) => {
            let (name, picture) = of_image(path, &flags.reading.limits())?;
            let own = places(path, set.as_ref());
            let notes = own.first().map(|i| labels(&set, *i)).unwrap_or_default();
            (name, notes, picture, own)
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
            (name, labels(&set, index), picture, vec![index])
        }
    };
    if let (Some(path), Some(index)) = (&args.image, own.first()) {
        tell!(
            "note: --image {} is picture {index} of --data and no neighbour of its own",
            path.display()
        );
    }
    // What is listed again would be found twice, and a copy of the picture itself before all others.
    let in_turn = own.iter().copied().chain(0..set.len());
    let again: BTreeSet<usize> = repeated(set.as_ref(), in_turn).into_iter().collect();
    let samples: Vec<usize> = (0..set.len())
        .filter(|i| !own.contains(i) && !again.contains(i))
        .collect();
    let copies = set.len() - samples.len() - own.len();
    if copies > 0 {
        tell!(
            "--data {}: {copies} pictures are listed before; each counts once",
            args.data
        );
    }
    if samples.is_empty() {
        return Err(usage(format!(
            "--data {}: there is no picture beside the one asked about",
            args.data
        )));
    }
    let shown = args.count.min(samples.len());
    let rows = |count: usize| (count + 1).div_ceil(COLUMNS);
    check_sheet("--count", shown, rows, COLUMNS, SIDE)?;
    let weights = Weights::open(&flags.weights, flags.which, flags.arch.as_deref(), &device)?;
    let crop = weights.eval_crop(flags)?;
    let bank = embed_all(&set, &args.data, &samples, &weights, flags, &device)?;
    let asked = embed_picture(weights.extractor(), &crop.apply(&picture), &device)?;
    let asked = Features::new(1, asked.len(), asked)?;
    let nearest = neighbors(&bank.features, &asked, shown, Own::Keep)?;
    let (rows, similarities) = nearest.row(0);
    let nearest: Vec<(usize, f32)> = rows
        .iter()
        .zip(similarities)
        .map(|(row, similarity)| (bank.samples[*row as usize], *similarity))
        .collect();
    let mut cells = vec![query(&name, notes, &picture, &crop)];
    cells.extend(found(&set, &crop, &nearest)?);
    let rows = cells.chunks(COLUMNS).map(<[SheetCell]>::to_vec).collect();
    let heading = format!("Nearest of {} pictures", bank.samples.len());
    let remarks = vec![
        remark(format!("to {name}, by cosine distance of features")),
        remark(whose(&weights, flags)),
    ];
    let sheet = Sheet {
        heading,
        remarks,
        rows,
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
            "of": name,
            "index": own.first(),
            "n": bank.samples.len(),
            "skipped": samples.len() - bank.samples.len(),
            "weights": weights.describe(),
            "out": args.out.to_string_lossy(),
        }));
    }
    Ok(Done::Well)
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
