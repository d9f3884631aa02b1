//! Damaged files: whatever the bytes, the reader answers, soon and within bounds.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;
#[path = "../../../tests/common/mutate.rs"]
mod mutate;

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::time::{Duration, Instant};

use common::{archive, open};
use mutate::{Dice, Mutations};
use selfsame_pth::PthError;

/// Far above what any of these small files needs; a reader that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(5);

fn corpus() -> [&'static [u8]; 9] {
    [
        include_bytes!("golden/plain.pth"),
        include_bytes!("golden/types.pth"),
        include_bytes!("golden/views.pth"),
        include_bytes!("golden/checkpoint.pth"),
        include_bytes!("golden/parameter.pth"),
        include_bytes!("golden/no_tensors.pth"),
        include_bytes!("golden/negative.pth"),
        include_bytes!("golden/kinds.pth"),
        include_bytes!("golden/keys.pth"),
    ]
}

/// Opcodes that make, share or call something; a change may be anywhere.
const MUTATIONS: Mutations = Mutations {
    telling: b"().0123N}]tRbQqrhjacesuXKMJG\x80\x85\x86\x87\x88\x8a\x8c\x93\x94\x81",
    header: usize::MAX,
};

/// The archive's entries, unpacked.
fn entries(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
    let entry = |index| {
        let mut entry = zip.by_index(index).unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.name().unwrap().into_owned(), content)
    };
    (0..corpus_len(bytes)).map(entry).collect()
}

fn corpus_len(bytes: &[u8]) -> usize {
    zip::ZipArchive::new(Cursor::new(bytes)).unwrap().len()
}

/// A mutation of the whole file, or of its pickle or a storage inside a sound archive: a changed
/// byte would otherwise hardly ever get past the checksum.
fn damaged(files: &[&[u8]], dice: &mut Dice) -> Vec<u8> {
    let file = files[dice.below(files.len())];
    let other = files[dice.below(files.len())];
    if dice.below(3) == 0 {
        let mut bytes = file.to_vec();
        MUTATIONS.apply(&mut bytes, other, dice);
        return bytes;
    }
    let (mut parts, others) = (entries(file), entries(other));
    let is_pickle = |(name, _): &&(String, Vec<u8>)| name.ends_with("data.pkl");
    let pickle = others.iter().find(is_pickle).unwrap().1.clone();
    let at = match dice.below(4) {
        0 => dice.below(parts.len()),
        _ => parts.iter().position(|part| is_pickle(&part)).unwrap(),
    };
    MUTATIONS.apply(&mut parts[at].1, &pickle, dice);
    let parts: Vec<(&str, &[u8])> = parts.iter().map(|(n, b)| (n.as_str(), &b[..])).collect();
    archive(&parts)
}

fn outcome(bytes: &[u8]) -> &'static str {
    let read = open(bytes).and_then(|mut file| {
        let tensors = file.read(|_| true)?;
        for (name, tensor) in &tensors {
            let count: usize = tensor.shape.iter().product();
            assert_eq!(tensor.bytes.len(), count * tensor.dtype.size(), "{name}");
        }
        let total: usize = tensors.values().map(|tensor| tensor.bytes.len()).sum();
        assert!(total <= bytes.len(), "{total} bytes out of {}", bytes.len());
        Ok(())
    });
    match read {
        Ok(()) => "read",
        Err(PthError::NotAnArchive(_)) => "not an archive",
        Err(PthError::Archive(_)) => "archive",
        Err(PthError::NotStored { .. }) => "not stored",
        Err(PthError::Forbidden { .. }) => "forbidden",
        Err(PthError::Pickle { .. }) => "pickle",
        Err(PthError::TooLarge { .. }) => "too large",
        Err(PthError::Tensor { .. }) => "tensor",
        Err(PthError::NoTensors { .. }) => "no tensors",
        Err(_) => "other",
    }
}

fn timed(bytes: &[u8]) -> (&'static str, Duration) {
    let began = Instant::now();
    let outcome = outcome(bytes);
    (outcome, began.elapsed())
}

/// Reads mutations until `enough` says so; the count of each outcome.
fn fuzz(seed: u64, mut enough: impl FnMut(u64) -> bool) -> BTreeMap<&'static str, u64> {
    let files = corpus();
    let mut dice = Dice(seed);
    let mut outcomes = BTreeMap::new();
    let mut done = 0;
    while !enough(done) {
        let bytes = damaged(&files, &mut dice);
        let (outcome, elapsed) = timed(&bytes);
        // A machine under load can stop for seconds; a reader that hangs does so every time.
        if elapsed > PATIENCE {
            let (_, again) = timed(&bytes);
            assert!(
                again < PATIENCE,
                "case {done} of seed {seed} took {again:?}"
            );
        }
        *outcomes.entry(outcome).or_insert(0) += 1;
        done += 1;
    }
    outcomes
}

#[test]
fn damaged_files_are_answered_within_bounds() {
    let outcomes = fuzz(0x5e1f_5a3e, |done| done == 3000);
    // Not all the same answer: the mutations reach behind the archive's list.
    for outcome in ["read", "archive", "pickle", "tensor", "forbidden"] {
        assert!(outcomes.contains_key(outcome), "{outcomes:?}");
    }
}

/// `cargo test --release -p selfsame-pth --test mutated -- --ignored --nocapture`
#[test]
#[ignore = "takes half an hour"]
#[expect(clippy::print_stdout, reason = "its result is to be read")]
fn damaged_files_are_answered_for_half_an_hour() {
    let began = Instant::now();
    let seed = std::process::id().into();
    let outcomes = fuzz(seed, |_| began.elapsed() > Duration::from_secs(1800));
    println!("seed {seed}: {outcomes:?}");
}
