//! The JSON files that lie beside weights: timm's, Hugging Face's and a checkpoint's.
//!
//! What such a file says and we cannot compute is an error, not a guess: other settings mostly have
//! the same shapes, and other features.

use std::path::Path;

use selfsame_checkpoint::Manifest;
use selfsame_models::{Arch, ImportedWeights, MlpKind, ModelConfig, PosEmbedResample};
use selfsame_train::RunConfig;
use serde_json::Value;

use super::Input;
use crate::config::Merged;
use crate::exit::usage;
use crate::stderr::tell;

/// Why what lies beside weights cannot be followed.
type Refusal = String;

/// What lies beside a weights file.
#[derive(Default)]
pub(super) struct Beside {
    /// `config.json`
    config: Option<Value>,
    /// `preprocessor_config.json`, Hugging Face's.
    preprocessor: Option<Value>,
    /// The configuration of the checkpoint that the weights are a file of.
    run: Option<RunConfig>,
}

impl Beside {
    /// Reads what is there.
    ///
    /// # Errors
    /// A file that is not JSON.
    pub(super) fn read(weights: &Path) -> Result<Self, Refusal> {
        let json = |name: &str| match std::fs::read_to_string(weights.with_file_name(name)) {
            Ok(text) => serde_json::from_str(&text)
                .map(Some)
                .map_err(|error| format!("{name} beside the weights is not JSON: {error}")),
            Err(_) => Ok(None),
        };
        Ok(Self {
            config: json("config.json")?,
            preprocessor: json("preprocessor_config.json")?,
            run: run_config(weights),
        })
    }

    /// The architecture, if there is a file that says one.
    ///
    /// # Errors
    /// What it says and is not ours.
    pub(super) fn model(&self) -> Result<Option<ModelConfig>, Refusal> {
        if let Some(run) = &self.run {
            return Ok(Some(run.model.clone()));
        }
        let Some(config) = &self.config else {
            return Ok(None);
        };
        let model = if config.get("architecture").is_some() {
            timm_model(config)
        } else if ["model_type", "hidden_size", "hidden_sizes"]
            .iter()
            .any(|key| config.get(key).is_some())
        {
            hf_model(config)
        } else {
            // Somebody else's file.
            return Ok(None);
        };
        let says = |what: String| format!("config.json beside the weights: {what}");
        model.map(Some).map_err(says)
    }

    /// Size and normalisation, where they are said.
    pub(super) fn input(&self, model: &ModelConfig) -> Option<Input> {
        if let Some(run) = &self.run {
            return Some(Input::of(&run.augment));
        }
        if let Some(config) = &self.config
            && config.get("architecture").is_some()
            && let Some(input) = timm_input(config, model)
        {
            return Some(input);
        }
        hf_input(self.preprocessor.as_ref()?, native_size(model))
    }

    /// What the model beside which this lies computes a little otherwise than ours.
    pub(super) fn differences(&self) -> Vec<String> {
        let mut differences = Vec::new();
        if let Some(difference) = self.preprocessor.as_ref().and_then(other_cut) {
            differences.push(difference);
        }
        let Some(config) = &self.config else {
            return differences;
        };
        let eps = config.get("layer_norm_eps").and_then(Value::as_f64);
        if let Some(eps) = eps.filter(|eps| (eps - 1e-6).abs() > 1e-9) {
            differences.push(format!(
                "config.json says layer_norm_eps = {eps:e}, our layer norm has 1e-6: features differ slightly"
            ));
        }
        let act = config.get("hidden_act").and_then(Value::as_str);
        if let Some(act) = act.filter(|act| OTHER_GELUS.contains(act)) {
            differences.push(format!(
                "config.json says hidden_act = {act:?}, ours is the gelu of erf: features differ slightly"
            ));
        }
        differences
    }
}

/// What lies beside a file, and the architecture as the file or what lies beside it says.
///
/// # Errors
/// What is said and cannot be followed, unless `arch` says which network it is.
pub(super) fn told(
    path: &Path,
    weights: &ImportedWeights,
    arch: Option<&str>,
) -> anyhow::Result<(Beside, Option<ModelConfig>)> {
    if let Some(model) = weights.stated_model()? {
        return Ok((Beside::read(path).unwrap_or_default(), Some(model)));
    }
    let found = Beside::read(path).and_then(|beside| {
        let model = beside.model()?;
        Ok((beside, model))
    });
    match (found, arch) {
        (Ok(found), _) => Ok(found),
        (Err(refusal), None) => Err(usage(format!(
            "{refusal}; if it is one of ours all the same, say which by --arch, such as vit_small/16"
        ))),
        (Err(refusal), Some(arch)) => {
            tell!("warning: {refusal}; taken as {arch}");
            Ok((Beside::default(), None))
        }
    }
}

/// Side of the pictures of a network where nothing says it.
pub(super) fn native_size(model: &ModelConfig) -> usize {
    match model.arch.is_vit() {
        true => model.image_size,
        false => 224,
    }
}

/// Approximations of the GELU under transformers' names.
const OTHER_GELUS: [&str; 6] = [
    "gelu_new",
    "gelu_fast",
    "gelu_pytorch_tanh",
    "gelu_accurate",
    "gelu_python_tanh",
    "quick_gelu",
];

/// What the manifest of a checkpoint says of the run, if `weights` is a file of it.
fn run_config(weights: &Path) -> Option<RunConfig> {
    let manifest = Manifest::read(weights.parent()?).ok()?;
    let name = weights.file_name()?.to_str()?;
    manifest.files.contains_key(name).then_some(())?;
    Merged::from_text(&manifest.config, "manifest.json")
        .ok()?
        .typed()
        .ok()
}

/// A side in pixels: a number, or twice the same.
fn side(key: &str, value: &Value) -> Result<usize, Refusal> {
    let number = |value: &Value| value.as_u64().map(|number| number as usize);
    let side = match value.as_array().map(Vec::as_slice) {
        Some([height, width]) if height == width => number(height),
        Some(_) => None,
        None => number(value),
    };
    side.ok_or_else(|| format!("{key} = {value} is not the side of a square"))
}

fn refuse(key: &str, value: &Value) -> Refusal {
    format!("{key} = {value} makes another network than those here")
}

/// The architecture in timm's `config.json`: a name like `vit_tiny_patch16_224` or `resnet50`, and
/// the arguments that make it another size.
fn timm_model(config: &Value) -> Result<ModelConfig, Refusal> {
    let name = config["architecture"].as_str().unwrap_or_default();
    let unknown = || format!("the architecture {name:?} is not one of those here");
    let mut model = timm_name(name.split('.').next().unwrap_or_default()).ok_or_else(unknown)?;
    model.pos_embed_resample = PosEmbedResample::Timm;
    let is_vit = model.arch.is_vit();
    let no_arguments = serde_json::Map::new();
    let arguments = config.get("model_args").and_then(Value::as_object);
    for (key, value) in arguments.unwrap_or(&no_arguments) {
        let name = format!("model_args.{key}");
        let number = || {
            let number = value.as_u64().map(|number| number as usize);
            number.ok_or_else(|| format!("{name} = {value} is not a number"))
        };
        match key.as_str() {
            _ if value.is_null() => {}
            "img_size" if is_vit => model.image_size = side(&name, value)?,
            "patch_size" if is_vit => model.patch_size = side(&name, value)?,
            "embed_dim" if is_vit => model.embed_dim = number()?,
            "depth" if is_vit => model.depth = number()?,
            "num_heads" if is_vit => model.num_heads = number()?,
            "reg_tokens" if is_vit => model.num_registers = number()?,
            "init_values" if is_vit => model.layer_scale = value.as_f64().unwrap_or_default(),
            "global_pool" => {
                timm_pool(is_vit, &name, value)?;
            }
            "act_layer" => {
                let ours = if is_vit { "gelu" } else { "relu" };
                if value != ours {
                    return Err(refuse(&name, value));
                }
            }
            "output_stride" if *value == 32 => {}
            "in_chans" if *value == 3 => {}
            "qkv_bias" | "class_token" if *value == true => {}
            // Of the classifier, of training, or seen from the shapes.
            "num_classes" | "drop_rate" | "drop_path_rate" | "drop_block_rate"
            | "pos_drop_rate" | "patch_drop_rate" | "proj_drop_rate" | "attn_drop_rate"
            | "weight_init" | "zero_init_last" | "dynamic_img_size" | "no_embed_class"
            | "mlp_ratio" | "strict_img_size" => {}
            _ => return Err(refuse(&name, value)),
        }
    }
    if let Some(pool) = config.get("global_pool") {
        timm_pool(is_vit, "global_pool", pool)?;
    }
    Ok(model)
}

/// Refuses features that are not those of the class token, or the mean over a ResNet's last map.
fn timm_pool(is_vit: bool, key: &str, pool: &Value) -> Result<(), Refusal> {
    let ours = if is_vit { "token" } else { "avg" };
    match pool == ours || pool == "" || pool.is_null() {
        true => Ok(()),
        false => Err(refuse(key, pool)),
    }
}

/// The architecture of a name; families in which other names have the same shapes and compute
/// something else are known by the whole name.
fn timm_name(name: &str) -> Option<ModelConfig> {
    let Some((family, sizes)) = name.split_once("_patch") else {
        let same = ["tv_", "ssl_", "swsl_", "gluon_"];
        let bare = same.iter().find_map(|prefix| name.strip_prefix(prefix));
        let bare = bare.unwrap_or(name);
        return super::parse_arch(bare.strip_suffix("_v1b").unwrap_or(bare));
    };
    let family = match family.strip_prefix("deit_") {
        Some(size) => format!("vit_{size}"),
        None => family.to_owned(),
    };
    let (patch, rest) = sizes.split_once('_')?;
    let (registers, rest) = match rest.strip_prefix("reg").and_then(|r| r.split_once('_')) {
        Some((registers, rest)) => (registers.parse().ok()?, rest),
        None => (0, rest),
    };
    if rest == "dinov2" {
        let mut model = super::parse_arch(&format!("{family}/{patch}@518"))?;
        model.layer_scale = 1e-5; // dinov2, --layerscale: what training starts from
        model.num_registers = registers;
        return Some(model);
    }
    let size = rest.strip_suffix("_in21k").unwrap_or(rest);
    let model = super::parse_arch(&format!("{family}/{patch}@{size}"))?;
    (registers == 0).then_some(model)
}

/// Size and normalisation in timm's `config.json`.
fn timm_input(config: &Value, model: &ModelConfig) -> Option<Input> {
    let cfg = config.get("pretrained_cfg")?;
    let triple = |key: &str| serde_json::from_value(cfg.get(key)?.clone()).ok();
    // A ViT takes no other size than its own, whatever its pretrained weights did.
    let said = || cfg.get("input_size")?.get(1)?.as_u64();
    let image_size = match model.arch.is_vit() {
        true => model.image_size,
        false => said().map_or_else(|| native_size(model), |size| size as usize),
    };
    Some(Input {
        image_size,
        mean: triple("mean")?,
        std: triple("std")?,
    })
}

/// The architecture in Hugging Face's `config.json`.
fn hf_model(config: &Value) -> Result<ModelConfig, Refusal> {
    let kind = config.get("model_type").and_then(Value::as_str);
    let kind = kind.ok_or("there is no model_type")?;
    let is_resnet = kind == "resnet";
    let model = match kind {
        "resnet" => hf_resnet(config)?,
        "vit" | "vit_msn" | "dinov2" | "dinov2_with_registers" => hf_vit(kind, config)?,
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

fn hf_resnet(config: &Value) -> Result<ModelConfig, Refusal> {
    for key in ["downsample_in_first_stage", "downsample_in_bottleneck"] {
        if let Some(value) = config.get(key).filter(|value| **value != false) {
            return Err(refuse(key, value));
        }
    }
    let depths = config.get("depths").unwrap_or(&Value::Null);
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

fn hf_vit(kind: &str, config: &Value) -> Result<ModelConfig, Refusal> {
    let value = |key: &str| config.get(key).ok_or_else(|| format!("there is no {key}"));
    let number = |key: &str| {
        let value = value(key)?;
        let number = value.as_u64().map(|number| number as usize);
        number.ok_or_else(|| format!("{key} = {value} is not a number"))
    };
    let width = number("hidden_size")?;
    let same_width = |arch: &Arch| arch.vit_dims().is_some_and(|dims| dims.embed_dim == width);
    let mut model = ModelConfig {
        patch_size: side("patch_size", value("patch_size")?)?,
        image_size: side("image_size", value("image_size")?)?,
        pos_embed_resample: PosEmbedResample::Hf,
        ..Default::default()
    };
    let (heads, depth) = (number("num_attention_heads")?, number("num_hidden_layers")?);
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
        model.num_registers = number("num_register_tokens").unwrap_or(4);
        model.pos_embed_resample = PosEmbedResample::Timm;
    }
    Ok(model)
}

/// Normalisation in Hugging Face's `preprocessor_config.json`, and the size if it says one.
fn hf_input(config: &Value, native: usize) -> Option<Input> {
    let is_on = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(true);
    let triple =
        |key: &str| -> Option<[f64; 3]> { serde_json::from_value(config.get(key)?.clone()).ok() };
    let size = |key: &str| Some(config.get(key)?.get("height")?.as_u64()? as usize);
    let (mean, std) = match is_on("do_normalize") {
        true => (triple("image_mean")?, triple("image_std")?),
        false => ([0.0; 3], [1.0; 3]),
    };
    // What it multiplies bytes by, over our 1/255: (s·x − mean) / std = (x − mean/s) / (std/s).
    let factor = config.get("rescale_factor").and_then(Value::as_f64);
    let scale = match is_on("do_rescale") {
        true => 255.0 * factor.unwrap_or(1.0 / 255.0),
        false => 255.0,
    };
    // 255 times the 1/255 of the file is not quite 1.
    let scale = if (scale - 1.0).abs() < 1e-6 {
        1.0
    } else {
        scale
    };
    Some(Input {
        image_size: size("crop_size").or_else(|| size("size")).unwrap_or(native),
        mean: mean.map(|mean| mean / scale),
        std: std.map(|std| std / scale),
    })
}

/// What to say for a preprocessor that resizes to another size than it cuts out.
fn other_cut(config: &Value) -> Option<String> {
    let edge = config.get("size")?.get("shortest_edge")?.as_f64()?;
    let side = config.get("crop_size")?.get("height")?.as_f64()?;
    let is_cut = config.get("do_center_crop").and_then(Value::as_bool) != Some(false);
    (is_cut && side > 0.0 && edge != side).then(|| {
        format!(
            "preprocessor_config.json resizes the shorter side to {edge} and cuts out {side}: \
             --resize {:.4} does so",
            edge / side
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn beside(config: Value) -> Beside {
        Beside {
            config: Some(config),
            ..Beside::default()
        }
    }

    #[test]
    fn timms_config_tells_heads_that_shapes_do_not() {
        let config = json!({
            "architecture": "vit_tiny_patch16_224.some_tag",
            "model_args": {"img_size": [32, 32], "patch_size": 8, "embed_dim": 32, "num_heads": 2},
            "pretrained_cfg": {"input_size": [3, 224, 224], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        });
        let beside = beside(config);
        let model = beside.model().unwrap().unwrap();
        assert_eq!((model.image_size, model.patch_size), (32, 8));
        let dims = model.vit_dims().unwrap();
        assert_eq!((dims.embed_dim, dims.depth, dims.num_heads), (32, 12, 2));
        assert_eq!(model.pos_embed_resample, PosEmbedResample::Timm);
        assert_eq!(beside.input(&model).unwrap().image_size, 32);
    }

    #[test]
    fn timms_names_of_the_same_networks_are_known_and_others_refused() {
        let model = |name: &str| timm_model(&json!({ "architecture": name }));
        for name in [
            "resnet18",
            "resnet50.a1_in1k",
            "tv_resnet50",
            "gluon_resnet50_v1b",
        ] {
            assert!(!model(name).unwrap().arch.is_vit(), "{name}");
        }
        let deit = model("deit_small_patch16_224").unwrap();
        assert_eq!((deit.arch, deit.patch_size), (Arch::VitSmall, 16));
        let dinov2 = model("vit_base_patch14_reg4_dinov2.lvd142m").unwrap();
        assert_eq!((dinov2.num_registers, dinov2.image_size), (4, 518));
        assert!(dinov2.is_dinov2());
        for name in [
            "convnext_tiny",
            "resnetaa50",
            "resnetblur50",
            "vit_huge_patch14_224",
            "vit_base_patch16_clip_224",
            "vit_base_patch16_siglip_224",
        ] {
            let error = model(name).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn settings_that_make_another_network_of_the_same_shapes_are_refused() {
        let vit = "vit_tiny_patch16_224";
        for (architecture, key, value) in [
            (vit, "act_layer", json!("relu")),
            (vit, "act_layer", json!("gelu_tanh")),
            (vit, "global_pool", json!("avg")),
            (vit, "fc_norm", json!(false)),
            (vit, "img_size", json!([64, 48])),
            (vit, "img_size", json!("64")),
            ("resnet18", "global_pool", json!("max")),
            ("resnet18", "output_stride", json!(16)),
            ("resnet18", "act_layer", json!("silu")),
        ] {
            let config = json!({ "architecture": architecture, "model_args": { key: value } });
            let error = beside(config).model().unwrap_err();
            assert!(error.contains(key), "{error}");
        }
        let config = json!({ "architecture": vit, "global_pool": "avg" });
        assert!(beside(config).model().is_err());
        let harmless = json!({
            "architecture": vit, "global_pool": "token",
            "model_args": {"num_classes": 10, "act_layer": "gelu", "drop_path_rate": 0.1},
        });
        assert!(beside(harmless).model().unwrap().is_some());
    }

    #[test]
    fn transformers_config_tells_the_model_and_its_differences() {
        let config = json!({
            "model_type": "dinov2_with_registers", "hidden_size": 384, "num_attention_heads": 6,
            "num_hidden_layers": 12, "patch_size": [14, 14], "image_size": [518, 518],
            "num_register_tokens": 4, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        });
        let model = hf_model(&config).unwrap();
        assert_eq!((model.arch, model.num_registers), (Arch::VitSmall, 4));
        assert_eq!((model.depth, model.num_heads), (0, 0));
        assert!(model.is_dinov2());
        assert!(beside(config.clone()).differences().is_empty());
        let old = json!({"layer_norm_eps": 1e-12, "hidden_act": "gelu_new"});
        assert_eq!(beside(old).differences().len(), 2);

        let with = |key: &str, value: Value| {
            let mut config = config.clone();
            config[key] = value;
            hf_model(&config)
        };
        assert!(with("model_type", json!("clip")).is_err());
        assert!(with("model_type", Value::Null).is_err());
        assert!(with("hidden_act", json!("relu")).is_err());
        assert!(with("image_size", json!([518, 224])).is_err());
        assert!(with("hidden_act", json!("gelu_new")).is_ok());
        // A file that is about something else.
        assert!(beside(json!({"name": "mine"})).model().unwrap().is_none());
    }

    #[test]
    fn a_resnet_that_strides_elsewhere_is_refused() {
        let config = json!({
            "model_type": "resnet", "depths": [3, 4, 6, 3], "hidden_act": "relu",
            "downsample_in_bottleneck": false,
        });
        assert!(hf_model(&config).is_ok());
        for (key, value) in [
            ("downsample_in_bottleneck", json!(true)),
            ("downsample_in_first_stage", json!(true)),
            ("hidden_act", json!("gelu")),
            ("depths", json!([1, 2])),
        ] {
            let mut config = config.clone();
            config[key] = value;
            assert!(hf_model(&config).unwrap_err().contains(key));
        }
    }

    #[test]
    fn transformers_preprocessor_tells_size_and_normalisation() {
        let config = json!({
            "size": {"height": 64, "width": 64},
            "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6],
            "rescale_factor": 1.0 / 255.0,
        });
        let input = hf_input(&config, 224).unwrap();
        assert_eq!((input.image_size, input.mean[2]), (64, 0.3));
        let with = |key: &str, value: Value| {
            let mut config = config.clone();
            config[key] = value;
            hf_input(&config, 224).unwrap()
        };
        let plain = with("do_normalize", json!(false));
        assert_eq!((plain.mean[0], plain.std[0]), (0.0, 1.0));
        // Bytes as they are: (255 x - 0.1) / 0.4.
        let bytes = with("do_rescale", json!(false));
        assert!((bytes.std[0] - 0.4 / 255.0).abs() < 1e-12);
        assert!((bytes.mean[0] - 0.1 / 255.0).abs() < 1e-12);
        let bit =
            json!({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}});
        assert!(other_cut(&bit).unwrap().contains("--resize 1.1429"));
        assert!(other_cut(&config).is_none());
        // timm's 2 / 255 - 1 as transformers writes it.
        let twice = with("rescale_factor", json!(2.0 / 255.0));
        assert!((twice.std[0] - 0.2).abs() < 1e-12);
    }
}
