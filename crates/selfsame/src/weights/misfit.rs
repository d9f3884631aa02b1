//! Weights that do not fit a network, told in few lines.

use std::collections::{BTreeMap, BTreeSet};

use selfsame_models::{ModelConfig, ModelError, WeightMismatch};

use super::describe_model;

/// The error of weights that were to be those of `model`: what differs, blocks of one kind on one
/// line; any other error as it is.
pub(super) fn in_words(error: ModelError, model: &ModelConfig) -> anyhow::Error {
    match error {
        ModelError::Weights(mismatch) => anyhow::anyhow!(
            "the weights are not those of {}:{}",
            describe_model(model),
            folded(&mismatch)
        ),
        other => other.into(),
    }
}

fn folded(mismatch: &WeightMismatch) -> String {
    let WeightMismatch {
        missing,
        surplus,
        misshapen,
    } = mismatch;
    let mut differences = Vec::new();
    differences.extend(missing.iter().map(|name| (name, "missing".to_owned())));
    let surplus = surplus.iter();
    differences.extend(surplus.map(|name| (name, "not in the model".to_owned())));
    differences.extend(misshapen.iter().map(|(name, expected, found)| {
        let shapes = format!("the model has shape {expected:?}, the file {found:?}");
        (name, shapes)
    }));
    let mut of_kind: BTreeMap<(String, String), BTreeSet<&String>> = BTreeMap::new();
    for (name, difference) in differences {
        let key = (difference, without_numbers(name));
        of_kind.entry(key).or_default().insert(name);
    }
    let lines =
        of_kind.into_iter().map(
            |((difference, kind), names)| match (names.len(), names.first()) {
                (1, Some(name)) => format!("\n  {name}: {difference}"),
                (count, _) => format!("\n  {kind}, {count} of them: {difference}"),
            },
        );
    lines.collect()
}

/// The name with an N for each number between dots.
fn without_numbers(name: &str) -> String {
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.split('.');
    let parts: Vec<&str> = parts
        .map(|part| if is_number(part) { "N" } else { part })
        .collect();
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::cli::Which;
    use crate::weights::Weights;

    #[test]
    fn a_width_that_the_tensors_do_not_have_is_refused_before_memory_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let norm = Tensor::zeros(64, DType::F32, &Device::Cpu).unwrap();
        let tensors = HashMap::from([("norm.weight", norm)]);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let config = r#"{"architecture": "vit_tiny_patch16_224",
            "model_args": {"embed_dim": 65536, "num_heads": 1024}}"#;
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let opened = Weights::open_at(&path, Which::Teacher, None, &Device::Cpu);
        let told = format!("{:#}", opened.err().unwrap());
        let misfit = "backbone.norm.weight: the model has shape [65536], the file [64]";
        assert!(told.contains(misfit), "{told}");
    }

    #[test]
    fn blocks_of_one_kind_are_told_on_one_line_under_a_heading() {
        let name = |block: usize| format!("backbone.blocks.{block}.attn.qkv.bias");
        let mismatch = WeightMismatch {
            missing: (0..12).map(name).collect(),
            surplus: vec!["backbone.conv1.weight".to_owned()],
            misshapen: vec![("backbone.norm.bias".to_owned(), vec![64], vec![96])],
        };
        let model = ModelConfig::default();
        let told = in_words(ModelError::Weights(mismatch), &model).to_string();
        let lines: Vec<&str> = told.lines().collect();
        let heading = format!("the weights are not those of {}:", describe_model(&model));
        assert_eq!(
            lines,
            [
                &*heading,
                "  backbone.blocks.N.attn.qkv.bias, 12 of them: missing",
                "  backbone.conv1.weight: not in the model",
                "  backbone.norm.bias: the model has shape [64], the file [96]",
            ]
        );
    }
}
