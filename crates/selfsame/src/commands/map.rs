//! `selfsame tsne` and `selfsame pca`

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use selfsame_checkpoint::write_bytes;
use selfsame_data::Dataset;
use selfsame_eval::{Features, TsneConfig, tsne as descend};
use selfsame_report::{Scatter, Sheet, encode_png, render_png};
use serde_json::json;

use super::attention::evaluation;
use super::embed::quoted;
use crate::cli::{MapArgs, Pca, Pictures, Tsne};
use crate::embedding::embed_all;
use crate::exit::{Done, usage};
use crate::figures::attention::{Prepared, SIDE, patch_components};
use crate::figures::map::{coloring, tsne_chart};
use crate::figures::pictures::{Chosen, check_sheet};
use crate::figures::{remark, whose};
use crate::out;
use crate::overwriting::{refuse_overwriting, refuse_overwriting_pictures};
use crate::progress::CountProgress;
use crate::scores::{label_or_usage, print_json};
use crate::stderr::tell;
use crate::weights::Weights;
use crate::{data, device};

/// Pictures of a row of a sheet.
const COLUMNS: usize = 8;

/// Features of unit length, with the names and labels of their pictures.
struct Embedded {
    features: Features,
    files: Vec<String>,
    labels: Vec<Option<String>>,
    /// Pictures that could not be used.
    skipped: usize,
    described: String,
    /// The same with where they came from, for a picture.
    whose: String,
}

impl Embedded {
    /// What every map says about its pictures, beside its own figures under `name`.
    fn json(&self, args: &MapArgs, name: &str, figures: serde_json::Value) -> serde_json::Value {
        json!({
            name: figures,
            "n": self.features.n,
            "skipped": self.skipped,
            "weights": self.described,
            "label": args.label,
            "out": args.out.to_string_lossy(),
        })
    }
}

pub(crate) fn tsne(args: &Tsne) -> anyhow::Result<Done> {
    let kind = out::kind(&args.map.out, &["svg", "png", "csv"])?;
    let config = TsneConfig {
        perplexity: args.perplexity,
        iterations: args.iterations.get(),
        seed: args.map.seed,
        ..TsneConfig::default()
    };
    let check = |points| match config.check(points).as_slice() {
        [problem, ..] => Err(usage(problem.clone())),
        [] => Ok(()),
    };
    let embedded = embedded(&args.map, check)?;
    check(embedded.features.n)?;
    let mut progress = CountProgress::new("t-SNE iterations", config.iterations);
    let map = descend(&embedded.features, &config, &mut |done| progress.set(done))?;
    let title = format!("t-SNE of {} pictures", embedded.features.n);
    let colors = coloring(
        args.map.label.as_deref().unwrap_or_default(),
        &embedded.labels,
    );
    let mut chart = tsne_chart(title, &map.points, colors);
    chart.subtitle.clone_from(&embedded.whose);
    if args.map.label.is_none() {
        chart.coloring = selfsame_report::Coloring::Plain;
    }
    chart.x_label = format!("perplexity {}, KL {:.3}", config.perplexity, map.kl);
    write(&args.map, kind, &chart, &embedded)?;
    tell!(
        "{} points, KL {:.3} after {} iterations; wrote {}",
        map.points.len(),
        map.kl,
        map.iterations,
        args.map.out.display()
    );
    if args.map.json {
        let figures = json!({
            "kl": map.kl,
            "iterations": map.iterations,
            "perplexity": config.perplexity,
            "seed": config.seed,
        });
        print_json(&embedded.json(&args.map, "tsne", figures));
    }
    Ok(Done::Well)
}

pub(crate) fn pca(args: &Pca) -> anyhow::Result<Done> {
    if args.patches {
        return patches(args);
    }
    let kind = out::kind(&args.map.out, &["svg", "png", "csv"])?;
    let embedded = embedded(&args.map, |count| match count {
        0 | 1 => Err(usage(format!(
            "--data {}: principal components need two pictures, there is {count}",
            args.map.data
        ))),
        _ => Ok(()),
    })?;
    let pca = selfsame_eval::Pca::fit(&embedded.features, 2, args.map.seed)?;
    let places = pca.transform(&embedded.features)?;
    let k = pca.variances.len();
    let point = |place: &[f64]| (place[0], place.get(1).copied().unwrap_or(0.0));
    let axis = |i: usize| {
        let share = pca.shares.get(i).copied().unwrap_or(0.0);
        format!(
            "component {} ({:.1} % of the variance)",
            i + 1,
            100.0 * share
        )
    };
    let colors = match &args.map.label {
        Some(label) => coloring(label, &embedded.labels),
        None => selfsame_report::Coloring::Plain,
    };
    let chart = Scatter {
        title: format!("Principal components of {} pictures", embedded.features.n),
        subtitle: embedded.whose.clone(),
        x_label: axis(0),
        y_label: axis(1),
        points: places.chunks_exact(k).map(point).collect(),
        coloring: colors,
        ticks: true,
    };
    write(&args.map, kind, &chart, &embedded)?;
    tell!("wrote {}", args.map.out.display());
    if args.map.json {
        let figures = json!({"variances": pca.variances, "shares": pca.shares});
        print_json(&embedded.json(&args.map, "pca", figures));
    }
    Ok(Done::Well)
}

fn patches(args: &Pca) -> anyhow::Result<Done> {
    let map = &args.map;
    let flags = &map.weights;
    out::kind(&map.out, &["png"])?;
    let out = ("--out", map.out.as_path());
    refuse_overwriting(out, &inputs(map))?;
    let pictures = Pictures {
        image: None,
        data: Some(map.data.clone()),
        count: args.count,
        seed: map.seed,
    };
    let chosen = Chosen::open(&pictures, flags, out)?;
    let (count, rows) = (chosen.count(), |count: usize| 2 * count.div_ceil(COLUMNS));
    check_sheet("--count", count, rows, count.min(COLUMNS), SIDE)?;
    device::set_threads(flags.threads)?;
    let device = device::open(&flags.device)?;
    let weights = Weights::open(&flags.weights, flags.which, flags.arch.as_deref(), &device)?;
    let crop = weights.eval_crop(flags)?;
    evaluation(&weights, count, flags).check(&device)?;
    let mut prepared: Vec<(String, Prepared)> = Vec::new();
    let any = |_: &image::RgbImage| None;
    chosen.each(any, |name, picture| {
        prepared.push((name, Prepared::evaluated(&picture, &crop)));
        Ok(())
    })?;
    let mut rows = Vec::new();
    let (above, below, pca) = patch_components(&prepared, weights.backbone()?, &device)?;
    for (above, below) in above.chunks(COLUMNS).zip(below.chunks(COLUMNS)) {
        rows.extend([above.to_vec(), below.to_vec()]);
    }
    let remarks = vec![
        remark(whose(&weights, flags)),
        remark(
            "as red, green and blue, of these pictures together: like colours are like features",
        ),
    ];
    let sheet = Sheet {
        heading: "First three principal components of patch features".to_owned(),
        remarks,
        rows,
    };
    write_bytes(&map.out, &encode_png(&sheet.draw())?)?;
    tell!(
        "wrote {}: {}",
        map.out.display(),
        chosen.told(prepared.len(), args.count)
    );
    if map.json {
        let files: Vec<&str> = prepared.iter().map(|(name, _)| name.as_str()).collect();
        print_json(&json!({
            "pca": {"of": "patches", "variances": pca.variances, "shares": pca.shares},
            "files": files,
            "weights": weights.describe(),
            "out": map.out.to_string_lossy(),
        }));
    }
    Ok(Done::Well)
}

/// What a map is made from.
fn inputs(args: &MapArgs) -> [(&str, &Path); 2] {
    [
        ("--weights", Path::new(&args.weights.weights)),
        ("--data", Path::new(&args.data)),
    ]
}

/// Embeds all pictures, if `check` has nothing against their number.
fn embedded(
    args: &MapArgs,
    check: impl Fn(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Embedded> {
    let flags = &args.weights;
    let out = ("--out", args.out.as_path());
    refuse_overwriting(out, &inputs(args))?;
    device::set_threads(flags.threads)?;
    let device = device::open(&flags.device)?;
    let set: Arc<dyn Dataset> = data::of_flags(&args.data, flags)?;
    refuse_overwriting_pictures(out, ("--data", set.as_ref()))?;
    check(set.len())?;
    let label = match &args.label {
        Some(label) => Some(label_or_usage("--data", &args.data, set.as_ref(), label)?),
        None => None,
    };
    let weights = Weights::open(&flags.weights, flags.which, flags.arch.as_deref(), &device)?;
    let all: Vec<usize> = (0..set.len()).collect();
    let done = embed_all(&set, &args.data, &all, &weights, flags, &device)?;
    let text = |i: &usize| label.as_ref().and_then(|label| set.label(*i, label));
    Ok(Embedded {
        features: done.features.l2_normalized(),
        files: done
            .samples
            .iter()
            .map(|i| set.name(*i).to_owned())
            .collect(),
        labels: done.samples.iter().map(text).collect(),
        skipped: all.len() - done.samples.len(),
        described: weights.describe(),
        whose: whose(&weights, flags),
    })
}

fn write(args: &MapArgs, kind: &str, chart: &Scatter, embedded: &Embedded) -> anyhow::Result<()> {
    let bytes = match kind {
        "svg" => chart.svg().into_bytes(),
        "png" => render_png(&chart.svg(), 2.0)?,
        _ => {
            let mut text = String::from("file,x,y,label\n");
            for ((file, (x, y)), label) in embedded
                .files
                .iter()
                .zip(&chart.points)
                .zip(&embedded.labels)
            {
                let label = label.as_deref().unwrap_or_default();
                let _ = writeln!(text, "{},{x},{y},{}", quoted(file), quoted(label));
            }
            text.into_bytes()
        }
    };
    write_bytes(&args.out, &bytes)?;
    Ok(())
}
