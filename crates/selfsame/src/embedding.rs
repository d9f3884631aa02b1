//! Features of many pictures, with progress and the list of what could not be used.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use selfsame_data::{Dataset, Ledger};
use selfsame_train::{Embedded, Embedder, TrainError};

use crate::cli::WeightsArgs;
use crate::memory::Evaluation;
use crate::progress::CountProgress;
use crate::scores::printable;
use crate::stderr::tell;
use crate::weights::Weights;

/// Features of some pictures of `set`, which `--data` names as `spec`; those that cannot be used are named on stderr.
///
/// # Errors
/// As [`Weights::embed_options`] and [`Evaluation::check`]; if not one of the pictures could be used,
/// naming `spec`; if features are not finite, naming the first such picture.
pub(crate) fn embed_all(
    set: &Arc<dyn Dataset>,
    spec: &str,
    samples: &[usize],
    weights: &Weights,
    flags: &WeightsArgs,
    device: &Device,
) -> anyhow::Result<Embedded> {
    let options = weights.embed_options(flags)?;
    let evaluation = Evaluation {
        weights,
        size: weights.eval_crop(flags)?.image_size,
        batch_size: options.batch_size,
        batch_flag: Some("--batch-size"),
        workers: options.workers,
        pictures: samples.len(),
        // What is scaled, searched and written are copies.
        rows: 3 * samples.len(),
        trains: false,
    };
    evaluation.check(device)?;
    let embedder = Embedder {
        extractor: weights.extractor(),
        options,
        device,
        ledger: Arc::default(),
    };
    let mut progress = CountProgress::new("pictures", samples.len());
    let done = embedder.embed(set, samples, |n| progress.set(n));
    let done = done.map_err(|error| explain(error, "--data", spec))?;
    name_left_out(&embedder.ledger);
    check_finite(&done, set.as_ref())?;
    Ok(done)
}

/// Refuses features that are no numbers, as weights of huge values give.
fn check_finite(done: &Embedded, set: &dyn Dataset) -> anyhow::Result<()> {
    let rows = done.features.rows().zip(&done.samples);
    let mut bad = rows.filter(|(row, _)| row.iter().any(|value| !value.is_finite()));
    let Some((row, sample)) = bad.next() else {
        return Ok(());
    };
    let count = row.iter().filter(|value| !value.is_finite()).count();
    anyhow::bail!(
        "{}: {count} of its {} features are not finite, and so it is with {} other pictures: the \
         weights cannot be used",
        printable(set.name(*sample)),
        row.len(),
        bad.count()
    )
}

/// Of pictures that cannot be used, the flag that names them, and what to do where a file of
/// annotations leads to none; any other error as it is.
pub(crate) fn explain(error: TrainError, flag: &str, spec: &str) -> anyhow::Error {
    let TrainError::Unusable { first, usable, .. } = &error else {
        return error.into();
    };
    let leads_nowhere = *usable == 0 && first.ends_with("no such file");
    let hint = match leads_nowhere && Path::new(spec).is_file() {
        true => {
            "; --images-root, or root.txt beside it, names the folder that its paths start from"
        }
        false => "",
    };
    anyhow::anyhow!("{flag} {spec}: {error}{hint}")
}

/// Names on stderr what could not be used.
pub(crate) fn name_left_out(ledger: &Ledger) {
    for entry in ledger.entries() {
        let (file, reason) = (printable(&entry.file), printable(&entry.reason));
        tell!("left out: {file}: {reason}");
    }
}
