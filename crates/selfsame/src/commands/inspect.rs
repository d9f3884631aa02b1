//! `selfsame inspect`

use candle_core::Device;
use serde_json::json;

use crate::cli::Inspect;
use crate::exit::Done;
use crate::scores::{print_json, print_text};
use crate::weights::Weights;

pub(crate) fn run(args: &Inspect) -> anyhow::Result<Done> {
    let weights = Weights::open(&args.weights, args.which, None, &Device::Cpu)?;
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
            "tensors": shapes,
            "other_tensors": loaded.others,
        }));
    } else {
        print_text(&format!(
            "{}, trained at {} pixels, {parameters} parameters; layout: {}",
            weights.describe(),
            loaded.input.image_size,
            loaded.layout
        ));
        for (name, dims) in shapes {
            print_text(&format!("  {name} {dims:?}"));
        }
        if !loaded.others.is_empty() {
            print_text("beside the backbone:");
        }
        for (name, dims) in &loaded.others {
            print_text(&format!("  {name} {dims:?}"));
        }
    }
    Ok(Done::Well)
}
