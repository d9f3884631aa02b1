//! A graph while it is written: nodes in order, constants by name.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::OPSET;
use super::proto::{
    Attribute, Constant, Dimension, Entry, FLOAT, Graph as GraphProto, INT64, Model, Node,
    OperatorSet, Shape, TensorType, Type, ValueInfo,
};
use crate::error::ModelError;

/// Name of the model's input.
pub(super) const INPUT: &str = "pixels";

/// A size of an output: known, or named.
pub(super) enum Size {
    Known(usize),
    Named(&'static str),
}

/// An output's name and its sizes after the batch.
pub(super) type Output = (&'static str, Vec<Size>);

pub(super) struct Graph<'a> {
    weights: &'a BTreeMap<String, Tensor>,
    nodes: Vec<Node>,
    constants: BTreeMap<String, Constant>,
}

impl<'a> Graph<'a> {
    pub(super) fn new(weights: &'a BTreeMap<String, Tensor>) -> Self {
        Self {
            weights,
            nodes: Vec::new(),
            constants: BTreeMap::new(),
        }
    }

    /// A weight by its name without `backbone.`.
    pub(super) fn tensor(&self, name: &str) -> Result<&'a Tensor, ModelError> {
        let full = format!("backbone.{name}");
        let tensor = self.weights.get(&full);
        tensor.ok_or_else(|| ModelError::Unrecognised(format!("there is no {full}")))
    }

    /// A weight as a constant, as it is; its name in the graph.
    pub(super) fn weight(&mut self, name: &str) -> Result<String, ModelError> {
        let tensor = self.tensor(name)?;
        self.constant(name, tensor)
    }

    /// A tensor as an f32 constant of this name.
    pub(super) fn constant(&mut self, name: &str, tensor: &Tensor) -> Result<String, ModelError> {
        let flat = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let values: Vec<f32> = flat.flatten_all()?.to_vec1()?;
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Ok(self.insert(name, FLOAT, tensor.dims(), bytes))
    }

    /// Whole numbers as a constant: a list, or a scalar if `dims` is empty.
    pub(super) fn integers(&mut self, name: &str, dims: &[usize], values: &[i64]) -> String {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.insert(name, INT64, dims, bytes)
    }

    /// One number.
    pub(super) fn number(&mut self, name: &str, value: f32) -> String {
        self.insert(name, FLOAT, &[], value.to_le_bytes().to_vec())
    }

    fn insert(&mut self, name: &str, data_type: i32, dims: &[usize], raw_data: Vec<u8>) -> String {
        let constant = Constant {
            dims: dims.iter().map(|size| *size as i64).collect(),
            data_type,
            name: name.to_owned(),
            raw_data,
        };
        self.constants.insert(name.to_owned(), constant);
        name.to_owned()
    }

    /// Adds a node with one output; the output's name. The node's own name differs from it, since
    /// there are runtimes that look both up in one table.
    pub(super) fn node(
        &mut self,
        op: &str,
        output: &str,
        inputs: &[&str],
        attributes: Vec<Attribute>,
    ) -> String {
        self.nodes.push(Node {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            name: format!("node/{output}"),
            op_type: op.to_owned(),
            attribute: attributes,
        });
        output.to_owned()
    }

    /// The model with an input of `side` pixels, or of any size.
    pub(super) fn finish(
        self,
        side: Option<usize>,
        outputs: Vec<Output>,
        metadata: &BTreeMap<String, String>,
    ) -> Model {
        let sizes = match side {
            Some(side) => vec![Size::Known(3), Size::Known(side), Size::Known(side)],
            None => vec![Size::Known(3), Size::Named("height"), Size::Named("width")],
        };
        let graph = GraphProto {
            node: self.nodes,
            name: "backbone".to_owned(),
            initializer: self.constants.into_values().collect(),
            input: vec![value_info(INPUT, sizes)],
            output: outputs
                .into_iter()
                .map(|(name, sizes)| value_info(name, sizes))
                .collect(),
        };
        let entry = |(key, value): (&String, &String)| Entry {
            key: key.clone(),
            value: value.clone(),
        };
        Model {
            ir_version: 8,
            producer_name: "selfsame".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(graph),
            opset_import: vec![OperatorSet {
                domain: String::new(),
                version: OPSET,
            }],
            metadata_props: metadata.iter().map(entry).collect(),
        }
    }
}

fn value_info(name: &str, sizes: Vec<Size>) -> ValueInfo {
    let dimension = |size| match size {
        Size::Known(size) => Dimension {
            dim_value: Some(size as i64),
            dim_param: None,
        },
        Size::Named(name) => Dimension {
            dim_value: None,
            dim_param: Some(name.to_owned()),
        },
    };
    let sizes = [Size::Named("batch")].into_iter().chain(sizes);
    let shape = Shape {
        dim: sizes.map(dimension).collect(),
    };
    ValueInfo {
        name: name.to_owned(),
        r#type: Some(Type {
            tensor_type: Some(TensorType {
                elem_type: FLOAT,
                shape: Some(shape),
            }),
        }),
    }
}
