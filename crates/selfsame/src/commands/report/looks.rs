//! What the features look like: maps, attention, neighbours, crops.

use anyhow::Context;
use candle_core::Device;
use selfsame_data::augment::EvalCrop;
use selfsame_eval::{Own, TsneConfig, choose, neighbors, tsne};
use selfsame_report::{Coloring, Page, Sheet, encode_png};
use selfsame_train::cell_side;

use super::Facts;
use super::subjects::Subjects;
use crate::cli::Which;
use crate::commands::preview::crops_sheet;
use crate::figures::attention::{Prepared, nothing_to_show, patch_components};
use crate::figures::cell;
use crate::figures::grown::Grown;
use crate::figures::map::{coloring, tsne_chart};
use crate::figures::neighbors::{found, labels, query};
use crate::progress::CountProgress;
use crate::weights::{Loaded, Weights};

/// Points of a map at most; its time grows with their square.
const MAX_POINTS: usize = 1000;
/// Classes up to which a map is coloured by a label.
const MAX_COLORS: usize = 20;
/// Pictures looked at.
const PICTURES: usize = 6;
const MAX_SNAPSHOTS: usize = 4;
/// Cells along a picture below which it is shown to the network at twice its size.
const FEW_CELLS: usize = 8;
/// Share of the newest map that is outlined.
const OUTLINED: f64 = 0.6;

pub(super) fn add(
    page: &mut Page,
    facts: &Facts<'_>,
    subjects: &Subjects,
    weights: &Weights,
) -> anyhow::Result<()> {
    maps(page, subjects)?;
    let (set, rows) = subjects.shown();
    let chosen: Vec<usize> = choose(rows.samples.len(), PICTURES, 1);
    attention_of(page, facts, subjects, weights, &chosen)?;
    nearest(page, subjects, &chosen)?;
    page.section("Augmentation");
    let sample = rows.samples[chosen[0]];
    let name = set.name(sample);
    let picture = set.decode(sample).with_context(|| name.to_owned())?;
    let sheet = crops_sheet(facts.config, name, picture, sample)?;
    let views = facts.config.num_crops();
    page.png(
        &encode_png(&sheet)?,
        &format!("One picture and the {views} views that multi-crop makes of it"),
        "What student and teacher get of one picture, with the values drawn.",
    );
    Ok(())
}

fn maps(page: &mut Page, subjects: &Subjects) -> anyhow::Result<()> {
    let (set, rows) = subjects.shown();
    let mut kept = choose(rows.samples.len(), MAX_POINTS, 2);
    kept.sort_unstable();
    let n = kept.len();
    if n < 10 {
        return Ok(());
    }
    let config = TsneConfig {
        perplexity: (n as f64 / 4.0).min(30.0),
        ..TsneConfig::default()
    };
    let mut progress = CountProgress::new("t-SNE iterations", config.iterations);
    let points = rows.features.subset(&kept);
    let map = tsne(&points, &config, &mut |done| progress.set(done))?;
    page.section("Map of the features");
    page.text(&format!(
        "t-SNE of {n} pictures (perplexity {:.0}, KL {:.2}): pictures with similar features are \
         near each other; directions, sizes and the distances of clusters mean nothing.",
        config.perplexity, map.kl
    ));
    let mut charts = Vec::new();
    for label in &set.label_names() {
        let text = |row: &usize| set.label(rows.samples[*row], label);
        let texts: Vec<Option<String>> = kept.iter().map(text).collect();
        let colors = coloring(label, &texts);
        if matches!(&colors, Coloring::Classes { names, .. } if names.len() > MAX_COLORS) {
            continue; // nobody tells so many colours apart
        }
        let chart = tsne_chart(format!("By {label}"), &map.points, colors);
        let alt = format!("Map of {n} pictures by t-SNE, coloured by {label}");
        charts.push((chart.svg(), alt));
    }
    if charts.is_empty() {
        let chart = tsne_chart(String::new(), &map.points, Coloring::Plain);
        charts.push((chart.svg(), format!("Map of {n} pictures by t-SNE")));
    }
    page.charts(&charts);
    Ok(())
}

fn attention_of(
    page: &mut Page,
    facts: &Facts<'_>,
    subjects: &Subjects,
    weights: &Weights,
    chosen: &[usize],
) -> anyhow::Result<()> {
    let loaded = weights.backbone()?;
    let (set, rows) = subjects.shown();
    let (crop, note) = crop_for_maps(&subjects.crop, cell_side(loaded.backbone.as_ref()));
    let grown = Grown::open(facts.dir, MAX_SNAPSHOTS, loaded, |path| {
        Weights::open_at(path, Which::Teacher, None, facts.device)
    })?;
    let (begun, backbone) = subjects.begun();
    let mut columns = vec![(begun, backbone, None)];
    let mut newest = "newest";
    if let Some(grown) = &grown {
        for (title, weights) in &grown.before {
            columns.push((title, weights.backbone()?.backbone.as_ref(), None));
        }
        newest = &grown.newest;
    }
    columns.push((newest, loaded.backbone.as_ref(), Some(OUTLINED)));

    let mut sheet = Vec::new();
    let mut pictures = Vec::new();
    for row in chosen {
        let sample = rows.samples[*row];
        let name = set.name(sample).to_owned();
        let picture = set.decode(sample).with_context(|| name.clone())?;
        let prepared = Prepared::evaluated(&picture, &crop);
        let mut cells = vec![cell("picture", labels(set, sample), prepared.image.clone())];
        for (title, backbone, mass) in &columns {
            let maps = prepared.maps(*backbone, None, facts.device)?;
            let image = prepared.overlaid(&maps, maps.mean(), *mass);
            cells.push(cell(*title, nothing_to_show(&maps), image));
        }
        sheet.push(cells);
        pictures.push((String::from("picture"), prepared));
    }
    let what = match loaded.backbone.num_blocks() {
        0 => "Norm of the last feature map",
        _ => "Attention of the class token in the last block, mean of the heads",
    };
    page.section("Attention");
    let image = Sheet {
        heading: what.to_owned(),
        remarks: Vec::new(),
        rows: sheet,
    };
    page.png(
        &encode_png(&image.draw())?,
        &format!(
            "{what} over {} pictures, by {begun} and as training went on",
            chosen.len()
        ),
        &format!(
            "{what}, each panel from its lowest (dark) to its highest (bright). The outline holds \
             six tenths of it.{note}"
        ),
    );
    components(page, &pictures, loaded, facts.device)
}

/// The crop that pictures are shown to the network in, and what is to be said about it.
fn crop_for_maps(crop: &EvalCrop, cell_side: usize) -> (EvalCrop, String) {
    let mut crop = crop.clone();
    let mut note = String::new();
    if crop.image_size / cell_side < FEW_CELLS {
        crop.image_size *= 2;
        note = format!(
            " The pictures are shown to it with {} pixels, twice what it was trained at.",
            crop.image_size
        );
    }
    if crop.image_size <= cell_side {
        note += " They are one cell even so, of which there is nothing to show.";
    }
    (crop, note)
}

fn components(
    page: &mut Page,
    pictures: &[(String, Prepared)],
    loaded: &Loaded,
    device: &Device,
) -> anyhow::Result<()> {
    let (above, below, _) = patch_components(pictures, loaded, device)?;
    let image = Sheet {
        heading: "Principal components of patch features".to_owned(),
        remarks: Vec::new(),
        rows: vec![above, below],
    };
    page.png(
        &encode_png(&image.draw())?,
        "Pictures, and below each its patch features in colours",
        "The first three principal components of the patch features of these pictures together, \
         as red, green and blue: like colours are like features.",
    );
    Ok(())
}

fn nearest(page: &mut Page, subjects: &Subjects, chosen: &[usize]) -> anyhow::Result<()> {
    const COUNT: usize = 6;
    let (set, rows) = subjects.shown();
    let (all, queries) = (&rows.features, rows.features.subset(chosen));
    let near = neighbors(all, &queries, COUNT + 1, Own::Keep)?;
    let mut sheet = Vec::new();
    for (i, row) in chosen.iter().enumerate() {
        let sample = rows.samples[*row];
        let name = set.name(sample).to_owned();
        let picture = set.decode(sample).with_context(|| name.clone())?;
        let (found_rows, similarities) = near.row(i);
        let others: Vec<(usize, f32)> = found_rows
            .iter()
            .zip(similarities)
            .filter(|(other, _)| **other as usize != *row)
            .take(COUNT)
            .map(|(other, similarity)| (rows.samples[*other as usize], *similarity))
            .collect();
        let mut cells = vec![query(
            "picture",
            labels(set, sample),
            &picture,
            &subjects.crop,
        )];
        cells.extend(found(set, &subjects.crop, &others)?);
        sheet.push(cells);
    }
    page.section("Nearest neighbours");
    let others = all.n - 1;
    let image = Sheet {
        heading: format!("Nearest of {others} other pictures"),
        remarks: Vec::new(),
        rows: sheet,
    };
    page.png(
        &encode_png(&image.draw())?,
        &format!(
            "{} pictures, each with the {} of {others} others whose features are nearest",
            chosen.len(),
            COUNT.min(others)
        ),
        "Framed: the picture asked about. Distances are 1 − cosine similarity.",
    );
    Ok(())
}
