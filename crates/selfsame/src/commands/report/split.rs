//! Which pictures a report learns from, and which it tests on.

use std::collections::BTreeSet;
use std::sync::Arc;

use selfsame_data::{Dataset, shared};

use crate::stderr::tell;

/// Pictures learned from and tested on at most, so that a report takes seconds beside a run.
const MAX_BANK: usize = 2000;
const MAX_TEST: usize = 1000;

/// Samples of both sides, without a picture that is on both: k-NN would find it itself.
#[derive(Debug, PartialEq)]
pub(super) struct Split {
    /// Of `--data`.
    pub(super) learned_from: Vec<usize>,
    /// Of `--val`; `None` to leave each out of its own vote instead.
    pub(super) tested_on: Option<Vec<usize>>,
}

impl Split {
    /// Some pictures of `--data` and `--val`, each with what the user wrote.
    ///
    /// What both have is taken from the side to learn from, or else from the other, as long as half
    /// of a side is left.
    pub(super) fn of(
        (train, spec): (&Arc<dyn Dataset>, &str),
        val: Option<(&Arc<dyn Dataset>, &str)>,
    ) -> Self {
        let learned_from = choose_once(train, spec, MAX_BANK);
        let Some((val, spec)) = val else {
            return Self {
                learned_from,
                tested_on: None,
            };
        };
        let tested_on = choose_once(val, spec, MAX_TEST);
        let apart = |set: &Arc<dyn Dataset>, samples: &[usize], other: (&dyn Dataset, &[usize])| {
            let other = (other.0, other.1.iter().copied());
            let both = shared(set.as_ref(), samples.iter().copied(), other);
            let both: BTreeSet<usize> = both.into_iter().collect();
            let mut rest = samples.to_vec();
            rest.retain(|sample| !both.contains(sample));
            rest
        };
        let bank = apart(train, &learned_from, (val.as_ref(), &tested_on));
        let both = learned_from.len() - bank.len();
        if both == 0 {
            return Self {
                learned_from,
                tested_on: Some(tested_on),
            };
        }
        let note = |what: &str| {
            tell!(
                "note: {both} pictures of --val are in --data too; the page's scores {what} them"
            );
        };
        let is_enough =
            |rest: &[usize], of: &[usize]| rest.len() >= 2 && 2 * rest.len() >= of.len();
        if is_enough(&bank, &learned_from) {
            note("do not learn from");
            return Self {
                learned_from: bank,
                tested_on: Some(tested_on),
            };
        }
        let test = apart(val, &tested_on, (train.as_ref(), &learned_from));
        if is_enough(&test, &tested_on) {
            note("do not ask about");
            return Self {
                learned_from,
                tested_on: Some(test),
            };
        }
        tell!("note: --val has mostly pictures of --data; the page takes those of --data once");
        Self {
            learned_from,
            tested_on: None,
        }
    }
}

/// Some pictures of a side, without those that are listed again, which would vote on themselves.
fn choose_once(set: &Arc<dyn Dataset>, spec: &str, max: usize) -> Vec<usize> {
    let (samples, copies) = selfsame_train::each_once(set.as_ref(), max);
    if copies > 0 {
        let of = samples.len() + copies;
        tell!("note: {copies} of {of} pictures of {spec} are listed before; each counts once");
    }
    samples
}

#[cfg(test)]
mod tests {
    use selfsame_data::{OpenOptions, open};

    use super::*;

    /// How many pictures are learned from and tested on; of drawn ones, the first of a seed are the
    /// same however many there are.
    fn counts(train: usize, val: &str) -> (usize, Option<usize>) {
        let set = |spec: &str| open(spec, &OpenOptions::default()).unwrap();
        let train = set(&format!("synthetic:portraits?seed=3&count={train}"));
        let val = set(&format!("synthetic:portraits?{val}"));
        let split = Split::of((&train, "--data"), Some((&val, "--val")));
        let learned_from = split.learned_from.iter().copied();
        let tested_on = split.tested_on.iter().flatten().copied();
        let both = shared(train.as_ref(), learned_from, (val.as_ref(), tested_on));
        assert!(both.is_empty(), "{both:?}");
        (
            split.learned_from.len(),
            split.tested_on.map(|samples| samples.len()),
        )
    }

    #[test]
    fn no_picture_is_on_both_sides_and_no_side_is_emptied() {
        assert_eq!(counts(40, "seed=4&count=13"), (40, Some(13)));
        assert_eq!(counts(40, "seed=3&count=12"), (28, Some(12)));
        // The same, beyond what is tested on too; most of it.
        assert_eq!(counts(40, "seed=3&count=40"), (40, None));
        assert_eq!(counts(1050, "seed=3&count=1050"), (1050, None));
        assert_eq!(counts(40, "seed=3&count=30"), (40, None));
        assert_eq!(counts(40, "seed=3&count=45"), (40, None));
        // Held-out pictures among more.
        assert_eq!(counts(20, "seed=3&count=60"), (20, Some(40)));
        // Of many, some are drawn for each side.
        let (bank, test) = counts(8000, "seed=3&count=8000");
        assert!((1000..2000).contains(&bank), "{bank}");
        assert_eq!(test, Some(1000));
    }
}
