//! Weights under other programs' names: round trips, and features against Hugging Face transformers
//! (`golden/make_interop.py`).

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use common::{fill, larger, tensor, values};
use selfsame_models::interop::{Layout, to_hf};
use selfsame_models::{
    Arch, ImportedWeights, MlpKind, Mode, ModelConfig, ParamStore, PosEmbedResample, Which,
    build_backbone, draw_backbone, infer, read_weights, to_own_names,
};
use serde_json::Value;

/// The models of make_interop.py.
fn models() -> [(&'static str, ModelConfig); 5] {
    let vit = ModelConfig {
        arch: Arch::VitTiny,
        embed_dim: 32,
        depth: 2,
        num_heads: 2,
        patch_size: 8,
        image_size: 32,
        pos_embed_resample: PosEmbedResample::Hf,
        ..Default::default()
    };
    let dinov2 = ModelConfig {
        layer_scale: 1e-5,
        ..vit.clone()
    };
    let swiglu = ModelConfig {
        mlp: MlpKind::Swiglu,
        ..dinov2.clone()
    };
    // Hugging Face resamples as the official code: antialiased with registers, else not.
    let registers = ModelConfig {
        num_registers: 3,
        pos_embed_resample: PosEmbedResample::Timm,
        ..dinov2.clone()
    };
    let resnet = ModelConfig {
        arch: Arch::Resnet18,
        ..Default::default()
    };
    [
        ("vit", vit),
        ("dinov2", dinov2),
        ("dinov2_swiglu", swiglu),
        ("dinov2_registers", registers),
        ("resnet18", resnet),
    ]
}

fn filled(model: &ModelConfig) -> ParamStore {
    let store = draw_backbone(model, 0, &Device::Cpu).unwrap();
    fill(&store);
    store
}

fn bits(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, (Vec<usize>, Vec<u64>)> {
    let bits = |tensor: &Tensor| values(tensor).iter().map(|v| v.to_bits()).collect();
    tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), (tensor.dims().to_vec(), bits(tensor))))
        .collect()
}

#[test]
fn features_are_those_of_transformers_at_both_sizes() {
    let golden: Value = serde_json::from_str(include_str!("golden/interop.json")).unwrap();
    for (name, model) in models() {
        let store = filled(&model);
        let backbone = build_backbone(&model, &store).unwrap();
        for size in [32, 48] {
            let xs = tensor(&format!("images{size}"), &[2, 3, size, size], 1.0);
            let found = values(&backbone.forward(&xs, &Mode::Eval).unwrap());
            let expected = &golden[name][format!("features{size}")];
            let expected: Vec<f64> = serde_json::from_value(expected.clone()).unwrap();
            assert_eq!(found.len(), expected.len());
            let scale = expected.iter().fold(0f64, |max, v| max.max(v.abs()));
            let pairs = found.iter().zip(&expected);
            let off = pairs.fold(0f64, |max, (a, b)| larger(max, (a - b).abs()));
            assert!(
                off <= 1e-5 * scale,
                "{name} at {size}: off by {:e}",
                off / scale
            );
        }
    }
}

#[test]
fn names_for_transformers_are_those_of_its_own_files() {
    let golden: Value = serde_json::from_str(include_str!("golden/interop.json")).unwrap();
    for (name, model) in models() {
        let theirs = to_hf(&filled(&model).tensors()).unwrap();
        let expected: Vec<String> = serde_json::from_value(golden[name]["names"].clone()).unwrap();
        assert_eq!(
            theirs.keys().collect::<Vec<_>>(),
            expected.iter().collect::<Vec<_>>()
        );
    }
}

#[test]
fn round_trips_are_bit_identical() {
    for (name, model) in models() {
        let ours = filled(&model).tensors();
        let theirs = to_hf(&ours).unwrap();
        let back = to_own_names(theirs).unwrap();
        assert_eq!(back.layout, Layout::HuggingFace, "{name}");
        assert_eq!(bits(&back.tensors), bits(&ours), "{name}");
        let mask = usize::from(model.is_dinov2());
        assert_eq!(back.left_out.len(), mask, "{name}: {:?}", back.left_out);

        let timm = ours.iter().map(|(name, tensor)| {
            let bare = name.strip_prefix("backbone.").unwrap();
            (bare.to_owned(), tensor.clone())
        });
        assert_eq!(
            bits(&to_own_names(timm).unwrap().tensors),
            bits(&ours),
            "{name}"
        );
    }
}

/// transformers' DINOv2 has layer scales in every block.
#[test]
fn registers_or_swiglu_without_layer_scale_become_a_dinov2_of_the_same_features() {
    let [_, _, (_, swiglu), (_, registers), _] = models();
    for model in [swiglu, registers] {
        let model = ModelConfig {
            layer_scale: 0.0,
            ..model
        };
        let params = filled(&model);
        let theirs = to_hf(&params.tensors()).unwrap();
        let scale = &theirs["encoder.layer.1.layer_scale2.lambda1"];
        assert_eq!(scale.to_vec1::<f32>().unwrap(), vec![1.0; 32]);
        assert!(theirs.contains_key("encoder.layer.0.norm1.weight"));

        let ours = to_own_names(theirs).unwrap().tensors;
        let scaled = ModelConfig {
            layer_scale: 1.0,
            ..model.clone()
        };
        let again = draw_backbone(&scaled, 0, &Device::Cpu).unwrap();
        again.load_part(&ours, "backbone.").unwrap();
        let xs = fill_images(32);
        let features = |model: &ModelConfig, params: &ParamStore| -> Vec<f32> {
            let backbone = build_backbone(model, params).unwrap();
            let ys = backbone.forward(&xs, &Mode::Eval).unwrap();
            ys.flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!(features(&model, &params), features(&scaled, &again));
    }
}

fn fill_images(side: usize) -> Tensor {
    let numbers = (0..2 * 3 * side * side).map(|i| (i % 17) as f32 / 17.0);
    Tensor::from_iter(numbers, &Device::Cpu)
        .and_then(|xs| xs.reshape((2, 3, side, side)))
        .unwrap()
}

#[test]
fn the_newer_spelling_and_a_wrapped_model_are_read_as_well() {
    let (_, model) = models()[0].clone();
    let ours = filled(&model).tensors();
    let newer = to_hf(&ours).unwrap().into_iter().map(|(name, tensor)| {
        let name = name
            .replace("encoder.layer.", "layers.")
            .replace("attention.attention.query", "attention.q_proj")
            .replace("attention.attention.key", "attention.k_proj")
            .replace("attention.attention.value", "attention.v_proj")
            .replace("attention.output.dense", "attention.o_proj")
            .replace("intermediate.dense", "mlp.fc1")
            .replace(".output.dense", ".mlp.fc2");
        (format!("vit.{name}"), tensor)
    });
    let classifier = (
        "classifier.weight".to_owned(),
        ours["backbone.cls_token"].clone(),
    );
    let back = to_own_names(newer.chain([classifier])).unwrap();
    assert_eq!(bits(&back.tensors), bits(&ours));
    assert!(back.left_out.keys().eq(["classifier.weight"]));
}

#[test]
fn the_official_dinov2_names_and_timms_positions_are_read() {
    let (_, model) = models()[3].clone();
    let mut ours = filled(&model).tensors();
    let official = ours.iter().map(|(name, tensor)| {
        let bare = name.strip_prefix("backbone.").unwrap();
        (bare.replace("reg_token", "register_tokens"), tensor.clone())
    });
    let mask = ("mask_token".to_owned(), ours["backbone.norm.bias"].clone());
    let read = to_own_names(official.chain([mask])).unwrap();
    assert_eq!(read.layout, Layout::Dinov2);
    assert_eq!(bits(&read.tensors), bits(&ours));
    assert!(read.left_out.keys().eq(["mask_token"]));

    // timm's models with registers have no position of the class token.
    let positions = ours["backbone.pos_embed"].clone();
    let without = positions.narrow(1, 1, 16).unwrap().contiguous().unwrap();
    ours.insert("backbone.pos_embed".to_owned(), without);
    let read = to_own_names(ours).unwrap().tensors["backbone.pos_embed"].clone();
    assert_eq!(read.dims(), [1, 17, 32]);
    let class = read.narrow(1, 0, 1).unwrap();
    assert!(values(&class).iter().all(|value| *value == 0.0));
    let patches = |xs: &Tensor| values(&xs.narrow(1, 1, 16).unwrap());
    assert_eq!(patches(&read), patches(&positions));
}

#[test]
fn a_swiglu_of_the_official_names_is_told_from_its_shapes() {
    let (_, model) = models()[2].clone();
    let ours = filled(&model).tensors();
    let official = ours.iter().map(|(name, tensor)| {
        let bare = name.strip_prefix("backbone.").unwrap();
        let name = bare
            .replace("mlp.fc1", "mlp.w12")
            .replace("mlp.fc2", "mlp.w3");
        (name, tensor.clone())
    });
    let read = to_own_names(official).unwrap();
    assert_eq!(bits(&read.tensors), bits(&ours));
    // A width of 32 tells no number of heads; the same parts at 64 do.
    let wide = ModelConfig {
        embed_dim: 64,
        num_heads: 1,
        pos_embed_resample: PosEmbedResample::Official,
        ..model
    };
    let inferred = infer(&filled(&wide).tensors()).unwrap().model;
    assert_eq!(inferred.mlp, MlpKind::Swiglu);
    assert_eq!((inferred.embed_dim, inferred.depth), (64, 2));
}

/// Official checkpoints in small, by the script of `selfsame-pth`'s golden files.
#[test]
fn student_and_teacher_of_a_pth_are_told_apart() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../selfsame-pth/tests/golden/checkpoint.pth");
    let teacher = read_weights(&path, Which::Teacher).unwrap();
    let student = read_weights(&path, Which::Student).unwrap();
    assert_eq!(
        teacher.tensors.keys().next().unwrap(),
        "backbone.0.bias",
        "prefixes are not dropped"
    );
    // The same module in the script, so the values agree.
    assert_eq!(bits(&teacher.tensors), bits(&student.tensors));
    assert!(teacher.left_out.contains_key("dino_loss.center"));
    assert!(
        teacher
            .left_out
            .keys()
            .any(|name| name.starts_with("student."))
    );
    let left = |of: &ImportedWeights, prefix: &str| -> bool {
        of.left_out.keys().any(|name| name.starts_with(prefix))
    };
    assert!(left(&student, "teacher.") && !left(&student, "student."));
    assert!(!left(&teacher, "teacher."));
    assert_eq!(teacher.tensors["backbone.1.num_batches_tracked"].rank(), 0);
}

#[test]
fn attention_leaves_the_registers_out_and_layers_give_patches() {
    let (_, model) = models()[3].clone();
    let store = filled(&model);
    let backbone = build_backbone(&model, &store).unwrap();
    let xs = tensor("images32", &[2, 3, 32, 32], 1.0);
    let maps = backbone.attention_maps(&xs, 1).unwrap().unwrap();
    assert_eq!(maps.dims(), [2, 2, 17, 17]);
    let class = backbone.class_attention(&xs, 1).unwrap().unwrap();
    let row = values(&maps.narrow(2, 0, 1).unwrap());
    for (found, expected) in values(&class).iter().zip(&row) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    let row: f64 = values(&maps.narrow(2, 0, 1).unwrap()).iter().take(17).sum();
    assert!(row > 0.0 && row < 1.0 - 1e-4, "{row}");
    let layers = backbone.intermediate_layers(&xs, 2).unwrap();
    assert_eq!(layers[1].1.dims(), [2, 16, 32]);
    assert_eq!(
        values(&layers[1].0),
        values(&backbone.forward(&xs, &Mode::Eval).unwrap())
    );
}

/// transformers 5 keeps the two matrices of a SwiGLU apart in memory, and packs them in files.
#[test]
fn an_unpacked_swiglu_is_packed() {
    let (_, model) = models()[2].clone();
    let ours = filled(&model).tensors();
    let mut theirs = to_hf(&ours).unwrap();
    for index in 0..2 {
        for field in ["weight", "bias"] {
            let mlp = format!("encoder.layer.{index}.mlp");
            let packed = theirs.remove(&format!("{mlp}.weights_in.{field}")).unwrap();
            let parts = packed.chunk(2, 0).unwrap();
            theirs.insert(format!("{mlp}.gate_proj.{field}"), parts[0].clone());
            theirs.insert(format!("{mlp}.up_proj.{field}"), parts[1].clone());
            let down = theirs
                .remove(&format!("{mlp}.weights_out.{field}"))
                .unwrap();
            theirs.insert(format!("{mlp}.down_proj.{field}"), down);
        }
    }
    assert_eq!(bits(&to_own_names(theirs).unwrap().tensors), bits(&ours));
}
