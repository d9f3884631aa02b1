//! Against `torch.load` (`golden/make_golden.py`).

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use selfsame_pth::{DType, PthError, PthFile, PthTensor};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.pth"))
}

fn dtype(name: &str) -> DType {
    match name {
        "float64" => DType::F64,
        "float32" => DType::F32,
        "float16" => DType::F16,
        "bfloat16" => DType::BF16,
        "int64" => DType::I64,
        "int32" => DType::I32,
        "int16" => DType::I16,
        "int8" => DType::I8,
        "uint8" => DType::U8,
        "bool" => DType::Bool,
        other => panic!("{other}"),
    }
}

fn values(tensor: &PthTensor) -> Vec<f64> {
    let le = |bytes: &[u8]| {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(wide)
    };
    let value = |bytes: &[u8]| match tensor.dtype {
        DType::F64 => f64::from_bits(le(bytes)),
        DType::F32 => f32::from_bits(le(bytes) as u32).into(),
        DType::BF16 => f32::from_bits((le(bytes) as u32) << 16).into(),
        // Whole numbers below 100: normal halves only.
        DType::F16 => match le(bytes) as u16 {
            0 => 0.0,
            bits => {
                (1.0 + f64::from(bits & 0x3ff) / 1024.0) * 2f64.powi(i32::from(bits >> 10) - 15)
            }
        },
        DType::I64 => le(bytes) as i64 as f64,
        DType::I32 => f64::from(le(bytes) as i32),
        DType::I16 => f64::from(le(bytes) as i16),
        DType::I8 => f64::from(le(bytes) as i8),
        DType::U8 | DType::Bool => le(bytes) as f64,
    };
    tensor
        .bytes
        .chunks(tensor.dtype.size())
        .map(value)
        .collect()
}

#[test]
fn every_tensor_is_what_torch_finds() {
    let expected = include_str!("golden/expected.json");
    let expected: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_str(expected).unwrap();
    let mut files = 0;
    for (name, tensors) in &expected {
        if tensors.is_empty() {
            continue;
        }
        let mut file = PthFile::open(&golden(name)).unwrap();
        let found = file.read(|_| true).unwrap();
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            tensors.keys().collect::<Vec<_>>(),
            "{name}"
        );
        for (key, tensor) in &found {
            let expected = &tensors[key];
            assert_eq!(tensor.dtype, dtype(expected["dtype"].as_str().unwrap()));
            let shape: Vec<usize> = serde_json::from_value(expected["shape"].clone()).unwrap();
            assert_eq!(tensor.shape, shape, "{name}: {key}");
            assert_eq!(file.tensors()[key].shape, shape);
            let expected: Vec<f64> = serde_json::from_value(expected["values"].clone()).unwrap();
            // The JSON reader rounds the last bit of an f64.
            let single =
                |values: Vec<f64>| -> Vec<f32> { values.iter().map(|v| *v as f32).collect() };
            assert_eq!(single(values(tensor)), single(expected), "{name}: {key}");
        }
        files += 1;
    }
    assert_eq!(files, 6);
}

#[test]
fn only_what_is_asked_for_is_read() {
    let mut file = PthFile::open(&golden("checkpoint")).unwrap();
    let teacher = file.read(|name| name.starts_with("teacher.")).unwrap();
    assert!(!teacher.is_empty() && teacher.len() < file.tensors().len());
    assert!(
        teacher
            .keys()
            .all(|name| name.starts_with("teacher.backbone."))
    );
    assert!(file.tensors().contains_key("dino_loss.center"));
}

#[test]
fn a_file_without_tensors_says_what_it_holds() {
    let Err(error) = PthFile::open(&golden("no_tensors")) else {
        panic!("it opened");
    };
    assert!(matches!(error, PthError::NoTensors { .. }));
    let text = error.to_string();
    assert!(
        text.contains("epoch (a number), list (a list), name (a text)"),
        "{text}"
    );
}

#[test]
fn the_old_form_is_refused_with_the_way_out() {
    let Err(error) = PthFile::open(&golden("legacy")) else {
        panic!("it opened");
    };
    assert!(matches!(error, PthError::Legacy));
    assert!(
        error.to_string().contains("torch.save(torch.load("),
        "{error}"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let Err(error) = PthFile::open("no/such.pth".as_ref()) else {
        panic!("it opened");
    };
    assert!(error.to_string().contains("no/such.pth"), "{error}");
}

#[test]
fn a_folder_is_named_and_said_to_be_one() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let Err(error) = PthFile::open(&folder) else {
        panic!("it opened");
    };
    assert!(matches!(error, PthError::Folder { .. }));
    assert_eq!(
        error.to_string(),
        format!(
            "cannot read {}: it is a folder, not a file",
            folder.display()
        )
    );
}
