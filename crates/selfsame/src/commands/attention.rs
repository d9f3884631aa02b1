//! `selfsame attention`

use std::path::Path;

use anyhow::Context;
use candle_core::Device;
use image::RgbImage;
use selfsame_checkpoint::write_bytes;
use selfsame_report::{CellMap, Sheet, SheetCell, encode_png};
use selfsame_train::{CellMaps, MapKind, cell_side};
use serde_json::{Value, json};

use crate::cli::{Attention, Pictures, WeightsArgs, Which};
use crate::device;
use crate::exit::{Done, usage};
use crate::figures::attention::{Prepared, SIDE, heads, key, nothing_to_show, too_small};
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
    check_out(args)?;
    if args
        .mass
        .is_some_and(|share| !(share > 0.0 && share <= 1.0))
    {
        return Err(usage("--mass: a share above 0 and up to 1, such as 0.6"));
    }
    let chosen = Chosen::open(&args.pictures, flags, ("--out", &args.out))?;
    device::set_threads(flags.threads)?;
    let device = device::open(&flags.device)?;
    let newest = Weights::open(&flags.weights, flags.which, flags.arch.as_deref(), &device)?;
    let grown = match args.snapshots {
        true => Some(snapshots(flags, newest.backbone()?, &device)?),
        false => None,
    };
    let panels = Panels::new(args, &newest, grown.as_ref(), &device)?;
    panels.check_block()?;
    if !args.whole {
        panels.check_room(chosen.count())?;
    }
    let mut drawn = Drawn::default();
    chosen.each(
        |picture| panels.misfit(picture),
        |name, picture| panels.draw(&name, &picture, &mut drawn),
    )?;

    let mut remarks = vec![remark(whose(&newest, flags))];
    remarks.extend(key(args.mass));
    let sheet = Sheet {
        heading: panels.heading(),
        remarks,
        rows: drawn.rows,
    };
    write_bytes(&args.out, &encode_png(&sheet.draw())?)?;
    if let Some([height, width]) = drawn.single {
        let larger = match args.whole {
            true => "picture",
            false => "--image-size",
        };
        tell!(
            "note: at {width} x {height} pixels the network has one cell, of which there is nothing \
             to show; a larger {larger} has more"
        );
    }
    tell!(
        "wrote {}: {}",
        args.out.display(),
        chosen.told(drawn.told.len(), args.pictures.count)
    );
    if args.json {
        print_json(&json!({
            "attention": drawn.told,
            "block": args.block.or(panels.last_block()),
            "mass": args.mass,
            "weights": newest.describe(),
            "out": args.out.to_string_lossy(),
        }));
    }
    Ok(Done::Well)
}

/// Refuses a result that cannot be written, or that would go over what it is made from.
fn check_out(args: &Attention) -> anyhow::Result<()> {
    out::kind(&args.out, &["png"])?;
    let Pictures { image, data, .. } = &args.pictures;
    let mut inputs = vec![("--weights", Path::new(&args.weights.weights))];
    inputs.extend(image.as_deref().map(|path| ("--image", path)));
    inputs.extend(data.as_deref().map(|spec| ("--data", Path::new(spec))));
    refuse_overwriting(("--out", &args.out), &inputs)
}

/// The sheet as it grows, a picture after the other.
#[derive(Default)]
struct Drawn {
    rows: Vec<Vec<SheetCell>>,
    /// The maps of each picture as numbers.
    told: Vec<Value>,
    /// Height and width at which the network had but one cell, if it had.
    single: Option<[usize; 2]>,
}

/// What is drawn beside each picture: a map for each head, or with `--snapshots` one for each
/// snapshot.
struct Panels<'a> {
    args: &'a Attention,
    device: &'a Device,
    newest: &'a Weights,
    loaded: &'a Loaded,
    /// Oldest first, the newest weights last, with what they are called; empty without
    /// `--snapshots`.
    snapshots: Vec<(&'a str, &'a Loaded)>,
}

impl<'a> Panels<'a> {
    fn new(
        args: &'a Attention,
        newest: &'a Weights,
        grown: Option<&'a Grown>,
        device: &'a Device,
    ) -> anyhow::Result<Self> {
        let loaded = newest.backbone()?;
        let mut snapshots = Vec::new();
        if let Some(grown) = grown {
            for (title, weights) in &grown.before {
                snapshots.push((title.as_str(), weights.backbone()?));
            }
            snapshots.push((&grown.newest, loaded));
        }
        Ok(Self {
            args,
            device,
            newest,
            loaded,
            snapshots,
        })
    }

    /// Number of the last block; `None` of a ResNet.
    fn last_block(&self) -> Option<usize> {
        self.loaded.backbone.num_blocks().checked_sub(1)
    }

    /// Refuses a `--block` that is not there.
    fn check_block(&self) -> anyhow::Result<()> {
        match (self.args.block, self.last_block()) {
            (Some(_), None) => {
                let what = self.newest.describe();
                Err(usage(format!("--block: {what} has no blocks of attention")))
            }
            (Some(block), Some(last)) if block > last => Err(usage(format!(
                "--block {block}: the backbone has {} blocks, 0 to {last}",
                last + 1
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses a sheet that few programs would show, and a network that memory does not hold.
    fn check_room(&self, pictures: usize) -> anyhow::Result<()> {
        let (rows, columns) = match self.snapshots.len() {
            0 => {
                // The picture and the mean of the heads, or the one map of a ResNet.
                let num_heads = self
                    .loaded
                    .model
                    .vit_dims()
                    .map_or(0, |dims| dims.num_heads);
                let panels = 2 + num_heads;
                (panels.div_ceil(COLUMNS), panels.min(COLUMNS))
            }
            snapshots => (1, 1 + snapshots),
        };
        let rows_of = |count: usize| count.saturating_mul(rows);
        check_sheet("--count", pictures, rows_of, columns, SIDE)?;
        evaluation(self.newest, pictures, &self.args.weights).check(self.device)
    }

    /// Why a picture cannot be shown, if it cannot.
    fn misfit(&self, picture: &RgbImage) -> Option<String> {
        match self.args.whole {
            true => too_small(picture, cell_side(self.loaded.backbone.as_ref())),
            false => None,
        }
    }

    fn draw(&self, name: &str, picture: &RgbImage, drawn: &mut Drawn) -> anyhow::Result<()> {
        let prepared = self.prepare(picture);
        let (prepared, notes) = match self.args.whole {
            // Its own size may be what is wrong.
            true => prepared.with_context(|| name.to_owned())?,
            false => prepared?,
        };
        match self.snapshots.is_empty() {
            true => self.draw_heads(name, notes, &prepared, drawn)?,
            false => self.draw_snapshots(name, notes, &prepared, drawn)?,
        }
        check_rows("--count", drawn.told.len(), &drawn.rows)
    }

    fn draw_heads(
        &self,
        name: &str,
        mut notes: Vec<String>,
        prepared: &Prepared,
        drawn: &mut Drawn,
    ) -> anyhow::Result<()> {
        let mass = self.args.mass;
        let maps = self.maps(prepared, self.loaded)?;
        drawn
            .told
            .push(json!({"file": name, "maps": told_of(&maps, mass)}));
        notes.push(format!("{} × {} cells", maps.columns, maps.rows));
        if maps.rows * maps.columns == 1 {
            drawn.single = Some(prepared.size());
        }
        let cells = heads(name, notes, prepared, &maps, mass);
        drawn
            .rows
            .extend(cells.chunks(COLUMNS).map(<[SheetCell]>::to_vec));
        Ok(())
    }

    fn draw_snapshots(
        &self,
        name: &str,
        notes: Vec<String>,
        prepared: &Prepared,
        drawn: &mut Drawn,
    ) -> anyhow::Result<()> {
        let mass = self.args.mass;
        let mut row = vec![cell(name, notes, prepared.image.clone())];
        let mut told = Vec::new();
        for (title, weights) in &self.snapshots {
            let maps = self.maps(prepared, weights)?;
            let image = prepared.overlaid(&maps, maps.mean(), mass);
            row.push(cell(*title, nothing_to_show(&maps), image));
            told.push(json!({"weights": title, "maps": told_of(&maps, mass)}));
        }
        drawn.rows.push(row);
        drawn.told.push(json!({"file": name, "snapshots": told}));
        Ok(())
    }

    fn maps(&self, prepared: &Prepared, weights: &Loaded) -> anyhow::Result<CellMaps> {
        prepared.maps(weights.backbone.as_ref(), self.args.block, self.device)
    }

    fn heading(&self) -> String {
        match (self.last_block(), self.args.block) {
            (None, _) => "Norm of the last feature map".to_owned(),
            (Some(last), Some(block)) if block < last => {
                format!("Attention of the class token, block {block} of 0 to {last}")
            }
            (Some(last), _) => {
                format!("Attention of the class token, last block ({last} of 0 to {last})")
            }
        }
    }

    /// A picture for the network, and what is to be said about it.
    fn prepare(&self, picture: &RgbImage) -> anyhow::Result<(Prepared, Vec<String>)> {
        let Self { args, loaded, .. } = self;
        let patch = cell_side(loaded.backbone.as_ref());
        if args.whole {
            let size = [picture.height(), picture.width()].map(|side| side as usize);
            check_whole(loaded.backbone.as_ref(), size, self.device)?;
            let (prepared, note) = Prepared::whole(picture, patch, &loaded.input)?;
            return Ok((prepared, note.into_iter().collect()));
        }
        let asked = self.newest.image_size(args.weights.image_size);
        let size = (asked / patch).max(1) * patch;
        let flags = WeightsArgs {
            image_size: Some(size),
            ..args.weights.clone()
        };
        let mut crop = self.newest.eval_crop(&flags)?;
        let mut notes = Vec::new();
        if size != asked {
            // Cropped as asked for, not made smaller: the same scale with a narrower view.
            crop.resize_ratio *= asked as f64 / size as f64;
            notes.push(format!("cropped from {asked} to {size} pixels"));
        }
        Ok((Prepared::evaluated(picture, &crop), notes))
    }
}

/// Maps as numbers, row by row, and how many cells of their mean hold the share asked for.
fn told_of(maps: &CellMaps, mass: Option<f64>) -> Value {
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
