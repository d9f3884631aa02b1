//! `selfsame embed`

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use candle_core::{Device, Tensor};
use selfsame_checkpoint::{write_bytes, write_tensors};
use selfsame_eval::Features;

use crate::cli::Embed;
use crate::embedding::embed_all;
use crate::exit::Done;
use crate::out;
use crate::overwriting::{refuse_overwriting, refuse_overwriting_pictures};
use crate::progress::counted;
use crate::stderr::tell;
use crate::weights::Weights;
use crate::{data, device};

pub(crate) fn run(args: &Embed) -> anyhow::Result<Done> {
    let flags = &args.weights;
    let kind = out::kind(&args.out, &["safetensors", "npy", "csv"])?;
    let out = ("--out", args.out.as_path());
    refuse_overwriting(
        out,
        &[
            ("--weights", Path::new(&flags.weights)),
            ("--data", Path::new(&args.data)),
        ],
    )?;
    device::set_threads(flags.threads)?;
    let device = device::open(&flags.device)?;
    let set = data::of_flags(&args.data, flags)?;
    refuse_overwriting_pictures(out, ("--data", set.as_ref()))?;
    let weights = Weights::open(&flags.weights, flags.which, flags.arch.as_deref(), &device)?;
    let all: Vec<usize> = (0..set.len()).collect();
    let done = embed_all(&set, &args.data, &all, &weights, flags, &device)?;
    let features = if args.normalize {
        done.features.l2_normalized()
    } else {
        done.features
    };
    let files: Vec<&str> = done.samples.iter().map(|i| set.name(*i)).collect();
    match kind {
        "safetensors" => {
            let tensor =
                Tensor::from_slice(&features.data, (features.n, features.d), &Device::Cpu)?;
            let tensors = BTreeMap::from([("features".to_owned(), tensor)]);
            let metadata = BTreeMap::from([("files".to_owned(), serde_json::to_string(&files)?)]);
            write_tensors(&args.out, &tensors, &metadata)?;
        }
        "npy" => write_bytes(&args.out, &npy(&features))?,
        _ => write_bytes(&args.out, csv(&features, &files).as_bytes())?,
    }
    tell!(
        "{} × {} features in {}; {} left out",
        features.n,
        features.d,
        args.out.display(),
        counted(all.len() - done.samples.len(), "picture", "pictures")
    );
    Ok(Done::Well)
}

/// NumPy's format 1.0: magic, header padded to 64 bytes, little-endian f32 rows.
fn npy(features: &Features) -> Vec<u8> {
    let (n, d) = (features.n, features.d);
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n}, {d}), }}");
    let unpadded = 10 + header.len() + 1;
    header.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(features.data.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

fn csv(features: &Features, files: &[&str]) -> String {
    let mut text = String::from("file");
    for i in 0..features.d {
        let _ = write!(text, ",f{i}");
    }
    text.push('\n');
    for (file, row) in files.iter().zip(features.rows()) {
        text.push_str(&quoted(file));
        for value in row {
            let _ = write!(text, ",{value}");
        }
        text.push('\n');
    }
    text
}

/// A cell of a CSV file, between quotes if it needs them.
pub(super) fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_npy_header_is_padded_and_says_the_shape() {
        let features = Features::new(2, 3, vec![1.0; 6]).unwrap();
        let bytes = npy(&features);
        assert_eq!((bytes.len() - 24) % 64, 0);
        let text = String::from_utf8_lossy(&bytes[10..128]).into_owned();
        assert!(
            text.contains("'descr': '<f4', 'fortran_order': False"),
            "{text}"
        );
        assert!(
            text.contains("(2, 3)") && bytes[bytes.len() - 25] == b'\n',
            "{text}"
        );
    }

    #[test]
    fn csv_quotes_a_comma_in_a_name() {
        let features = Features::new(1, 2, vec![0.5, -1.0]).unwrap();
        assert_eq!(
            csv(&features, &["a,b.jpg"]),
            "file,f0,f1\n\"a,b.jpg\",0.5,-1\n"
        );
    }
}
