//! Lists the parameters of an architecture and its head without allocating them.
//!
//!     cargo run -p selfsame-models --example list_parameters -- resnet50

use std::io::Write;

use selfsame_models::{HeadConfig, HeadKind, ModelConfig, ParamKind, network_specs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arch = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "vit_small".into())
        .parse()?;
    let model = ModelConfig {
        arch,
        image_size: 224,
        ..Default::default()
    };
    let head = HeadConfig {
        kind: HeadKind::Official,
        out_dim: 65536,
        ..Default::default()
    };

    let mut out = std::io::stdout().lock();
    let (mut trainable, mut backbone) = (0, 0);
    for spec in network_specs(&model, &head)? {
        let count = spec.shape.elem_count();
        let kind = match spec.kind {
            ParamKind::Trainable => "",
            ParamKind::Frozen => "frozen",
            ParamKind::Buffer => "buffer",
        };
        writeln!(
            out,
            "{:<52} {:>20} {count:>10} {kind}",
            spec.name,
            format!("{:?}", spec.shape.dims())
        )?;
        if spec.kind == ParamKind::Trainable {
            trainable += count;
        }
        if spec.kind != ParamKind::Buffer && spec.name.starts_with("backbone.") {
            backbone += count;
        }
    }
    writeln!(
        out,
        "{arch}: {backbone} parameters without the head, {trainable} trainable with it"
    )?;
    Ok(())
}
