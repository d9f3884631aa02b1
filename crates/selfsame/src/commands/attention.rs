//! `selfsame attention`

use std::path::Path;

use anyhow::Context;
use candle_core::Device;
use image::RgbImage;
use selfsame_checkpoint::write_bytes;
use selfsame_report::{CellMap, Sheet, SheetCell, encode_png};
use selfsame_train::{CellMaps, MapKind, cell_side};
use serde_json::json;

use crate::cli::{Attention, WeightsArgs, Which};
use crate::device;
use crate::exit::{Done, usage};
use crate::figures::attention::{Prepared, SIDE, heads, key, nothing_to_show};
use crate::figures::grown::Grown;
use crate::figures::pictures::{Chosen, check_rows, check_sheet};
use crate::figures::{cell, remark, whose};
use crate::memory::{Evaluation, check_whole};
use crate::out;
use crate::overwriting::refuse_overwriting;
use crate::run_dir;
use crate::scores::print_json;
use crate::stderr::tell;
use crate::weights::{Loaded, Weights};

/// Cells of a row.
const COLUMNS: usize = 8;
/// Snapshots shown at most.
const MAX_SNAPSHOTS: usize = 6;

pub(crate) fn run(args: &Attention) -> anyhow::Result<Done> {
    let flags = &args.weights;
    out::kind(&args.out, &["png"])?;
    let out = ("--out", args.out.as_path());
    let mut inputs = vec![("--weights", Path::new(&flags.weights))];
    let pictures_of = &args.pictures;
    inputs.extend(pictures_of.image.as_deref().map(|path| ("--image", path)));
    inputs.extend(
        pictures_of
            .data
            .as_deref()
            .map(|spec| ("--data", Path::new(spec))),
    );
    refuse_overwriting(out, &inputs)?;
    if args
        .mass
        .is_some_and(|share| !(share > 0.0 && share <= 1.0))
    {
        return Err(usage("--mass: a share above 0 and up to 1, such as 0.6"));
    }
    let chosen = Chosen::open(&args.pictures, flags, out)?;
    device::set_threads(flags.threads)?;
    let device = device::open(&flags.device)?;
    let newest = Weights::open(&flags.weights, flags.which, flags.arch.as_deref(), &device)?;
    let loaded = newest.backbone()?;
    let mut columns: Vec<(String, &Loaded)> = Vec::new();
    let grown = match args.snapshots {
        true => Some(snapshots(flags, loaded, &device)?),
        false => None,
    };
    if let Some(grown) = &grown {
        for (title, weights) in &grown.before {
            columns.push((title.clone(), weights.backbone()?));
        }
        columns.push((grown.newest.clone(), loaded));
    }
    let blocks = loaded.backbone.num_blocks();
    match args.block {
        Some(_) if blocks == 0 => {
            let what = newest.describe();
            return Err(usage(format!("--block: {what} has no blocks of attention")));
        }
        Some(block) if block >= blocks => {
            let last = blocks - 1;
            return Err(usage(format!(
                "--block {block}: the backbone has {blocks} blocks, 0 to {last}"
            )));
        }
        _ => {}
    }

    let panels = match (columns.len(), loaded.model.vit_dims()) {
        (0, Some(dims)) => 2 + dims.num_heads,
        (0, None) => 2,
        (snapshots, _) => 1 + snapshots,
    };
    let rows_each = match columns.len() {
        0 => panels.div_ceil(COLUMNS),
        _ => 1,
    };
    let rows_of = |count: usize| count.saturating_mul(rows_each);
    if !args.whole {
        let across = panels.div_ceil(rows_each).max(panels.min(COLUMNS));
        check_sheet("--count", chosen.count(), rows_of, across, SIDE)?;
        evaluation(&newest, chosen.count(), flags).check(&device)?;
    }
    let mut rows: Vec<Vec<SheetCell>> = Vec::new();
    let mut told = Vec::new();
    let mut single = None;
    let patch = cell_side(loaded.backbone.as_ref());
    let misfit = |picture: &RgbImage| {
        let (w, h) = picture.dimensions();
        let tiny = args.whole && (w.min(h) as usize) < patch;
        tiny.then(|| format!("a picture of {w} × {h} is smaller than a patch of {patch}"))
    };
    chosen.each(misfit, |name, picture| {
        let prepared = prepare(args, &newest, &picture, &device);
        let (prepared, mut notes) = match args.whole {
            // Its own size may be what is wrong.
            true => prepared.with_context(|| name.clone())?,
            false => prepared?,
        };
        if !columns.is_empty() {
            let mut row = vec![cell(&name, notes, prepared.image.clone())];
            let mut seen = Vec::new();
            for (title, weights) in &columns {
                let maps = prepared.maps(weights.backbone.as_ref(), args.block, &device)?;
                let image = prepared.overlaid(&maps, maps.mean(), args.mass);
                row.push(cell(title, nothing_to_show(&maps), image));
                seen.push(json!({"weights": title, "maps": told_of(&maps, args.mass)}));
            }
            rows.push(row);
            told.push(json!({"file": name, "snapshots": seen}));
            return check_rows("--count", told.len(), &rows);
        }
        let maps = prepared.maps(loaded.backbone.as_ref(), args.block, &device)?;
        told.push(json!({"file": name, "maps": told_of(&maps, args.mass)}));
        notes.push(format!("{} × {} cells", maps.columns, maps.rows));
        if maps.rows * maps.columns == 1 {
            single = Some(prepared.size());
        }
        let cells = heads(&name, notes, &prepared, &maps, args.mass);
        rows.extend(cells.chunks(COLUMNS).map(<[SheetCell]>::to_vec));
        check_rows("--count", told.len(), &rows)
    })?;
    let heading = match (blocks.checked_sub(1), args.block) {
        (None, _) => "Norm of the last feature map".to_owned(),
        (Some(last), Some(block)) if block < last => {
            format!("Attention of the class token, block {block} of 0 to {last}")
        }
        (Some(last), _) => {
            format!("Attention of the class token, last block ({last} of 0 to {last})")
        }
    };
    let mut remarks = vec![remark(whose(&newest, flags))];
    remarks.extend(key(args.mass));
    let sheet = Sheet {
        heading,
        remarks,
        rows,
    };
    write_bytes(&args.out, &encode_png(&sheet.draw())?)?;
    if let Some([height, width]) = single {
        tell!(
            "note: at {width} x {height} pixels the network has one cell, of which there is nothing \
             to show; a larger --image-size has more"
        );
    }
    tell!(
        "wrote {}: {}",
        args.out.display(),
        chosen.told(told.len(), args.pictures.count)
    );
    if args.json {
        print_json(&json!({
            "attention": told,
            "block": args.block.or(blocks.checked_sub(1)),
            "mass": args.mass,
            "weights": newest.describe(),
            "out": args.out.to_string_lossy(),
        }));
    }
    Ok(Done::Well)
}

/// Maps as numbers, row by row, and how many cells of their mean hold the share asked for.
fn told_of(maps: &CellMaps, mass: Option<f64>) -> serde_json::Value {
    let kind = match maps.kind {
        MapKind::Attention => "attention",
        MapKind::FeatureNorm => "feature norm",
    };
    let mean = CellMap {
        columns: maps.columns,
        rows: maps.rows,
        values: maps.mean(),
    };
    let held = mass.map(|share| mean.holding(share).iter().filter(|inside| **inside).count());
    json!({
        "kind": kind,
        "rows": maps.rows,
        "columns": maps.columns,
        "mean": mean.values,
        "heads": maps.maps,
        "cells_holding_mass": held,
    })
}

/// The snapshots of the run that `--weights` names.
fn snapshots(flags: &WeightsArgs, newest: &Loaded, device: &Device) -> anyhow::Result<Grown> {
    if flags.which == Which::Student {
        return Err(usage(
            "--snapshots: they are of the teacher; leave out --which student",
        ));
    }
    let dir = Path::new(&flags.weights);
    let grown = Grown::open(dir, MAX_SNAPSHOTS, newest, |path| {
        Weights::open_at(path, flags.which, flags.arch.as_deref(), device)
    })?;
    if grown.is_none() && !run_dir::snapshots(dir, 1)?.is_empty() {
        anyhow::bail!(
            "--snapshots: not one snapshot of {} can be used",
            dir.display()
        );
    }
    grown.ok_or_else(|| {
        usage(format!(
            "--snapshots: {} has no snapshots (train.snapshot_every_epochs)",
            dir.display()
        ))
    })
}

/// What it takes to prepare pictures and to run them one by one; they are not loaded in batches.
pub(crate) fn evaluation<'a>(
    weights: &'a Weights,
    pictures: usize,
    flags: &WeightsArgs,
) -> Evaluation<'a> {
    Evaluation {
        weights,
        size: weights.image_size(flags.image_size),
        batch_size: 1,
        batch_flag: None,
        workers: 0,
        pictures,
        rows: 0,
        trains: false,
    }
}

/// A picture for the network, and what is to be said about it.
fn prepare(
    args: &Attention,
    weights: &Weights,
    picture: &RgbImage,
    device: &Device,
) -> anyhow::Result<(Prepared, Vec<String>)> {
    let loaded = weights.backbone()?;
    let patch = cell_side(loaded.backbone.as_ref());
    if args.whole {
        let size = [picture.height(), picture.width()].map(|side| side as usize);
        check_whole(loaded.backbone.as_ref(), size, device)?;
        let (prepared, note) = Prepared::whole(picture, patch, &loaded.input)
            .context("the picture is smaller than a patch")?;
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
