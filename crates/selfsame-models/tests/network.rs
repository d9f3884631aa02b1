//! Student and teacher as whole networks.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod common;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use common::{larger, tensor, values};
use selfsame_models::interop::Layout;
use selfsame_models::{
    Arch, BatchStats, Beside, DinoHead, Draws, HeadConfig, HeadKind, ImportedWeights, InitForm,
    MODEL_KEY, Mode, ModelConfig, Network, ParamKind, ParamStore, Which, backbone_specs,
    build_backbone, draw_backbone, network_specs, read_weights,
};

const TRAIN: Mode = Mode::Train(Draws {
    seed: 5,
    step: 0,
    micro_batch: 0,
    first_row: 0,
});

fn tiny() -> (ModelConfig, HeadConfig) {
    let model = ModelConfig {
        arch: Arch::VitTiny,
        embed_dim: 64,
        depth: 2,
        num_heads: 1,
        patch_size: 8,
        image_size: 32,
        ..Default::default()
    };
    (
        model,
        HeadConfig {
            out_dim: 24,
            use_bn: true,
            ..Default::default()
        },
    )
}

fn count(specs: &[selfsame_models::ParamSpec]) -> usize {
    let weights = specs.iter().filter(|spec| spec.kind != ParamKind::Buffer);
    weights.map(|spec| spec.shape.elem_count()).sum()
}

#[test]
fn backbones_have_the_published_numbers_of_parameters() {
    // timm.create_model(name, num_classes=0); `_patch16_224` for the transformers
    for (arch, patch_size, expected) in [
        (Arch::VitTiny, 16, 5_524_416),
        (Arch::VitSmall, 16, 21_665_664),
        (Arch::VitSmall, 8, 21_670_272),
        (Arch::VitBase, 16, 85_798_656),
        (Arch::Resnet18, 16, 11_176_512),
        (Arch::Resnet50, 16, 23_508_032),
    ] {
        let config = ModelConfig {
            arch,
            patch_size,
            image_size: 224,
            ..Default::default()
        };
        assert_eq!(
            count(&backbone_specs(&config).unwrap()),
            expected,
            "{arch}/{patch_size}"
        );
    }
}

#[test]
fn parameters_have_the_published_names() {
    let names = |model: &ModelConfig, head: &HeadConfig| -> Vec<String> {
        network_specs(model, head)
            .unwrap()
            .into_iter()
            .map(|spec| spec.name)
            .collect()
    };
    let (model, head) = tiny();
    let notebook = names(&model, &head);
    for name in [
        "backbone.cls_token",
        "backbone.pos_embed",
        "backbone.patch_embed.proj.weight",
        "backbone.blocks.1.attn.qkv.bias",
        "backbone.blocks.0.attn.proj.weight",
        "backbone.blocks.0.mlp.fc2.bias",
        "backbone.norm.weight",
        "head.mlp.0.weight",
        "head.mlp.2.running_var",
        "head.mlp.3.bias",
        "head.mlp.5.num_batches_tracked",
        "head.last_layer.weight",
    ] {
        assert!(
            notebook.iter().any(|found| found == name),
            "{name} is missing"
        );
    }
    let official = HeadConfig {
        kind: HeadKind::Official,
        use_bn: false,
        ..head
    };
    let resnet = ModelConfig {
        arch: Arch::Resnet50,
        ..Default::default()
    };
    let official = names(&resnet, &official);
    for name in [
        "backbone.bn1.running_mean",
        "backbone.layer1.0.downsample.0.weight",
        "backbone.layer4.2.bn3.num_batches_tracked",
        "head.mlp.4.weight",
        "head.last_layer.weight_g",
        "head.last_layer.weight_v",
    ] {
        assert!(
            official.iter().any(|found| found == name),
            "{name} is missing"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let (model, head) = tiny();
    let run = |seed| {
        let (student, store) = Network::new(&model, &head, seed, &Device::Cpu).unwrap();
        let crops = [tensor("global", &[2, 3, 32, 32], 2.0)];
        let logits = student.forward_all(&crops, &TRAIN).unwrap();
        (
            values(&logits),
            store
                .tensors()
                .values()
                .flat_map(values)
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).1, run(8).1);
}

#[test]
fn the_first_values_follow_the_head_unless_chosen() {
    let (model, notebook) = tiny();
    let official = HeadConfig {
        kind: HeadKind::Official,
        ..notebook.clone()
    };
    let spread = |init, head: &HeadConfig| {
        let model = ModelConfig {
            init,
            ..model.clone()
        };
        let (_, store) = Network::new(&model, head, 1, &Device::Cpu).unwrap();
        let cls = values(&store.tensors()["backbone.cls_token"]);
        cls.iter().fold(0f64, |max, v| max.max(v.abs()))
    };
    assert!(spread(InitForm::Auto, &notebook) < 1e-5);
    assert!(spread(InitForm::Auto, &official) > 1e-2);
    assert!(spread(InitForm::Timm, &official) < 1e-5);
    assert!(spread(InitForm::Official, &notebook) > 1e-2);

    let resnet = ModelConfig {
        arch: Arch::Resnet18,
        ..Default::default()
    };
    for (head, gamma) in [(&notebook, 0.0), (&official, 1.0)] {
        let specs = network_specs(&resnet, head).unwrap();
        let last = specs
            .iter()
            .find(|spec| spec.name == "backbone.layer1.0.bn2.weight")
            .unwrap();
        assert_eq!(last.init, selfsame_models::Init::Constant(gamma));
    }
}

#[test]
fn the_teacher_starts_as_the_student_records_no_graph_and_sees_updates() {
    let (model, head) = tiny();
    let (student, store) = Network::new(&model, &head, 1, &Device::Cpu).unwrap();
    let (teacher, teacher_store) = Network::teacher_of(&model, &head, &store).unwrap();
    let crops = [tensor("global", &[4, 3, 32, 32], 2.0)];
    let before = teacher.forward_all(&crops, &TRAIN).unwrap();
    assert_eq!(
        values(&before),
        values(&student.forward_all(&crops, &TRAIN).unwrap())
    );

    // Backward from a teacher's output reaches nothing.
    let grads = before.sum_all().unwrap().backward().unwrap();
    let all = teacher_store
        .weights()
        .values()
        .chain(store.weights().values());
    assert!(
        all.into_iter()
            .all(|var| grads.get(var.as_tensor()).is_none())
    );

    let weight = &teacher_store.weights()["head.last_layer.weight"];
    weight.set(&tensor("other", weight.dims(), 1.0)).unwrap();
    assert_ne!(
        values(&before),
        values(&teacher.forward_all(&crops, &TRAIN).unwrap())
    );
    assert_eq!(
        values(&before),
        values(&student.forward_all(&crops, &TRAIN).unwrap())
    );
}

#[test]
fn teacher_and_student_keep_running_statistics_of_their_own() {
    let (model, head) = tiny();
    let (student, store) = Network::new(&model, &head, 1, &Device::Cpu).unwrap();
    let (_, teacher_store) = Network::teacher_of(&model, &head, &store).unwrap();
    let crops = [
        tensor("global", &[4, 3, 32, 32], 2.0),
        tensor("local", &[4, 3, 16, 16], 2.0),
    ];
    student.forward_all(&crops, &TRAIN).unwrap();
    let count = |store: &ParamStore| {
        let count = &store.buffers()["head.mlp.2.num_batches_tracked"];
        count.to_scalar::<i64>().unwrap()
    };
    // One head pass over all resolutions.
    assert_eq!((count(&store), count(&teacher_store)), (1, 0));
    let before = values(&store.tensors()["head.mlp.2.running_mean"]);
    student.forward_all(&crops, &Mode::Eval).unwrap();
    assert_eq!(values(&store.tensors()["head.mlp.2.running_mean"]), before);
}

#[test]
fn recorded_passes_move_running_statistics_when_they_are_told_to() {
    let (_, head) = tiny();
    let resnet = ModelConfig {
        arch: Arch::Resnet18,
        ..Default::default()
    };
    let (at_once, store) = Network::new(&resnet, &head, 1, &Device::Cpu).unwrap();
    let (later, later_store) = Network::teacher_of(&resnet, &head, &store).unwrap();
    let buffers = |store: &ParamStore| -> Vec<Vec<f64>> {
        let all = store.buffers().values();
        all.map(|var| values(&var.to_dtype(DType::F32).unwrap()))
            .collect()
    };
    let first = buffers(&store);
    let crops = [
        tensor("global", &[4, 3, 32, 32], 2.0),
        tensor("local", &[4, 3, 16, 16], 2.0),
    ];
    let flag = |done: f32| Tensor::new(&[done], &Device::Cpu).unwrap();
    for done in [None, Some(flag(1.0))] {
        let mut seen = BatchStats::default();
        let before = buffers(&store);
        for _ in 0..2 {
            let want = at_once.forward_all(&crops, &TRAIN).unwrap();
            let got = seen.recording(|| later.forward_all(&crops, &TRAIN));
            assert_eq!(values(&got.unwrap()), values(&want));
        }
        assert!(buffers(&later_store) == before);
        seen.apply(done.as_ref()).unwrap();
        assert!(buffers(&later_store) == buffers(&store));
        let unmoved = buffers(&store);
        let unmoved = unmoved.iter().zip(&before).filter(|(a, b)| a == b);
        assert_eq!(unmoved.count(), 0);
    }

    let before = buffers(&store);
    let mut seen = BatchStats::default();
    seen.recording(|| at_once.forward_all(&crops, &TRAIN))
        .unwrap();
    seen.apply(Some(&flag(0.0))).unwrap();
    assert!(buffers(&store) == before && before != first);
    // Behind a recording they move at once again.
    at_once.forward_all(&crops, &TRAIN).unwrap();
    assert!(buffers(&store) != before);
}

#[test]
fn several_resolutions_give_the_rows_of_each_in_order() {
    let (model, head) = tiny();
    let (student, _) = Network::new(&model, &head, 1, &Device::Cpu).unwrap();
    let crops = [
        tensor("global", &[4, 3, 32, 32], 2.0),
        tensor("local", &[6, 3, 16, 16], 2.0),
    ];
    let all = values(&student.forward_all(&crops, &Mode::Eval).unwrap());
    let each: Vec<f64> = crops
        .iter()
        .flat_map(|xs| {
            values(
                &student
                    .forward_all(std::slice::from_ref(xs), &Mode::Eval)
                    .unwrap(),
            )
        })
        .collect();
    assert_eq!(all.len(), each.len());
    let off = all
        .iter()
        .zip(&each)
        .fold(0f64, |max, (a, b)| larger(max, (a - b).abs()));
    assert!(off < 1e-5, "{off:e}");
}

#[test]
fn drop_path_follows_the_draws_and_spares_the_teacher() {
    let (model, head) = tiny();
    let model = ModelConfig {
        drop_path_rate: 0.5,
        ..model
    };
    let (student, store) = Network::new(&model, &head, 1, &Device::Cpu).unwrap();
    common::perturb(&store, 0.2);
    let (teacher, _) = Network::teacher_of(&model, &head, &store).unwrap();
    let crops = [tensor("global", &[8, 3, 32, 32], 2.0)];
    let run = |network: &Network, step| {
        let mode = Mode::Train(Draws {
            step,
            ..Default::default()
        });
        values(&network.forward_with_features(&crops, &mode).unwrap().0)
    };
    assert_eq!(run(&student, 0), run(&student, 0));
    assert_ne!(run(&student, 0), run(&student, 1));
    assert_eq!(run(&teacher, 0), run(&teacher, 1));
}

#[test]
fn the_short_way_through_the_last_block_changes_nothing() {
    let (model, head) = tiny();
    let (_, store) = Network::new(&model, &head, 1, &Device::Cpu).unwrap();
    let backbone = build_backbone(&model, &store).unwrap();
    let xs = tensor("global", &[2, 3, 32, 32], 2.0);
    let short = values(&backbone.forward(&xs, &Mode::Eval).unwrap());
    let whole = values(&backbone.intermediate_layers(&xs, 1).unwrap()[0].0);
    let off = short
        .iter()
        .zip(&whole)
        .fold(0f64, |max, (a, b)| larger(max, (a - b).abs()));
    assert!(off < 1e-5, "{off:e}");
}

#[test]
fn an_image_that_is_no_whole_number_of_patches_is_refused() {
    let (model, head) = tiny();
    let (student, _) = Network::new(&model, &head, 1, &Device::Cpu).unwrap();
    let error = student.forward_all(&[tensor("odd", &[1, 3, 30, 32], 1.0)], &Mode::Eval);
    assert!(error.unwrap_err().to_string().contains("30x32"));
    assert!(student.forward_all(&[], &Mode::Eval).is_err());
}

#[test]
fn images_of_another_form_are_told_by_their_shape() {
    let (vit, _) = tiny();
    let resnet = ModelConfig {
        arch: Arch::Resnet18,
        ..ModelConfig::default()
    };
    for model in [vit, resnet] {
        let store = draw_backbone(&model, 0, &Device::Cpu).unwrap();
        let backbone = build_backbone(&model, &store).unwrap();
        for dims in [&[2, 1, 32, 32][..], &[0, 3, 32, 32], &[3, 32, 32]] {
            let xs = Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
            let error = backbone.forward(&xs, &Mode::Eval).unwrap_err().to_string();
            assert!(error.contains(&format!("f32 {dims:?}")), "{error}");
        }
        let xs = Tensor::zeros((1, 3, 32, 32), DType::F64, &Device::Cpu).unwrap();
        let error = backbone.forward(&xs, &Mode::Eval).unwrap_err().to_string();
        assert!(error.contains("f64 [1, 3, 32, 32]"), "{error}");
    }
}

#[test]
fn a_head_can_be_had_by_itself() {
    let (_, config) = tiny();
    let (head, store) = DinoHead::draw(&config, 48, 7, &Device::Cpu).unwrap();
    let logits = head.forward(&tensor("features", &[5, 48], 1.0), &Mode::Eval);
    assert_eq!(logits.unwrap().dims(), [5, config.out_dim]);
    assert!(
        store
            .trainable()
            .keys()
            .all(|name| name.starts_with("head."))
    );
    let none = HeadConfig {
        out_dim: 0,
        ..config
    };
    assert!(DinoHead::draw(&none, 48, 7, &Device::Cpu).is_err());
}

#[test]
fn a_file_that_states_its_model_is_believed() {
    let model = ModelConfig {
        embed_dim: 128,
        num_heads: 4,
        ..tiny().0
    };
    let store = draw_backbone(&model, 1, &Device::Cpu).unwrap();
    let mut weights = ImportedWeights {
        tensors: store.tensors(),
        left_out: BTreeMap::new(),
        metadata: BTreeMap::new(),
        layout: Layout::Selfsame,
    };
    let num_heads = |beside: &Beside| {
        let model = weights.model(beside).unwrap();
        model.vit_dims().unwrap().num_heads
    };
    assert_eq!(num_heads(&Beside::default()), 2);
    let dir = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "architecture": "vit_tiny_patch8_224",
        "model_args": {"img_size": model.image_size, "patch_size": model.patch_size,
            "embed_dim": 128, "depth": model.depth, "num_heads": 8},
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    });
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let beside = Beside::read(&dir.path().join("model.safetensors")).unwrap();
    assert_eq!(num_heads(&beside), 8);
    let input = weights.input(&beside, &model).unwrap().unwrap();
    assert_eq!((input.image_size, input.mean), (model.image_size, [0.5; 3]));
    let unsaid = weights.input(&Beside::default(), &model);
    assert_eq!(unsaid.unwrap(), None);
    let text = serde_json::to_string(&model).unwrap();
    weights.metadata.insert(MODEL_KEY.to_owned(), text);
    assert_eq!(weights.model(&beside).unwrap(), model);
}

#[test]
fn a_weights_file_comes_back_and_a_backbone_loads_without_its_head() {
    let (model, head) = tiny();
    let (_, store) = Network::new(&model, &head, 1, &Device::Cpu).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("student.safetensors");
    let tensors: std::collections::HashMap<String, Tensor> = store.tensors().into_iter().collect();
    candle_core::safetensors::save(&tensors, &path).unwrap();

    let weights = read_weights(&path, Which::Teacher).unwrap();
    let inferred = selfsame_models::infer(&weights.tensors).unwrap();
    assert_eq!(inferred.model, model_as_inferred(&model));
    let (_, other) = Network::new(&model, &head, 2, &Device::Cpu).unwrap();
    other.load(&weights.tensors).unwrap();
    for (name, tensor) in store.tensors() {
        assert_eq!(values(&tensor), values(&other.tensors()[&name]), "{name}");
    }

    let alone = selfsame_models::draw_backbone(&model, 3, &Device::Cpu).unwrap();
    assert!(
        alone
            .load(&weights.tensors)
            .unwrap_err()
            .to_string()
            .contains("head.mlp.0.weight")
    );
    alone.load_part(&weights.tensors, "backbone.").unwrap();
    let xs = tensor("global", &[2, 3, 32, 32], 2.0);
    let features = |store| {
        values(
            &build_backbone(&model, store)
                .unwrap()
                .forward(&xs, &Mode::Eval)
                .unwrap(),
        )
    };
    assert_eq!(features(&store), features(&alone));
}

/// The same dimensions, as defaults of the nearest architecture with overrides.
fn model_as_inferred(model: &ModelConfig) -> ModelConfig {
    ModelConfig {
        arch: Arch::VitSmall,
        ..model.clone()
    }
}
