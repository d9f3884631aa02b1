//! `selfsame inspect`

use candle_core::Device;
use clap::CommandFactory;
use selfsame_models::{HeadKind, infer_head};
use serde_json::json;

use crate::cli::{Cli, Inspect};
use crate::exit::Done;
use crate::scores::{print_json, print_text, printable};
use crate::weights::{Loaded, Weights};

pub(crate) fn run(args: &Inspect) -> anyhow::Result<Done> {
    let weights = Weights::read(&args.weights, args.which, None, &Device::Cpu)?;
    let loaded = weights.backbone()?;
    let tensors = loaded.params.tensors();
    let parameters: usize = loaded
        .params
        .weights()
        .values()
        .map(|var| var.elem_count())
        .sum();
    let shapes = tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()));
    let head = head(loaded);
    let not_finite = loaded.not_finite()?;
    if args.json {
        let shapes: serde_json::Map<_, _> =
            shapes.map(|(name, dims)| (name, json!(dims))).collect();
        print_json(&json!({
            "layout": loaded.layout,
            "model": loaded.model,
            "image_size": loaded.input.image_size,
            "mean": loaded.input.mean,
            "std": loaded.input.std,
            "parameters": parameters,
            "dtypes": loaded.dtypes,
            "metadata": loaded.file_metadata,
            "head": head,
            "not_finite": not_finite,
            "usable_by": usable_by(&not_finite, loaded),
            "tensors": shapes,
            "other_tensors": loaded.others,
        }));
        return Ok(Done::Well);
    }
    print_text(&format!(
        "{}, trained at {} pixels, {parameters} parameters; layout: {}",
        weights.describe(),
        loaded.input.image_size,
        loaded.layout
    ));
    let (mean, std) = (loaded.input.mean, loaded.input.std);
    print_text(&format!(
        "pictures: mean {mean:?}, standard deviation {std:?}"
    ));
    if !loaded.dtypes.is_empty() {
        let counts: Vec<String> = loaded
            .dtypes
            .iter()
            .map(|(dtype, count)| format!("{dtype} ({count} tensors)"))
            .collect();
        print_text(&format!("stored as {}", counts.join(", ")));
    }
    if let Some(head) = &head {
        print_text(&format!("projection head: {head}"));
    }
    if !not_finite.is_empty() {
        print_text(&format!(
            "NOT FINITE, and so of no use: {}",
            printable(&not_finite.join(", "))
        ));
    }
    let usable_by = usable_by(&not_finite, loaded);
    if !usable_by.is_empty() {
        print_text(&format!("usable by: {}", usable_by.join(", ")));
    }
    for (key, value) in &loaded.file_metadata {
        print_text(&printable(&format!("metadata {key}: {value}")));
    }
    for (name, dims) in shapes {
        print_text(&printable(&format!("  {name} {dims:?}")));
    }
    if !loaded.others.is_empty() {
        print_text("beside the backbone:");
    }
    for (name, dims) in &loaded.others {
        print_text(&printable(&format!("  {name} {dims:?}")));
    }
    Ok(Done::Well)
}

/// The projection head in a few words.
fn head(loaded: &Loaded) -> Option<String> {
    let head = infer_head(&loaded.head).ok()??;
    let kind = match head.kind {
        HeadKind::Notebook => "notebook",
        HeadKind::Official => "official",
    };
    Some(format!("{kind}, {} prototypes", head.out_dim))
}

/// The commands of this program that take such weights.
fn usable_by(not_finite: &[String], loaded: &Loaded) -> Vec<&'static str> {
    if !not_finite.is_empty() {
        return Vec::new();
    }
    let program = Cli::command();
    let mut commands = vec![
        "train --init",
        "finetune",
        "embed",
        "knn",
        "linear",
        "tsne",
        "pca",
        "neighbors",
        "export",
        "attention",
    ];
    if loaded
        .others
        .keys()
        .any(|name| name.starts_with("new_head."))
    {
        commands.push("predict");
    }
    commands.retain(|command| {
        let name = command.split(' ').next().unwrap_or(command);
        program.find_subcommand(name).is_some()
    });
    commands
}
