//! `config.json` and `preprocessor_config.json` of Hugging Face's transformers.

use serde_json::Value;

use super::{Difference, Refusal, normalisation, refuse, said, side};
use crate::config::{Arch, MlpKind, ModelConfig, PosEmbedResample};
use crate::input::InputConfig;

/// Approximations of the GELU under transformers' names.
pub(super) const OTHER_GELUS: [&str; 6] = [
    "gelu_new",
    "gelu_fast",
    "gelu_pytorch_tanh",
    "gelu_accurate",
    "gelu_python_tanh",
    "quick_gelu",
];

/// The architecture in Hugging Face's `config.json`.
pub(super) fn model(config: &Value) -> Result<ModelConfig, Refusal> {
    let kind = config.get("model_type").and_then(Value::as_str);
    let kind = kind.ok_or("there is no model_type")?;
    let is_resnet = kind == "resnet";
    let model = match kind {
        "resnet" => resnet(config)?,
        "vit" | "vit_msn" | "dinov2" | "dinov2_with_registers" => vit(kind, config)?,
        _ => return Err(format!("the model_type {kind:?} is not one of those here")),
    };
    let ours = if is_resnet { "relu" } else { "gelu" };
    if let Some(act) = config.get("hidden_act") {
        let close = !is_resnet && OTHER_GELUS.iter().any(|other| act == other);
        if act != ours && !close {
            return Err(refuse("hidden_act", act));
        }
    }
    Ok(model)
}

fn resnet(config: &Value) -> Result<ModelConfig, Refusal> {
    for key in ["downsample_in_first_stage", "downsample_in_bottleneck"] {
        if let Some(value) = config.get(key).filter(|value| **value != false) {
            return Err(refuse(key, value));
        }
    }
    let default = serde_json::json!([3, 4, 6, 3]);
    let depths = config.get("depths").unwrap_or(&default);
    let found: Vec<usize> = serde_json::from_value(depths.clone()).unwrap_or_default();
    let arch = match found.as_slice() {
        [2, 2, 2, 2] => Arch::Resnet18,
        [3, 4, 6, 3] => Arch::Resnet50,
        _ => return Err(refuse("depths", depths)),
    };
    Ok(ModelConfig {
        arch,
        ..Default::default()
    })
}

fn vit(kind: &str, config: &Value) -> Result<ModelConfig, Refusal> {
    // What is not said is the default of transformers' classes.
    let number = |key: &str, default: usize| match config.get(key) {
        None => Ok(default),
        Some(value) => value
            .as_u64()
            .map(|number| number as usize)
            .ok_or_else(|| format!("{key} = {value} is not a number")),
    };
    let side_or = |key: &str, default: usize| match config.get(key) {
        None => Ok(default),
        Some(value) => side(key, value),
    };
    let patch_size = if kind.starts_with("dinov2") { 14 } else { 16 };
    let width = number("hidden_size", 768)?;
    let same_width = |arch: &Arch| arch.vit_dims().is_some_and(|dims| dims.embed_dim == width);
    let mut model = ModelConfig {
        patch_size: side_or("patch_size", patch_size)?,
        image_size: side_or("image_size", 224)?,
        pos_embed_resample: PosEmbedResample::Hf,
        ..Default::default()
    };
    let heads = number("num_attention_heads", 12)?;
    let depth = number("num_hidden_layers", 12)?;
    match Arch::ALL.into_iter().find(same_width) {
        Some(arch) => model.arch = arch,
        None => model.embed_dim = width,
    }
    let dims = model.vit_dims();
    if dims.is_none_or(|dims| dims.num_heads != heads) {
        model.num_heads = heads;
    }
    if dims.is_none_or(|dims| dims.depth != depth) {
        model.depth = depth;
    }
    if kind.starts_with("dinov2") {
        model.layer_scale = 1e-5; // dinov2, --layerscale: what training starts from
        if config.get("use_swiglu_ffn").and_then(Value::as_bool) == Some(true) {
            model.mlp = MlpKind::Swiglu;
        }
    }
    if kind == "dinov2_with_registers" {
        model.num_registers = number("num_register_tokens", 4)?;
        model.pos_embed_resample = PosEmbedResample::Timm;
    }
    Ok(model)
}

/// Normalisation in Hugging Face's `preprocessor_config.json`, if it says one, and the size, else
/// `native`.
pub(super) fn input(config: &Value, native: usize) -> Result<Option<InputConfig>, Refusal> {
    let is_on = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(true);
    let said_of = match is_on("do_normalize") {
        true => normalisation(config, ["image_mean", "image_std"])?,
        false => Some([[0.0; 3], [1.0; 3]]),
    };
    let Some([mean, std]) = said_of else {
        return Ok(None);
    };
    // What it multiplies bytes by, over our 1/255: (s·x − mean) / std = (x − mean/s) / (std/s).
    let factor = match said(config, "rescale_factor") {
        None => 1.0 / 255.0,
        Some(factor) => factor
            .as_f64()
            .filter(|factor| *factor > 0.0)
            .ok_or_else(|| format!("rescale_factor = {factor} is no positive number"))?,
    };
    let scale = match is_on("do_rescale") {
        true => 255.0 * factor,
        false => 255.0,
    };
    // 255 times the 1/255 of the file is not quite 1.
    let scale = if (scale - 1.0).abs() < 1e-6 {
        1.0
    } else {
        scale
    };
    let cut = match is_on("do_center_crop") {
        true => size(config, "crop_size")?,
        false => None,
    };
    Ok(Some(InputConfig {
        image_size: cut.or(size(config, "size")?).unwrap_or(native),
        mean: mean.map(|mean| mean / scale),
        std: std.map(|std| std / scale),
    }))
}

/// Side of the pictures under `size` or `crop_size`: `{"height": 224, "width": 224}`, in older files
/// 224, and with a `crop_pct` `{"shortest_edge": 224}`; `None` if that is not said there.
fn size(config: &Value, key: &str) -> Result<Option<usize>, Refusal> {
    let Some(value) = said(config, key) else {
        return Ok(None);
    };
    let inner = match said(config, "crop_pct") {
        Some(_) if value.get("shortest_edge").is_some() => "shortest_edge",
        _ => "height",
    };
    match value.is_object() {
        true => {
            let side_of = |value| side(&format!("{key}.{inner}"), value);
            value.get(inner).map(side_of).transpose()
        }
        false => side(key, value).map(Some),
    }
}

/// Pictures that a preprocessor with a `crop_pct` makes at least so large it does not cut
/// (transformers, image_processing_convnext.py).
const UNCUT: f64 = 384.0;

/// A preprocessor that resizes to another size than it cuts out.
pub(super) fn other_cut(config: &Value) -> Option<Difference> {
    let pixels = |key: &str, inner: &str| {
        let value = config.get(key)?;
        value.as_f64().or_else(|| value.get(inner)?.as_f64())
    };
    let edge = pixels("size", "shortest_edge")?;
    let (edge, side) = match pixels("crop_size", "height") {
        Some(side) => (edge, side),
        None => {
            let share = config.get("crop_pct")?.as_f64()?;
            let is_cut = share > 0.0 && edge < UNCUT;
            (if is_cut { (edge / share).floor() } else { edge }, edge)
        }
    };
    let is_cut = config.get("do_center_crop").and_then(Value::as_bool) != Some(false);
    (is_cut && side > 0.0 && edge != side).then_some(Difference::Cut { edge, side })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::beside;
    use super::*;

    #[test]
    fn transformers_config_tells_the_model_and_its_differences() {
        let config = json!({
            "model_type": "dinov2_with_registers", "hidden_size": 384, "num_attention_heads": 6,
            "num_hidden_layers": 12, "patch_size": [14, 14], "image_size": [518, 518],
            "num_register_tokens": 4, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        });
        let model = super::model(&config).unwrap();
        assert_eq!((model.arch, model.num_registers), (Arch::VitSmall, 4));
        assert_eq!((model.depth, model.num_heads), (0, 0));
        assert!(model.is_dinov2());
        assert!(beside(config.clone()).differences().is_empty());
        let old = json!({"layer_norm_eps": 1e-12, "hidden_act": "gelu_new"});
        assert_eq!(
            beside(old).differences(),
            [
                Difference::LayerNormEps(1e-12),
                Difference::Activation("gelu_new".into())
            ]
        );

        let with = |key: &str, value: Value| {
            let mut config = config.clone();
            config[key] = value;
            super::model(&config)
        };
        assert!(with("model_type", json!("clip")).is_err());
        assert!(with("model_type", Value::Null).is_err());
        assert!(with("hidden_act", json!("relu")).is_err());
        assert!(with("image_size", json!([518, 224])).is_err());
        assert!(with("hidden_act", json!("gelu_new")).is_ok());
        let base = super::model(&json!({"model_type": "vit"})).unwrap();
        assert_eq!((base.arch, base.patch_size), (Arch::VitBase, 16));
        // A file that is about something else.
        assert!(beside(json!({"name": "mine"})).model().unwrap().is_none());
    }

    #[test]
    fn a_resnet_that_strides_elsewhere_is_refused() {
        let config = json!({
            "model_type": "resnet", "depths": [3, 4, 6, 3], "hidden_act": "relu",
            "downsample_in_bottleneck": false,
        });
        assert!(super::model(&config).is_ok());
        for (key, value) in [
            ("downsample_in_bottleneck", json!(true)),
            ("downsample_in_first_stage", json!(true)),
            ("hidden_act", json!("gelu")),
            ("depths", json!([1, 2])),
        ] {
            let mut config = config.clone();
            config[key] = value;
            assert!(super::model(&config).unwrap_err().contains(key));
        }
    }

    #[test]
    fn transformers_preprocessor_tells_size_and_normalisation() {
        let config = json!({
            "size": {"height": 64, "width": 64},
            "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6],
            "rescale_factor": 1.0 / 255.0,
        });
        let input = super::input(&config, 224).unwrap().unwrap();
        assert_eq!((input.image_size, input.mean[2]), (64, 0.3));
        let with = |key: &str, value: Value| {
            let mut config = config.clone();
            config[key] = value;
            super::input(&config, 224).unwrap().unwrap()
        };
        let plain = with("do_normalize", json!(false));
        assert_eq!((plain.mean[0], plain.std[0]), (0.0, 1.0));
        // Bytes as they are: (255 x - 0.1) / 0.4.
        let bytes = with("do_rescale", json!(false));
        assert!((bytes.std[0] - 0.4 / 255.0).abs() < 1e-12);
        assert!((bytes.mean[0] - 0.1 / 255.0).abs() < 1e-12);
        let bit =
            json!({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}});
        let (edge, side) = (256.0, 224.0);
        assert_eq!(other_cut(&bit), Some(Difference::Cut { edge, side }));
        assert!(other_cut(&config).is_none());
        // timm's 2 / 255 - 1 as transformers writes it.
        let twice = with("rescale_factor", json!(2.0 / 255.0));
        assert!((twice.std[0] - 0.2).abs() < 1e-12);
    }

    #[test]
    fn older_preprocessors_say_sizes_as_numbers() {
        let normal = json!({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]});
        let with = |more: Value| {
            let mut config = normal.clone();
            let config_map = config.as_object_mut().unwrap();
            config_map.extend(more.as_object().unwrap().clone());
            config
        };
        let size = |more: Value| {
            let input = super::input(&with(more), 224).unwrap();
            input.unwrap().image_size
        };
        assert_eq!(size(json!({"size": 32})), 32);
        assert_eq!(size(json!({"size": 40, "crop_size": 32})), 32);
        let uncut = json!({"size": 40, "crop_size": 32, "do_center_crop": false});
        assert_eq!(size(uncut), 40);
        assert_eq!(size(json!({"size": [48, 48]})), 48);
        assert_eq!(size(json!({"size": {"shortest_edge": 40}})), 224);
        let convnext = json!({"size": {"shortest_edge": 160}, "crop_pct": 0.875});
        assert_eq!(size(convnext), 160);
        let cut = |more: Value| other_cut(&with(more)).map(|cut| cut.to_string());
        let told = cut(json!({"size": 40, "crop_size": 32})).unwrap();
        assert!(told.contains("side to 40 and cuts out 32"), "{told}");
        assert!(cut(json!({"size": 32})).is_none());
        // microsoft/resnet-50, before and after sizes had names.
        for size in [json!(224), json!({"shortest_edge": 224})] {
            let told = cut(json!({"size": size, "crop_pct": 0.875})).unwrap();
            assert!(told.contains("side to 256 and cuts out 224"), "{told}");
        }
        assert!(cut(json!({"size": 384, "crop_pct": 0.875})).is_none());
        assert!(cut(json!({"size": 224, "crop_pct": 1.0})).is_none());
    }

    #[test]
    fn a_preprocessor_that_cannot_be_read_is_refused() {
        let config = json!({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]});
        let input = |config: &Value| super::input(config, 224);
        assert_eq!(input(&json!({"size": 32})).unwrap(), None);
        for (key, value) in [
            ("image_mean", json!([0.5, 0.5])),
            ("image_std", json!("half")),
            ("image_std", Value::Null),
            ("rescale_factor", json!("1/255")),
            ("rescale_factor", json!(0)),
            ("size", json!("large")),
            ("crop_size", json!([32, 48])),
            ("crop_size", json!({"height": -1})),
        ] {
            let mut config = config.clone();
            config[key] = value;
            let error = input(&config).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }
}
