//! The pickle as data: a machine that knows the opcodes PyTorch writes and runs nothing.

mod globals;
mod machine;
mod reader;

use crate::dtype::DType;
use crate::strided::Layout;

pub(crate) use machine::parse;

/// Where an object stands in [`Objects`]; copying it is sharing, as in Python.
pub(crate) type Id = u32;

/// All objects that a pickle made, and which one it is about.
pub(crate) struct Objects {
    pub(crate) nodes: Vec<Node>,
    pub(crate) root: Id,
}

impl Objects {
    pub(crate) fn get(&self, id: Id) -> &Node {
        // Ids come from the machine that filled `nodes`.
        self.nodes.get(id as usize).unwrap_or(&Node::None)
    }
}

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes,
    /// A tuple, list or set.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage),
    Tensor(Tensor),
    /// A tensor of a kind that is known but not read, or its storage; the kind.
    Unreadable(&'static str),
    /// An object of an allowed class that holds no weights, such as `argparse.Namespace`.
    Opaque(&'static str),
}

/// An allowed class or function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Global {
    Dict,
    Sequence,
    RebuildTensor,
    RebuildTensorTyped,
    RebuildParameter,
    RebuildFromType,
    /// A storage class; `None` for `UntypedStorage`, whose elements are bytes.
    Storage(Option<DType>),
    Dtype(DType),
    /// An element type, storage class or function of tensors that are known but not read.
    Unreadable(&'static str),
    /// A class whose objects are passed over, or a function that makes one.
    Opaque(&'static str),
}

/// A run of elements in an entry of its own.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Storage {
    pub(crate) key: String,
    pub(crate) dtype: Option<DType>,
    pub(crate) elements: u64,
}

/// A view on a storage.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) storage: Storage,
    pub(crate) dtype: DType,
    pub(crate) layout: Layout,
    /// Whether the elements are those of the storage with the other sign, which PyTorch then has
    /// not yet computed.
    pub(crate) negative: bool,
}
