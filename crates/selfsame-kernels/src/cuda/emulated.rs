//! The kernels, compiled for this processor by g++ under AddressSanitizer and
//! UndefinedBehaviorSanitizer, run with the very launches that the device gets.
//!
//! `tests/cuda_emulation/runner.cpp` says what the emulation finds: wrong numbers, accesses beyond
//! a buffer, missing or divergent barriers, misaligned tiles, elements that nobody writes.
//! The references are this crate's composed operations in f64.

mod attention;
mod batch_norm;
mod branch;
mod conv;
mod normalize;
mod patches;
mod pool;
mod rounded;
mod row_conv;
mod row_norm;
mod row_pool;
mod rows;
mod running_stats;
mod softmax;
mod update;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor, Var};

use super::launch::{Arg, Element, Launch, Word};

/// The emulation, compiled once for all tests of this process.
fn runner() -> &'static Path {
    static RUNNER: OnceLock<PathBuf> = OnceLock::new();
    RUNNER.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_emulation");
        let tests = std::env::current_exe().unwrap();
        let program = tests.with_file_name(format!("cuda-emulation-{}", std::process::id()));
        let done = Command::new("g++")
            .args([
                "-std=c++17",
                "-O1",
                "-g",
                "-Wall",
                "-Wextra",
                "-Wno-unknown-pragmas",
                "-ffp-contract=off",
            ])
            .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
            .arg("-I")
            .arg(&source)
            .arg(source.join("runner.cpp"))
            .arg("-o")
            .arg(&program)
            .status()
            .unwrap();
        assert!(done.success(), "g++ failed: {done}");
        let last = tests.with_file_name("cuda-emulation");
        std::fs::rename(&program, &last).unwrap();
        last
    })
}

/// Memory of the emulated device; a place is the number of a buffer.
#[derive(Default)]
struct Memory {
    buffers: Vec<Vec<u8>>,
    /// Buffer and offset of words that point to another buffer.
    places: Vec<(u32, u64, u32)>,
}

impl Memory {
    fn bytes(&mut self, bytes: Vec<u8>) -> u32 {
        self.buffers.push(bytes);
        self.buffers.len() as u32 - 1
    }

    fn f32(&mut self, values: &[f32]) -> u32 {
        self.bytes(values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Words, some of which are places.
    fn table(&mut self, words: &[Word<u32>]) -> u32 {
        let as_bytes = |word: &Word<u32>| match word {
            Word::Place(_) => [0; 8],
            Word::Value(value) => value.to_le_bytes(),
        };
        let table = self.bytes(words.iter().flat_map(as_bytes).collect());
        for (i, word) in words.iter().enumerate() {
            if let Word::Place(place) = word {
                self.places.push((table, 8 * i as u64, *place));
            }
        }
        table
    }

    /// Elements, rounded if need be.
    fn elements(&mut self, element: Element, values: &[f32]) -> u32 {
        match element {
            Element::F32 => self.f32(values),
            Element::Bf16 => {
                let bits = values.iter().map(|&x| bf16_bits(x));
                self.bytes(bits.flat_map(u16::to_le_bytes).collect())
            }
        }
    }

    /// Elements that a kernel has to write: NaN until it does.
    fn unwritten(&mut self, element: Element, len: usize) -> u32 {
        self.elements(element, &vec![f32::NAN; len])
    }

    fn read(&self, element: Element, place: u32) -> Vec<f32> {
        let bytes = &self.buffers[place as usize];
        match element {
            Element::F32 => {
                let (words, _) = bytes.as_chunks::<4>();
                words.iter().map(|word| f32::from_le_bytes(*word)).collect()
            }
            Element::Bf16 => {
                let (words, _) = bytes.as_chunks::<2>();
                let bits = words.iter().map(|word| u16::from_le_bytes(*word));
                bits.map(|bits| f32::from_bits(u32::from(bits) << 16))
                    .collect()
            }
        }
    }

    /// What the host does in place of a library of the device.
    fn write(&mut self, element: Element, place: u32, values: &[f32]) {
        let written = self.elements(element, values) as usize;
        self.buffers.swap(place as usize, written);
        self.buffers.truncate(written);
    }

    /// Runs the launches in order.
    fn run(&mut self, launches: &[Launch<u32>]) {
        let mut request = Vec::new();
        request.extend((self.buffers.len() as u32).to_le_bytes());
        for buffer in &self.buffers {
            request.extend((buffer.len() as u64).to_le_bytes());
            request.extend(buffer);
        }
        request.extend((self.places.len() as u32).to_le_bytes());
        for (buffer, offset, target) in &self.places {
            request.extend(buffer.to_le_bytes());
            request.extend(offset.to_le_bytes());
            request.extend(target.to_le_bytes());
        }
        request.extend((launches.len() as u32).to_le_bytes());
        for launch in launches {
            request.extend((launch.kernel.len() as u32).to_le_bytes());
            request.extend(launch.kernel.bytes());
            let mut put = |word: u32| request.extend(word.to_le_bytes());
            for word in launch.grid.into_iter().chain(launch.block) {
                put(word);
            }
            put(launch.shared_bytes);
            put(launch.args.len() as u32);
            for arg in &launch.args {
                let (kind, value) = match *arg {
                    Arg::Pointer(place) => (0, place),
                    Arg::Null => (1, 0),
                    Arg::U32(value) => (2, value),
                    Arg::F32(value) => (3, value.to_bits()),
                };
                put(kind);
                put(value);
            }
        }
        let mut process = Command::new(runner())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The answer comes only after the request was read to its end.
        // If it ended early, it says why.
        let _ = process.stdin.take().unwrap().write_all(&request);
        let output = process.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\nof {launches:?}");
        let mut rest = output.stdout.as_slice();
        for buffer in &mut self.buffers {
            let (own, others) = rest.split_at(buffer.len());
            buffer.copy_from_slice(own);
            rest = others;
        }
        assert!(rest.is_empty());
    }
}

/// The nearest bf16, ties to even.
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    match x.is_nan() {
        true => 0x7fc0,
        false => ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16,
    }
}

/// Values as the element type holds them.
fn rounded(element: Element, values: &[f32]) -> Vec<f32> {
    match element {
        Element::F32 => values.to_vec(),
        Element::Bf16 => {
            let bits = values.iter().map(|&x| u32::from(bf16_bits(x)) << 16);
            bits.map(f32::from_bits).collect()
        }
    }
}

/// An f64 variable of these values, to take references and their gradients from.
fn var(values: &[f32], shape: &[usize]) -> Var {
    let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    Var::from_tensor(&tensor.to_dtype(DType::F64).unwrap()).unwrap()
}

fn host(tensor: &Tensor) -> Vec<f64> {
    let values = tensor.flatten_all().unwrap().to_vec1().unwrap();
    assert!(!values.is_empty());
    values
}

/// The scalar whose gradient with respect to `ys` is `grad`.
fn dot(ys: &Tensor, grad: &[f32]) -> Tensor {
    let grad = var(grad, ys.dims());
    (ys * grad.as_tensor()).unwrap().sum_all().unwrap()
}

/// Fails with the first element that is further away than `tolerance` times the largest of all; a
/// NaN is.
fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0f64, |max, x| max.max(x.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let apart = (f64::from(*got) - want).abs();
        assert!(
            apart <= tolerance * largest,
            "{what}: element {i} is {got}, not {want}, with {largest} the largest"
        );
    }
}
