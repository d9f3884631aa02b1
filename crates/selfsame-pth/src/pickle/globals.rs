//! The list of classes and functions that a weights file may name, and what calling one means.

use super::{Global, Id, Node, Objects, Storage, Tensor};
use crate::dtype::DType;
use crate::strided::Layout;

/// Longest storage key; PyTorch's are decimal numbers.
const MAX_KEY: usize = 32;

/// Most dimensions of a tensor.
const MAX_RANK: usize = 32;

/// What makes tensors that are known but not read; a file with some can still be read otherwise.
const UNREADABLE: [&str; 23] = [
    "torch.ComplexFloatStorage",
    "torch.ComplexDoubleStorage",
    "torch.QInt8Storage",
    "torch.QInt32Storage",
    "torch.QUInt8Storage",
    "torch.QUInt4x2Storage",
    "torch.QUInt2x4Storage",
    "torch.complex32",
    "torch.complex64",
    "torch.complex128",
    "torch.float4_e2m1fn_x2",
    "torch.float8_e4m3fn",
    "torch.float8_e4m3fnuz",
    "torch.float8_e5m2",
    "torch.float8_e5m2fnuz",
    "torch.float8_e8m0fnu",
    "torch.uint16",
    "torch.uint32",
    "torch.uint64",
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_nested_tensor",
    "torch._utils._rebuild_meta_tensor_no_storage",
];

/// The meaning of `module.name`; `None` if it is not on the list.
pub(super) fn lookup(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict" | "defaultdict" | "Counter")
        | ("builtins" | "__builtin__", "dict") => Global::Dict,
        ("builtins" | "__builtin__", "set" | "list" | "tuple" | "frozenset")
        | ("torch", "Size") => Global::Sequence,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTensorTyped,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Global::RebuildParameter
        }
        ("torch._tensor", "_rebuild_from_type_v2") => Global::RebuildFromType,
        ("torch.storage", "UntypedStorage") => Global::Storage(None),
        ("torch", class) if DType::of_storage(class).is_some() => {
            Global::Storage(DType::of_storage(class))
        }
        ("torch", "float64" | "double") => Global::Dtype(DType::F64),
        ("torch", "float32" | "float") => Global::Dtype(DType::F32),
        ("torch", "float16" | "half") => Global::Dtype(DType::F16),
        ("torch", "bfloat16") => Global::Dtype(DType::BF16),
        ("torch", "int64" | "long") => Global::Dtype(DType::I64),
        ("torch", "int32" | "int") => Global::Dtype(DType::I32),
        ("torch", "int16" | "short") => Global::Dtype(DType::I16),
        ("torch", "int8") => Global::Dtype(DType::I8),
        ("torch", "uint8") => Global::Dtype(DType::U8),
        ("torch", "bool") => Global::Dtype(DType::Bool),
        ("torch", "Tensor") => Global::Opaque("torch.Tensor"),
        ("torch.nn.parameter", "Parameter") => Global::Opaque("torch.nn.Parameter"),
        ("torch", "device") => Global::Opaque("torch.device"),
        // Beside sparse and quantized tensors.
        ("torch.serialization", "_get_layout") => Global::Opaque("torch.layout"),
        (
            "torch",
            "per_tensor_affine"
            | "per_channel_affine"
            | "per_tensor_symmetric"
            | "per_channel_symmetric"
            | "per_channel_affine_float_qparams",
        ) => Global::Opaque("torch.qscheme"),
        // Training arguments, and numbers that came out of numpy, beside the weights.
        ("argparse", "Namespace") => Global::Opaque("argparse.Namespace"),
        ("copyreg" | "copy_reg", "_reconstructor") => Global::Opaque("object"),
        ("builtins" | "__builtin__", "object") => Global::Opaque("object"),
        ("builtins" | "__builtin__", "int" | "float" | "bool" | "str") => Global::Opaque("type"),
        ("numpy" | "numpy.dtypes", "dtype") => Global::Opaque("numpy.dtype"),
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => {
            Global::Opaque("numpy scalar")
        }
        ("_codecs", "encode") => Global::Opaque("bytes"),
        // The second is what Python 3.13 calls it.
        (
            "pathlib" | "pathlib._local",
            "PosixPath" | "WindowsPath" | "PurePosixPath" | "PureWindowsPath" | "Path",
        ) => Global::Opaque("path"),
        _ => {
            let is_it = |full: &&&str| {
                let rest = full.strip_prefix(module);
                rest.and_then(|rest| rest.strip_prefix('.')) == Some(name)
            };
            Global::Unreadable(UNREADABLE.iter().find(is_it)?)
        }
    })
}

/// The object that calling `global` with `args` makes; the error is the reason why there is none.
pub(super) fn call(objects: &Objects, global: Global, args: &[Id]) -> Result<Node, String> {
    match global {
        Global::Dict => match args {
            [] => Ok(Node::Dict(Vec::new())),
            [id] => match objects.get(*id) {
                Node::Sequence(pairs) => pairs_of(objects, pairs),
                Node::Dict(pairs) => Ok(Node::Dict(pairs.clone())),
                // The factory of a defaultdict.
                _ => Ok(Node::Dict(Vec::new())),
            },
            _ => Err("a dictionary is made of more than one argument".to_owned()),
        },
        Global::Sequence => match args.iter().map(|id| objects.get(*id)).next() {
            None => Ok(Node::Sequence(Vec::new())),
            Some(Node::Sequence(items)) => Ok(Node::Sequence(items.clone())),
            Some(_) => Err("a sequence is made of something else".to_owned()),
        },
        Global::RebuildTensor => {
            let [storage, offset, shape, strides, ..] = args else {
                return Err("a tensor has too few arguments".to_owned());
            };
            let storage = match objects.get(*storage) {
                Node::Unreadable(kind) => return Ok(Node::Unreadable(kind)),
                _ => storage_of(objects, *storage)?,
            };
            let dtype = storage
                .dtype
                .ok_or_else(|| "a tensor's storage has no element type".to_owned())?;
            let tensor = tensor(objects, storage, dtype, [*offset, *shape, *strides])?;
            with_metadata(objects, tensor, args.get(6))
        }
        Global::RebuildTensorTyped => {
            let [storage, offset, shape, strides, _, _, dtype, ..] = args else {
                return Err("a tensor has too few arguments".to_owned());
            };
            let dtype = match objects.get(*dtype) {
                Node::Global(Global::Dtype(dtype)) => dtype,
                Node::Global(Global::Unreadable(kind)) => return Ok(Node::Unreadable(kind)),
                _ => return Err("a tensor's element type is none".to_owned()),
            };
            let storage = storage_of(objects, *storage)?;
            let tensor = tensor(objects, storage, *dtype, [*offset, *shape, *strides])?;
            with_metadata(objects, tensor, args.get(7))
        }
        Global::RebuildParameter => match args.first().map(|id| objects.get(*id)) {
            Some(node @ (Node::Tensor(_) | Node::Unreadable(_))) => Ok(node.clone()),
            _ => Err("a parameter is not made of a tensor".to_owned()),
        },
        Global::RebuildFromType => match args {
            [function, _, inner, ..] => match (objects.get(*function), objects.get(*inner)) {
                (
                    Node::Global(
                        function @ (Global::RebuildTensor
                        | Global::RebuildTensorTyped
                        | Global::RebuildParameter
                        | Global::Unreadable(_)),
                    ),
                    Node::Sequence(inner),
                ) => call(objects, *function, inner),
                _ => Err("a tensor subclass is rebuilt by something else".to_owned()),
            },
            _ => Err("a tensor subclass has too few arguments".to_owned()),
        },
        Global::Unreadable(kind) => Ok(Node::Unreadable(kind)),
        Global::Opaque(class) => Ok(Node::Opaque(class)),
        Global::Storage(_) | Global::Dtype(_) => Err("a type is called".to_owned()),
    }
}

/// The storage of a persistent id: `("storage", class, key, location, elements)`.
pub(super) fn persistent(objects: &Objects, id: Id) -> Result<Node, String> {
    let wrong = || "a persistent id is not a storage".to_owned();
    let Node::Sequence(parts) = objects.get(id) else {
        return Err(wrong());
    };
    let parts: Vec<&Node> = parts.iter().map(|id| objects.get(*id)).collect();
    let [
        Node::Text(kind),
        Node::Global(class),
        Node::Text(key),
        _,
        Node::Int(elements),
        ..,
    ] = parts.as_slice()
    else {
        return Err(wrong());
    };
    // The key becomes part of an entry's name; PyTorch numbers them.
    let is_plain = (1..=MAX_KEY).contains(&key.len())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if kind != "storage" || !is_plain {
        return Err(wrong());
    }
    let dtype = match class {
        Global::Storage(dtype) => *dtype,
        Global::Unreadable(kind) => return Ok(Node::Unreadable(kind)),
        _ => return Err(wrong()),
    };
    Ok(Node::Storage(Storage {
        key: key.clone(),
        dtype,
        elements: u64::try_from(*elements).map_err(|_| wrong())?,
    }))
}

/// A tensor with the marks that PyTorch keeps beside it (`torch._utils.set_tensor_metadata`): `neg`
/// says that its elements are still to be negated; a mark that is not known makes it one that is
/// not read.
fn with_metadata(objects: &Objects, tensor: Tensor, metadata: Option<&Id>) -> Result<Node, String> {
    let marks = match metadata.map(|id| objects.get(*id)) {
        None | Some(Node::None) => return Ok(Node::Tensor(tensor)),
        Some(Node::Dict(marks)) => marks,
        Some(_) => return Err("a tensor's metadata are no dictionary".to_owned()),
    };
    let mut negative = false;
    for (key, value) in marks {
        match (objects.get(*key), objects.get(*value)) {
            (_, Node::Bool(false)) => {}
            (Node::Text(key), Node::Bool(true)) if key == "neg" && tensor.dtype.is_float() => {
                negative = true;
            }
            _ => return Ok(Node::Unreadable("a view that is not yet computed")),
        }
    }
    Ok(Node::Tensor(Tensor { negative, ..tensor }))
}

fn pairs_of(objects: &Objects, pairs: &[Id]) -> Result<Node, String> {
    let pair = |id: &Id| match objects.get(*id) {
        Node::Sequence(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
        _ => Err("a dictionary is made of something that is no pair".to_owned()),
    };
    Ok(Node::Dict(
        pairs.iter().map(pair).collect::<Result<_, _>>()?,
    ))
}

fn storage_of(objects: &Objects, id: Id) -> Result<&Storage, String> {
    match objects.get(id) {
        Node::Storage(storage) => Ok(storage),
        _ => Err("a tensor has no storage".to_owned()),
    }
}

fn tensor(
    objects: &Objects,
    storage: &Storage,
    dtype: DType,
    [offset, shape, strides]: [Id; 3],
) -> Result<Tensor, String> {
    let size = |id: Id| match objects.get(id) {
        Node::Int(value) => {
            usize::try_from(*value).map_err(|_| format!("a tensor has a size or stride of {value}"))
        }
        _ => Err("a tensor has a size that is no number".to_owned()),
    };
    let sizes = |id: Id| match objects.get(id) {
        Node::Sequence(items) => items
            .iter()
            .map(|id| size(*id))
            .collect::<Result<Vec<_>, _>>(),
        _ => Err("a tensor's shape is no tuple".to_owned()),
    };
    let layout = Layout {
        offset: size(offset)?,
        shape: sizes(shape)?,
        strides: sizes(strides)?,
    };
    if layout.shape.len() != layout.strides.len() || layout.shape.len() > MAX_RANK {
        return Err(format!(
            "a tensor has {} sizes and {} strides",
            layout.shape.len(),
            layout.strides.len()
        ));
    }
    Ok(Tensor {
        storage: storage.clone(),
        dtype,
        layout,
        negative: false,
    })
}
