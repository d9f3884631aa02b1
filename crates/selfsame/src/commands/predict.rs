//! `selfsame predict`

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use candle_core::{Device, Tensor};
use selfsame_checkpoint::{TensorFile, read_tensor_file};
use selfsame_data::annotations;
use selfsame_eval::Features;
use selfsame_models::{MlpClassifier, Mode};
use serde_json::json;

use super::finetune::{CLASSES_KEY, EVAL_KEY, LABEL_KEY};
use crate::cli::{Predict, WeightsArgs};
use crate::embedding::embed_all;
use crate::exit::{Done, usage_of};
use crate::out;
use crate::overwriting::{refuse_overwriting, refuse_overwriting_pictures};
use crate::scores::{print_json, print_text, printable};
use crate::stderr::tell;
use crate::weights::{FINETUNED, Weights};
use crate::{data, device};

pub(crate) fn run(args: &Predict) -> anyhow::Result<Done> {
    let flags = &args.weights;
    out::kind(&args.out, &["csv"])?;
    let out = ("--out", args.out.as_path());
    let inputs = [
        ("--weights", Path::new(&flags.weights)),
        ("--data", Path::new(&args.data)),
    ];
    refuse_overwriting(out, &inputs)?;
    device::set_threads(flags.threads)?;
    let device = device::open(&flags.device)?;
    let set = data::of_flags(&args.data, flags)?;
    refuse_overwriting_pictures(out, ("--data", set.as_ref()))?;
    let head = Head::read(&flags.weights)?;
    let flags = &head.prepared(flags);
    let weights = Weights::open(&flags.weights, flags.which, flags.arch.as_deref(), &device)?;
    let all: Vec<usize> = (0..set.len()).collect();
    let done = embed_all(&set, &args.data, &all, &weights, flags, &device)?;
    let probabilities = head.probabilities(&done.features, &device)?;

    let header = head.header();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut counts: BTreeMap<&str, usize> = head.classes.iter().map(|c| (c.as_str(), 0)).collect();
    let mut rows = Vec::new();
    for (sample, of_picture) in done.samples.iter().zip(&probabilities) {
        let best = best_of(of_picture);
        let class = &head.classes[best];
        *counts.entry(class).or_default() += 1;
        let shown = |probability: f64| format!("{probability:.6}");
        let mut row = vec![
            set.name(*sample).to_owned(),
            class.clone(),
            shown(of_picture[best]),
        ];
        row.extend(of_picture.iter().copied().map(shown));
        rows.push(row);
    }
    annotations::write(&args.out, &header, &rows)?;

    let left_out = all.len() - rows.len();
    if args.json {
        print_json(&json!({
            "out": args.out.to_string_lossy(), "label": head.label, "pictures": rows.len(),
            "left_out": left_out, "predicted": counts,
        }));
    } else {
        for (class, count) in &counts {
            print_text(&printable(&format!("{count:>8} {class}")));
        }
        tell!(
            "{} of {} pictures in {}; {left_out} left out",
            head.label,
            rows.len(),
            args.out.display()
        );
    }
    Ok(Done::Well)
}

/// What a fine-tuning put on its backbone.
struct Head {
    tensors: BTreeMap<String, Tensor>,
    classes: Vec<String>,
    label: String,
    /// `resize` and `interpolation` of the pictures, if the file tells.
    eval: serde_json::Value,
}

impl Head {
    /// Reads it from the file, or the folder, of a fine-tuning.
    ///
    /// # Errors
    /// A usage error if there is no such file, or no classifier in it.
    fn read(spec: &str) -> anyhow::Result<Self> {
        let refusal = || {
            usage_of(
                "--weights",
                format!(
                    "{spec}: there is no classifier; name what `selfsame finetune` made, its --run \
                     or the {FINETUNED} in it"
                ),
            )
        };
        let path = match Path::new(spec) {
            folder if folder.is_dir() => folder.join(FINETUNED),
            file => file.to_owned(),
        };
        let is_ours = path.extension().is_some_and(|kind| kind == "safetensors");
        if !is_ours || !path.is_file() {
            return Err(refusal());
        }
        let TensorFile {
            mut tensors,
            metadata,
        } = read_tensor_file(&path, &Device::Cpu)?;
        tensors.retain(|name, _| name.starts_with("new_head."));
        let classes = metadata.get(CLASSES_KEY).ok_or_else(refusal)?;
        let classes = serde_json::from_str(classes)
            .with_context(|| format!("{}: {CLASSES_KEY} in its metadata", path.display()))?;
        Ok(Self {
            tensors,
            classes,
            eval: metadata
                .get(EVAL_KEY)
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default(),
            label: metadata
                .get(LABEL_KEY)
                .map_or("class", String::as_str)
                .to_owned(),
        })
    }

    /// The flags, with what they leave open as it was in fine-tuning.
    fn prepared(&self, flags: &WeightsArgs) -> WeightsArgs {
        let mut flags = flags.clone();
        if flags.resize.is_none() {
            flags.resize = self.eval["resize"].as_f64();
        }
        if flags.interpolation.is_none() {
            let filter = self.eval["interpolation"].as_str();
            flags.interpolation = filter.map(str::to_owned);
        }
        flags
    }

    /// The columns, of which no two are one to who reads the file as annotations.
    fn header(&self) -> Vec<String> {
        // What a column of paths may be called, or is said beside the label.
        let taken = ["images", "image", "file", "path", "probability"];
        let label = match taken.contains(&self.label.as_str()) {
            true => "predicted".to_owned(),
            false => self.label.clone(),
        };
        let mut header = vec!["file".to_owned(), label, "probability".to_owned()];
        for class in &self.classes {
            let mut name = format!("p_{class}");
            while header
                .iter()
                .any(|other| other.to_lowercase() == name.to_lowercase())
            {
                name.push('_');
            }
            header.push(name);
        }
        header
    }

    /// The probability of each class for each row.
    ///
    /// # Errors
    /// If the classifier is of another backbone.
    fn probabilities(&self, features: &Features, device: &Device) -> anyhow::Result<Vec<Vec<f64>>> {
        let (n, d) = (features.n, features.d);
        let (head, params) = MlpClassifier::new(d, self.classes.len(), 0, device)?;
        params.load_part(&self.tensors, "new_head.")?;
        let rows = Tensor::from_slice(&features.data, (n, d), device)?;
        let logits: Vec<Vec<f32>> = head.forward(&rows, &Mode::Eval)?.to_vec2()?;
        Ok(logits.iter().map(|logits| softmax(logits)).collect())
    }
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut shares: Vec<f64> = logits
        .iter()
        .map(|logit| f64::from(logit - highest).exp())
        .collect();
    let sum: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= sum);
    shares
}

/// The first of the largest.
fn best_of(probabilities: &[f64]) -> usize {
    let mut best = 0;
    for (class, probability) in probabilities.iter().enumerate() {
        if *probability > probabilities[best] {
            best = class;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_differ_whatever_classes_and_label_are_called() {
        let head = |label: &str, classes: &[&str]| Head {
            tensors: BTreeMap::new(),
            classes: classes.iter().map(|class| (*class).to_owned()).collect(),
            label: label.to_owned(),
            eval: serde_json::Value::Null,
        };
        assert_eq!(
            head("kind", &["a", "b"]).header(),
            ["file", "kind", "probability", "p_a", "p_b"]
        );
        assert_eq!(
            head("image", &["Heron", "heron"]).header(),
            ["file", "predicted", "probability", "p_Heron", "p_heron_"]
        );
    }

    #[test]
    fn probabilities_sum_to_one_however_large_the_logits_are() {
        let shares = softmax(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(shares, [0.5, 0.5, 0.0]);
        assert_eq!(best_of(&shares), 0);
        assert_eq!(best_of(&softmax(&[0.0, 3.0, 1.0])), 1);
    }
}
