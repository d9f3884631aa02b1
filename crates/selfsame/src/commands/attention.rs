//! `selfsame attention`

use std::path::Path;

use anyhow::Context;
use candle_core::Device;
use image::RgbImage;
use selfsame_checkpoint::write_bytes;
use selfsame_data::Limits;
use selfsame_data::decode::decode_file;
use selfsame_eval::choose;
use selfsame_report::{Sheet, SheetCell, encode_png};

use crate::cli::{Attention, Pictures, WeightsArgs};
use crate::exit::{Done, usage};
use crate::figures::attention::{Prepared, heads};
use crate::figures::cell;
use crate::weights::Weights;
use crate::{data, device, run_dir};

/// Cells of a row.
const COLUMNS: usize = 8;
/// Snapshots shown at most.
const MAX_SNAPSHOTS: usize = 6;

pub(crate) fn run(args: &Attention) -> anyhow::Result<Done> {
    let flags = &args.weights;
    if args
        .mass
        .is_some_and(|share| !(share > 0.0 && share <= 1.0))
    {
        return Err(usage("--mass: a share above 0 and up to 1, such as 0.6"));
    }
    device::set_threads(flags.threads)?;
    let device = device::open(&flags.device)?;
    let mut columns = vec![(String::new(), open(&flags.weights, flags, &device)?)];
    if args.snapshots {
        let dir = Path::new(&flags.weights);
        let files = run_dir::snapshots(dir, MAX_SNAPSHOTS)?;
        if files.is_empty() {
            return Err(usage(format!(
                "--snapshots: {} has no snapshots (train.snapshot_every_epochs)",
                dir.display()
            )));
        }
        let mut grown = Vec::new();
        for (epoch, path) in files {
            let weights = open(&path.to_string_lossy(), flags, &device)?;
            grown.push((format!("epoch {epoch}"), weights));
        }
        grown.append(&mut columns);
        columns = grown;
    }
    let newest = &columns[columns.len() - 1].1;
    let loaded = newest.backbone()?;
    let blocks = loaded.backbone.num_blocks();
    if args.block.is_some_and(|block| block >= blocks.max(1)) {
        return Err(usage(format!("--block: the backbone has {blocks}, from 0")));
    }

    let mut rows: Vec<Vec<SheetCell>> = Vec::new();
    for (name, picture) in pictures(&args.pictures, flags)? {
        let (prepared, mut notes) = prepare(args, newest, &picture)?;
        if args.snapshots {
            let mut row = vec![cell(&name, notes, prepared.image.clone())];
            for (title, weights) in &columns {
                let maps = prepared.maps(weights.backbone()?, args.block, &device)?;
                let image = prepared.overlaid(&maps, maps.mean(), args.mass);
                let title = if title.is_empty() { "newest" } else { title };
                row.push(cell(title, Vec::new(), image));
            }
            rows.push(row);
            continue;
        }
        let maps = prepared.maps(loaded, args.block, &device)?;
        notes.push(format!("{} × {} cells", maps.columns, maps.rows));
        let cells = heads(&name, notes, &prepared, &maps, args.mass);
        rows.extend(cells.chunks(COLUMNS).map(<[SheetCell]>::to_vec));
    }
    let what = match (blocks, args.block) {
        (0, _) => "Norm of the last feature map".to_owned(),
        (n, block) => format!(
            "Attention of the class token, block {}",
            block.unwrap_or(n - 1)
        ),
    };
    let heading = format!("{what}: {}", newest.describe());
    let png = encode_png(&Sheet { heading, rows }.draw())?;
    write_bytes(&args.out, &png)?;
    eprintln!("wrote {}", args.out.display());
    Ok(Done::Well)
}

fn open(spec: &str, flags: &WeightsArgs, device: &Device) -> anyhow::Result<Weights> {
    Weights::open(spec, flags.which, flags.arch.as_deref(), device)
}

/// A picture for the network, and what is to be said about it.
fn prepare(
    args: &Attention,
    weights: &Weights,
    picture: &RgbImage,
) -> anyhow::Result<(Prepared, Vec<String>)> {
    let loaded = weights.backbone()?;
    let patch = match loaded.backbone.patch_size() {
        0 => 32,
        patch => patch,
    };
    if args.whole {
        let (prepared, note) =
            Prepared::whole(picture, patch, &loaded.input).with_context(|| {
                let (w, h) = picture.dimensions();
                format!("a picture of {w} × {h} is smaller than a patch of {patch}")
            })?;
        return Ok((prepared, note.into_iter().collect()));
    }
    let asked = weights.image_size(args.weights.image_size);
    let size = (asked / patch).max(1) * patch;
    let flags = WeightsArgs {
        image_size: Some(size),
        ..args.weights.clone()
    };
    let mut crop = weights.eval_crop(&flags)?;
    let mut notes = Vec::new();
    if size != asked {
        // Cropped as asked for, not made smaller: the same scale with a narrower view.
        crop.resize_ratio *= asked as f64 / size as f64;
        notes.push(format!("cropped from {asked} to {size} pixels"));
    }
    Ok((Prepared::evaluated(picture, &crop), notes))
}

/// The pictures asked for, with their names.
pub(crate) fn pictures(
    args: &Pictures,
    flags: &WeightsArgs,
) -> anyhow::Result<Vec<(String, RgbImage)>> {
    if let Some(path) = &args.image {
        let picture =
            decode_file(path, &Limits::default()).with_context(|| format!("{}", path.display()))?;
        let name = path.file_name().unwrap_or(path.as_os_str());
        return Ok(vec![(name.to_string_lossy().into_owned(), picture)]);
    }
    let spec = args.data.as_deref().unwrap_or_default();
    let set = data::of_flags(spec, flags)?;
    let mut found = Vec::new();
    for sample in choose(set.len(), set.len(), args.seed) {
        if found.len() == args.count {
            break;
        }
        match set.decode(sample) {
            Ok(picture) => found.push((set.name(sample).to_owned(), picture)),
            Err(error) => eprintln!("left out: {}: {error}", set.name(sample)),
        }
    }
    anyhow::ensure!(!found.is_empty(), "{spec}: not one picture could be used");
    Ok(found)
}
