//! timm's `config.json`.

use serde_json::Value;

use super::{Refusal, normalisation, refuse, said, side};
use crate::config::{MlpKind, ModelConfig, PosEmbedResample};
use crate::input::InputConfig;
use crate::named::NamedArch;

/// The architecture in timm's `config.json`: a name like `vit_tiny_patch16_224` or `resnet50`, and
/// the arguments that make it another size.
pub(super) fn model(config: &Value) -> Result<ModelConfig, Refusal> {
    let name = config["architecture"].as_str().unwrap_or_default();
    let unknown = || format!("the architecture {name:?} is not one of those here");
    let mut model = named(name.split('.').next().unwrap_or_default()).ok_or_else(unknown)?;
    model.pos_embed_resample = PosEmbedResample::Timm;
    let is_vit = model.arch.is_vit();
    let cfg = pretrained(config);
    // timm takes the size of the pretrained weights where the arguments say none.
    if is_vit
        && cfg["fixed_input_size"] == true
        && let Some(size) = said(cfg, "input_size")
    {
        model.image_size = input_side(size)?;
    }
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
                check_pool(is_vit, &name, value)?;
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
        check_pool(is_vit, "global_pool", pool)?;
    }
    Ok(model)
}

/// What is said of the pretrained weights; older files say it at the top level, and timm still reads
/// them (timm, `load_model_config_from_hf`).
fn pretrained(config: &Value) -> &Value {
    said(config, "pretrained_cfg").unwrap_or(config)
}

/// The side in `[channels, height, width]`.
fn input_side(size: &Value) -> Result<usize, Refusal> {
    match size.as_array().map(Vec::as_slice) {
        Some([_, height, width]) if height == width => side("input_size[1]", height),
        _ => Err(format!(
            "input_size = {size} is not three numbers, the last two the side of a square"
        )),
    }
}

/// Refuses features that are not those of the class token, or the mean over a ResNet's last map.
fn check_pool(is_vit: bool, key: &str, pool: &Value) -> Result<(), Refusal> {
    let ours = if is_vit { "token" } else { "avg" };
    match pool == ours || pool == "" || pool.is_null() {
        true => Ok(()),
        false => Err(refuse(key, pool)),
    }
}

/// The architecture of a name; families in which other names have the same shapes and compute
/// something else are known by the whole name.
fn named(name: &str) -> Option<ModelConfig> {
    let Some((family, sizes)) = name.split_once("_patch") else {
        let same = ["tv_", "ssl_", "swsl_", "gluon_"];
        let bare = same.iter().find_map(|prefix| name.strip_prefix(prefix));
        let bare = bare.unwrap_or(name);
        return parsed(bare.strip_suffix("_v1b").unwrap_or(bare));
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
        let mut model = vit(&family, patch, "518")?;
        if family == "vit_giant" {
            model.mlp = MlpKind::Swiglu;
        }
        model.layer_scale = 1e-5; // dinov2, --layerscale: what training starts from
        model.num_registers = registers;
        return Some(model);
    }
    let size = rest.strip_suffix("_in21k").unwrap_or(rest);
    let model = vit(&family, patch, size)?;
    // timm's other giant is another one.
    (registers == 0 && family != "vit_giant").then_some(model)
}

/// A vision transformer, also of the sizes that have no name here.
fn vit(family: &str, patch: &str, size: &str) -> Option<ModelConfig> {
    let dims = match family {
        "vit_large" => Some((1024, 24, 16)),
        "vit_huge" => Some((1280, 32, 16)),
        "vit_giant" => Some((1536, 40, 24)), // of DINOv2
        _ => None,
    };
    let Some((embed_dim, depth, num_heads)) = dims else {
        return parsed(&format!("{family}/{patch}@{size}"));
    };
    let arch = ModelConfig::default().arch;
    Some(ModelConfig {
        embed_dim,
        depth,
        num_heads,
        ..parsed(&format!("{arch}/{patch}@{size}"))?
    })
}

fn parsed(name: &str) -> Option<ModelConfig> {
    let named: NamedArch = name.parse().ok()?;
    Some(named.model())
}

/// Size and normalisation in timm's `config.json`, if it says them.
pub(super) fn input(config: &Value, model: &ModelConfig) -> Result<Option<InputConfig>, Refusal> {
    let cfg = pretrained(config);
    let Some([mean, std]) = normalisation(cfg, ["mean", "std"])? else {
        return Ok(None);
    };
    let image_size = match said(cfg, "input_size") {
        // A ViT takes no other size than its own, whatever its pretrained weights did.
        Some(size) if !model.arch.is_vit() => input_side(size)?,
        _ => model.native_size(),
    };
    Ok(Some(InputConfig {
        image_size,
        mean,
        std,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::beside;
    use super::*;
    use crate::config::Arch;

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
        assert_eq!(beside.input(&model).unwrap().unwrap().image_size, 32);
    }

    #[test]
    fn a_fixed_input_size_is_the_models_unless_its_arguments_say_another() {
        let size = |cfg: Value, arguments: Value| {
            let config = json!({
                "architecture": "vit_tiny_patch16_224",
                "model_args": arguments,
                "pretrained_cfg": cfg,
            });
            super::model(&config).map(|model| model.image_size)
        };
        let cfg = |fixed, size: [usize; 3]| json!({"fixed_input_size": fixed, "input_size": size});
        let fixed = cfg(true, [3, 384, 384]);
        assert_eq!(size(fixed.clone(), Value::Null), Ok(384));
        assert_eq!(size(fixed, json!({"img_size": 96})), Ok(96));
        assert_eq!(size(cfg(false, [3, 384, 384]), Value::Null), Ok(224));
        let error = size(cfg(true, [3, 384, 256]), Value::Null).unwrap_err();
        assert!(error.contains("input_size"), "{error}");
    }

    #[test]
    fn an_older_file_says_size_and_normalisation_at_the_top_level() {
        let older = beside(json!({
            "architecture": "vit_tiny_patch16_224", "num_classes": 0,
            "input_size": [3, 384, 384], "fixed_input_size": true,
            "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "interpolation": "bicubic",
        }));
        let model = older.model().unwrap().unwrap();
        let input = older.input(&model).unwrap().unwrap();
        assert_eq!((model.image_size, input.image_size), (384, 384));
        assert_eq!((input.mean, input.std), ([0.5; 3], [0.2; 3]));
    }

    #[test]
    fn an_input_is_read_whole_or_refused() {
        let model = super::model(&json!({"architecture": "resnet18"})).unwrap();
        let input = |cfg: Value| super::input(&json!({"pretrained_cfg": cfg}), &model);
        let (mean, std) = ([0.5; 3], [0.2; 3]);
        let read = input(json!({"input_size": [3, 96, 96], "mean": mean, "std": std}));
        assert_eq!(read.unwrap().unwrap().image_size, 96);
        let read = input(json!({"input_size": null, "mean": mean, "std": std}));
        assert_eq!(read.unwrap().unwrap().image_size, 224);
        assert_eq!(input(json!({"mean": null})).unwrap(), None);
        for (cfg, key) in [
            (json!({"mean": "half", "std": std}), "mean"),
            (json!({"mean": mean}), "std"),
            (
                json!({"mean": mean, "std": std, "input_size": 96}),
                "input_size",
            ),
        ] {
            let error = input(cfg).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn timms_names_of_the_same_networks_are_known_and_others_refused() {
        let model = |name: &str| super::model(&json!({ "architecture": name }));
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
        for (name, expected) in [
            ("vit_large_patch16_224", (1024, 24, 16)),
            ("vit_large_patch14_reg4_dinov2", (1024, 24, 16)),
            ("vit_huge_patch14_224", (1280, 32, 16)),
            ("vit_giant_patch14_dinov2", (1536, 40, 24)),
        ] {
            let model = model(name).unwrap();
            let dims = model.vit_dims().unwrap();
            let told = (dims.embed_dim, dims.depth, dims.num_heads);
            assert_eq!(told, expected, "{name}");
            let is_giant = name.contains("giant");
            assert_eq!(model.mlp == MlpKind::Swiglu, is_giant, "{name}");
        }
        for name in [
            "convnext_tiny",
            "resnetaa50",
            "resnetblur50",
            "vit_giant_patch14_224",
            "vit_large_patch14_clip_224",
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
            let error = beside(config).model().unwrap_err().to_string();
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
}
