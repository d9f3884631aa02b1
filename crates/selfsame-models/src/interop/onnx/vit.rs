//! The vision transformer, plain and DINOv2's, as ONNX nodes.

use candle_core::Tensor;

use super::graph::{Graph, INPUT, Output, Size};
use super::proto::Attribute;
use crate::config::{MlpKind, ModelConfig, VitDims};
use crate::error::ModelError;

/// What all blocks share.
struct Shared {
    tokens: usize,
    mlp: MlpKind,
    scaled: bool,
    /// Reshapes `[B, T, 3 D]` to `[B, T, 3, heads, D / heads]`.
    split: String,
    /// Reshapes back to `[B, T, D]`.
    merge: String,
    /// Scalars 0, 1 and 2.
    thirds: [String; 3],
    scale: String,
    half: String,
    one: String,
    sqrt_half: String,
}

pub(super) fn build(
    config: &ModelConfig,
    dims: VitDims,
    graph: &mut Graph<'_>,
) -> Result<Vec<Output>, ModelError> {
    let (d, p) = (dims.embed_dim, config.patch_size);
    let side = config.image_size / p;
    let (patches, prefix) = (side * side, 1 + config.num_registers);
    let mut xs = tokens(config, dims, patches, graph)?;
    let head_dim = d / dims.num_heads;
    let heads = [
        0,
        (prefix + patches) as i64,
        3,
        dims.num_heads as i64,
        head_dim as i64,
    ];
    let shared = Shared {
        tokens: prefix + patches,
        mlp: config.mlp,
        scaled: config.layer_scale != 0.0,
        split: graph.integers("shape.heads", &[5], &heads),
        merge: graph.integers(
            "shape.tokens",
            &[3],
            &[0, (prefix + patches) as i64, d as i64],
        ),
        thirds: [0, 1, 2].map(|third| graph.integers(&format!("index.{third}"), &[], &[third])),
        scale: graph.number("attention.scale", 1.0 / (head_dim as f32).sqrt()),
        half: graph.number("half", 0.5),
        one: graph.number("one", 1.0),
        sqrt_half: graph.number("sqrt_half", std::f32::consts::FRAC_1_SQRT_2),
    };
    for index in 0..dims.depth {
        xs = block(&format!("blocks.{index}"), &xs, &shared, graph)?;
    }
    let xs = layer_norm("norm", &xs, graph)?;
    graph.node(
        "Gather",
        "class_token",
        &[&xs, &shared.thirds[0]],
        vec![Attribute::int("axis", 1)],
    );
    let from = graph.integers("patches.from", &[1], &[prefix as i64]);
    let to = graph.integers("patches.to", &[1], &[shared.tokens as i64]);
    let axis = graph.integers("patches.axis", &[1], &[1]);
    graph.node("Slice", "patch_tokens", &[&xs, &from, &to, &axis], vec![]);
    Ok(vec![
        ("class_token", vec![Size::Known(d)]),
        ("patch_tokens", vec![Size::Known(patches), Size::Known(d)]),
    ])
}

/// Class token and registers, which are constants, then patches with their positions.
fn tokens(
    config: &ModelConfig,
    dims: VitDims,
    patches: usize,
    graph: &mut Graph<'_>,
) -> Result<String, ModelError> {
    let (d, p) = (dims.embed_dim, config.patch_size as i64);
    let (weight, bias) = (
        graph.weight("patch_embed.proj.weight")?,
        graph.weight("patch_embed.proj.bias")?,
    );
    let square = [p, p];
    let xs = graph.node(
        "Conv",
        "patch_embed",
        &[INPUT, &weight, &bias],
        vec![
            Attribute::ints("kernel_shape", &square),
            Attribute::ints("strides", &square),
        ],
    );
    let rows = graph.integers("shape.patches", &[3], &[0, d as i64, patches as i64]);
    let xs = graph.node("Reshape", "patch_embed.rows", &[&xs, &rows], vec![]);
    let turn = vec![Attribute::ints("perm", &[0, 2, 1])];
    let xs = graph.node("Transpose", "patch_embed.tokens", &[&xs], turn);

    let positions = graph.tensor("pos_embed")?;
    let of_patches = positions.narrow(1, 1, patches)?;
    let of_patches = graph.constant("pos_embed.patches", &of_patches)?;
    let xs = graph.node("Add", "patches", &[&xs, &of_patches], vec![]);

    let class = (graph.tensor("cls_token")? + positions.narrow(1, 0, 1)?)?;
    let prefix = match config.num_registers {
        0 => class,
        _ => Tensor::cat(&[&class, graph.tensor("reg_token")?], 1)?,
    };
    let count = prefix.dim(1)? as i64;
    let prefix = graph.constant("prefix", &prefix)?;
    let batch = vec![Attribute::int("start", 0), Attribute::int("end", 1)];
    let batch = graph.node("Shape", "batch", &[INPUT], batch);
    let rest = graph.integers("shape.prefix.rest", &[2], &[count, d as i64]);
    let axis = |axis| vec![Attribute::int("axis", axis)];
    let shape = graph.node("Concat", "shape.prefix", &[&batch, &rest], axis(0));
    let prefix = graph.node("Expand", "prefix.batch", &[&prefix, &shape], vec![]);
    Ok(graph.node("Concat", "tokens", &[&prefix, &xs], axis(1)))
}

fn block(
    name: &str,
    xs: &str,
    shared: &Shared,
    graph: &mut Graph<'_>,
) -> Result<String, ModelError> {
    let ys = layer_norm(&format!("{name}.norm1"), xs, graph)?;
    let ys = attention(&format!("{name}.attn"), &ys, shared, graph)?;
    let ys = scaled(&format!("{name}.ls1"), ys, shared, graph)?;
    let xs = graph.node("Add", &format!("{name}.mixed"), &[xs, &ys], vec![]);
    let ys = layer_norm(&format!("{name}.norm2"), &xs, graph)?;
    let ys = linear(&format!("{name}.mlp.fc1"), &ys, graph)?;
    let ys = activation(&format!("{name}.mlp.act"), &ys, shared, graph)?;
    let ys = linear(&format!("{name}.mlp.fc2"), &ys, graph)?;
    let ys = scaled(&format!("{name}.ls2"), ys, shared, graph)?;
    Ok(graph.node("Add", &format!("{name}.out"), &[&xs, &ys], vec![]))
}

fn attention(
    name: &str,
    xs: &str,
    shared: &Shared,
    graph: &mut Graph<'_>,
) -> Result<String, ModelError> {
    let perm = |perm: &[i64]| vec![Attribute::ints("perm", perm)];
    let at = |part: &str| format!("{name}.{part}");
    let qkv = linear(&at("qkv"), xs, graph)?;
    let qkv = graph.node("Reshape", &at("split"), &[&qkv, &shared.split], vec![]);
    let qkv = graph.node("Transpose", &at("thirds"), &[&qkv], perm(&[2, 0, 3, 1, 4]));
    let mut third = |part: &str, index: usize| {
        let axis = vec![Attribute::int("axis", 0)];
        graph.node("Gather", &at(part), &[&qkv, &shared.thirds[index]], axis)
    };
    let (q, k, v) = (third("q", 0), third("k", 1), third("v", 2));
    let q = graph.node("Mul", &at("q.scaled"), &[&q, &shared.scale], vec![]);
    let k = graph.node("Transpose", &at("k.turned"), &[&k], perm(&[0, 1, 3, 2]));
    let scores = graph.node("MatMul", &at("scores"), &[&q, &k], vec![]);
    let last = vec![Attribute::int("axis", -1)];
    let maps = graph.node("Softmax", &at("maps"), &[&scores], last);
    let ys = graph.node("MatMul", &at("heads"), &[&maps, &v], vec![]);
    let ys = graph.node("Transpose", &at("tokens"), &[&ys], perm(&[0, 2, 1, 3]));
    let ys = graph.node("Reshape", &at("merged"), &[&ys, &shared.merge], vec![]);
    linear(&at("proj"), &ys, graph)
}

/// GELU by erf, or SwiGLU.
fn activation(
    name: &str,
    xs: &str,
    shared: &Shared,
    graph: &mut Graph<'_>,
) -> Result<String, ModelError> {
    let at = |part: &str| format!("{name}.{part}");
    match shared.mlp {
        MlpKind::Gelu => {
            let ys = graph.node("Mul", &at("scaled"), &[xs, &shared.sqrt_half], vec![]);
            let ys = graph.node("Erf", &at("erf"), &[&ys], vec![]);
            let ys = graph.node("Add", &at("shifted"), &[&ys, &shared.one], vec![]);
            let ys = graph.node("Mul", &at("share"), &[&ys, &shared.half], vec![]);
            Ok(graph.node("Mul", name, &[xs, &ys], vec![]))
        }
        MlpKind::Swiglu => {
            let hidden = graph.tensor("blocks.0.mlp.fc2.weight")?.dim(1)? as i64;
            let axis = graph.integers("last_axis", &[1], &[2]);
            let mut part = |part: &str, from: i64, to: i64| {
                let bounds = [("from", from), ("to", to)].map(|(bound, value)| {
                    graph.integers(&format!("swiglu.{part}.{bound}"), &[1], &[value])
                });
                graph.node(
                    "Slice",
                    &at(part),
                    &[xs, &bounds[0], &bounds[1], &axis],
                    vec![],
                )
            };
            let (gate, value) = (part("gate", 0, hidden), part("value", hidden, 2 * hidden));
            let open = graph.node("Sigmoid", &at("open"), &[&gate], vec![]);
            let silu = graph.node("Mul", &at("silu"), &[&gate, &open], vec![]);
            Ok(graph.node("Mul", name, &[&silu, &value], vec![]))
        }
    }
}

fn scaled(
    name: &str,
    xs: String,
    shared: &Shared,
    graph: &mut Graph<'_>,
) -> Result<String, ModelError> {
    if !shared.scaled {
        return Ok(xs);
    }
    let gamma = graph.weight(&format!("{name}.gamma"))?;
    Ok(graph.node("Mul", name, &[&xs, &gamma], vec![]))
}

fn layer_norm(name: &str, xs: &str, graph: &mut Graph<'_>) -> Result<String, ModelError> {
    let (weight, bias) = (
        graph.weight(&format!("{name}.weight"))?,
        graph.weight(&format!("{name}.bias"))?,
    );
    let attributes = vec![
        Attribute::int("axis", -1),
        Attribute::float("epsilon", 1e-6),
    ];
    Ok(graph.node(
        "LayerNormalization",
        name,
        &[xs, &weight, &bias],
        attributes,
    ))
}

/// `xs Wᵀ + b`; the constant is stored turned, as `MatMul` wants it.
fn linear(name: &str, xs: &str, graph: &mut Graph<'_>) -> Result<String, ModelError> {
    let turned = graph.tensor(&format!("{name}.weight"))?.t()?;
    let weight = graph.constant(&format!("{name}.weight.turned"), &turned)?;
    let bias = graph.weight(&format!("{name}.bias"))?;
    let ys = graph.node("MatMul", &format!("{name}.product"), &[xs, &weight], vec![]);
    Ok(graph.node("Add", name, &[&ys, &bias], vec![]))
}
