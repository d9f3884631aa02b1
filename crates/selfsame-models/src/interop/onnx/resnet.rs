//! The ResNet as ONNX nodes.

use super::graph::{Graph, INPUT, Output, Size};
use super::proto::Attribute;
use crate::config::ModelConfig;
use crate::error::ModelError;

pub(super) fn build(
    config: &ModelConfig,
    graph: &mut Graph<'_>,
) -> Result<Vec<Output>, ModelError> {
    let xs = convolution(("conv1", "bn1"), INPUT, 2, graph)?;
    let xs = graph.node("Relu", "stem", &[&xs], vec![]);
    let pool = vec![
        Attribute::ints("kernel_shape", &[3, 3]),
        Attribute::ints("strides", &[2, 2]),
        Attribute::ints("pads", &[1, 1, 1, 1]),
    ];
    let mut xs = graph.node("MaxPool", "pooled_stem", &[&xs], pool);
    for stage in 1..=4 {
        for index in 0.. {
            let name = format!("layer{stage}.{index}");
            if graph.tensor(&format!("{name}.conv1.weight")).is_err() {
                break;
            }
            let stride = if stage > 1 && index == 0 { 2 } else { 1 };
            xs = block(&name, &xs, stride, graph)?;
        }
    }
    graph.node("Identity", "feature_map", &[&xs], vec![]);
    let mean = graph.node("GlobalAveragePool", "mean", &[&xs], vec![]);
    graph.node(
        "Flatten",
        "features",
        &[&mean],
        vec![Attribute::int("axis", 1)],
    );
    let d = config.feature_dim();
    let map = vec![Size::Known(d), Size::Named("rows"), Size::Named("columns")];
    Ok(vec![
        ("features", vec![Size::Known(d)]),
        ("feature_map", map),
    ])
}

/// The stride stands on the 3×3 convolution: the first of a basic block, the second of a
/// bottleneck.
fn block(name: &str, xs: &str, stride: i64, graph: &mut Graph<'_>) -> Result<String, ModelError> {
    let last = if graph.tensor(&format!("{name}.conv3.weight")).is_ok() {
        3
    } else {
        2
    };
    let strided = last - 1;
    let mut ys = xs.to_owned();
    for number in 1..=last {
        let names = (format!("{name}.conv{number}"), format!("{name}.bn{number}"));
        let stride = if number == strided { stride } else { 1 };
        ys = convolution((&names.0, &names.1), &ys, stride, graph)?;
        if number < last {
            ys = graph.node("Relu", &format!("{name}.relu{number}"), &[&ys], vec![]);
        }
    }
    let shortcut = if graph.tensor(&format!("{name}.downsample.0.weight")).is_ok() {
        let names = (
            format!("{name}.downsample.0"),
            format!("{name}.downsample.1"),
        );
        convolution((&names.0, &names.1), xs, stride, graph)?
    } else {
        xs.to_owned()
    };
    let sum = graph.node("Add", &format!("{name}.sum"), &[&ys, &shortcut], vec![]);
    Ok(graph.node("Relu", &format!("{name}.out"), &[&sum], vec![]))
}

/// A convolution without bias and its batch norm.
fn convolution(
    (conv, bn): (&str, &str),
    xs: &str,
    stride: i64,
    graph: &mut Graph<'_>,
) -> Result<String, ModelError> {
    let kernel = graph.tensor(&format!("{conv}.weight"))?.dim(2)? as i64;
    let weight = graph.weight(&format!("{conv}.weight"))?;
    let attributes = vec![
        Attribute::ints("kernel_shape", &[kernel; 2]),
        Attribute::ints("strides", &[stride; 2]),
        Attribute::ints("pads", &[kernel / 2; 4]),
    ];
    let ys = graph.node("Conv", conv, &[xs, &weight], attributes);
    let mut inputs = vec![ys];
    for part in ["weight", "bias", "running_mean", "running_var"] {
        inputs.push(graph.weight(&format!("{bn}.{part}"))?);
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let eps = vec![Attribute::float("epsilon", 1e-5)];
    Ok(graph.node("BatchNormalization", bn, &inputs, eps))
}
