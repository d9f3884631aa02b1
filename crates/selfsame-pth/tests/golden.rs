//! Against `torch.load` (`golden/make_golden.py`).

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use selfsame_pth::{DType, Limits, PthError, PthFile, PthTensor};
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
            0 | 0x8000 => 0.0,
            bits => {
                let exponent = i32::from(bits >> 10 & 0x1f) - 15;
                let magnitude = (1.0 + f64::from(bits & 0x3ff) / 1024.0) * 2f64.powi(exponent);
                [magnitude, -magnitude][usize::from(bits >> 15)]
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
        let mut file = PthFile::open(golden(name)).unwrap();
        let unreadable = file.unreadable().clone();
        let found = file.read(|name| !unreadable.contains_key(name)).unwrap();
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
    assert_eq!(files, 9);
}

#[test]
fn tensors_of_other_kinds_are_named_and_leave_the_others_readable() {
    let mut file = PthFile::open(golden("kinds")).unwrap();
    let kinds = [
        ("complex", "torch.ComplexFloatStorage"),
        ("float8", "torch.float8_e4m3fn"),
        ("meta", "torch._utils._rebuild_meta_tensor_no_storage"),
        ("negative_int", "a view that is not yet computed"),
        ("nested", "torch._utils._rebuild_nested_tensor"),
        ("parameter", "torch.ComplexFloatStorage"),
        ("quantized", "torch._utils._rebuild_qtensor"),
        ("sparse", "torch._utils._rebuild_sparse_tensor"),
        ("uint16", "torch.uint16"),
    ];
    let found = file.unreadable().iter();
    let found: Vec<(&str, &str)> = found.map(|(name, kind)| (name.as_str(), *kind)).collect();
    assert_eq!(found, kinds);
    assert_eq!(file.read(|name| name == "weight").unwrap().len(), 1);
    for (name, kind) in kinds {
        let error = file.read(|asked| asked == name).unwrap_err();
        let text = error.to_string();
        let begin = format!("its tensor {name}: {kind} is not read");
        assert!(text.starts_with(&begin), "{text}");
    }
}

#[test]
fn floating_point_numbers_come_as_f32_and_others_do_not() {
    for name in ["types", "negative"] {
        let tensors = PthFile::open(golden(name)).unwrap().read(|_| true).unwrap();
        for (key, tensor) in &tensors {
            let floats = tensor.to_f32();
            let is_float = matches!(
                tensor.dtype,
                DType::F64 | DType::F32 | DType::F16 | DType::BF16
            );
            assert_eq!(floats.is_some(), is_float, "{name}: {key}");
            let Some(floats) = floats else { continue };
            let wide: Vec<f64> = floats.into_iter().map(f64::from).collect();
            assert_eq!(wide, values(tensor), "{name}: {key}");
        }
    }
}

#[test]
fn every_half_is_the_same_number_as_f32() {
    let half = |bits: u16| {
        let tensor = PthTensor {
            dtype: DType::F16,
            shape: vec![1],
            bytes: bits.to_le_bytes().to_vec(),
        };
        tensor.to_f32().unwrap()[0]
    };
    // IEEE 754: one, the largest, the smallest normal and subnormal, infinity.
    for (bits, value) in [
        (0x3c00, 1.0),
        (0x7bff, 65504.0),
        (0x0400, 2f32.powi(-14)),
        (0x0001, 2f32.powi(-24)),
        (0x03ff, 1023.0 * 2f32.powi(-24)),
        (0x7c00, f32::INFINITY),
    ] {
        assert_eq!(half(bits), value, "{bits:#x}");
        assert_eq!(half(bits | 0x8000), -value, "{bits:#x}");
    }
    assert!(half(0x7e00).is_nan());
    assert!(half(0x8000).is_sign_negative());
    // All finite ones grow with their bits.
    let all: Vec<f32> = (0..0x7c00).map(half).collect();
    assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn only_what_is_asked_for_is_read() {
    let mut file = PthFile::open(golden("checkpoint")).unwrap();
    let teacher = file.read(|name| name.starts_with("teacher.")).unwrap();
    assert!(!teacher.is_empty() && teacher.len() < file.tensors().len());
    assert!(
        teacher
            .keys()
            .all(|name| name.starts_with("teacher.backbone."))
    );
    assert!(file.tensors().contains_key("dino_loss.center"));

    // Damage to a storage of another tensor does not matter.
    let mut bytes = std::fs::read(golden("checkpoint")).unwrap();
    let center: Vec<u8> = (0..5u8).flat_map(|x| f32::from(x).to_le_bytes()).collect();
    let place = bytes.windows(center.len()).position(|part| part == center);
    bytes[place.unwrap()] ^= 1;
    let mut file = PthFile::new(std::io::Cursor::new(bytes), Limits::default()).unwrap();
    let again = file.read(|name| name.starts_with("teacher."));
    assert_eq!(again.unwrap(), teacher);
    let error = file.read(|name| name == "dino_loss.center").unwrap_err();
    assert!(matches!(error, PthError::Archive(_)), "{error}");
}

#[test]
fn a_file_without_tensors_says_what_it_holds() {
    let Err(error) = PthFile::open(golden("no_tensors")) else {
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
    let Err(error) = PthFile::open(golden("legacy")) else {
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
    let Err(error) = PthFile::open("no/such.pth") else {
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
