//! Event files that TensorBoard reads, beside `metrics.jsonl`.
//!
//! A file is a sequence of records (TensorFlow's record_writer.h): length, its checksum, bytes,
//! their checksum. The bytes are an `Event` (event.proto): wall time, step, and scalars by tag.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::TrainError;
use crate::metrics::MetricsLine;

/// Writes an event file.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

/// A number of an event file.
#[derive(Clone, Debug, PartialEq)]
pub struct Scalar {
    /// Its step.
    pub step: u64,
    /// Its name, such as `train/loss`.
    pub tag: String,
    /// Its value.
    pub value: f32,
}

impl EventFile {
    /// Begins `events.out.tfevents.SECONDS.selfsame` in a run directory; a resumed run has several.
    /// Readers drop what earlier files have of steps from `steps_done` on, which are done again.
    ///
    /// # Errors
    /// [`TrainError::Io`] with the path.
    pub fn create(run_dir: &Path, steps_done: u64) -> Result<Self, TrainError> {
        let mut seconds = now() as u64;
        let name = |seconds| run_dir.join(format!("events.out.tfevents.{seconds:010}.selfsame"));
        while name(seconds).exists() {
            seconds += 1;
        }
        let path = name(seconds);
        let file = File::create(&path).map_err(TrainError::io(&path, "cannot be created"))?;
        let mut events = Self { path, file };
        let mut event = time_field();
        bytes_field(&mut event, 3, b"brain.Event:2");
        events.record(&event)?;
        // A SessionLog (field 7) whose status (its field 1) is START.
        let mut event = time_field();
        varint_field(&mut event, 2, steps_done);
        bytes_field(&mut event, 7, &[1 << 3, 1]);
        events.record(&event)?;
        Ok(events)
    }

    /// Writes to a device that is full from now on.
    #[cfg(all(test, target_os = "linux"))]
    pub(crate) fn fill_up(&mut self) {
        self.path = "/dev/full".into();
        let file = File::options().write(true).open(&self.path);
        self.file = file.expect("Linux has such a device");
    }

    /// Writes the numbers of a metrics line: `train/…` of a step, `knn/LABEL/k…` and `views/…` of
    /// evaluations.
    ///
    /// # Errors
    /// [`TrainError::Io`] with the path.
    pub fn write(&mut self, line: &MetricsLine) -> Result<(), TrainError> {
        let scalars = scalars(line);
        let Some(first) = scalars.first() else {
            return Ok(());
        };
        let mut event = time_field();
        varint_field(&mut event, 2, first.step);
        let mut summary = Vec::new();
        for scalar in &scalars {
            let mut value = Vec::new();
            bytes_field(&mut value, 1, scalar.tag.as_bytes());
            value.push(2 << 3 | 5); // field 2, four bytes
            value.extend(scalar.value.to_le_bytes());
            bytes_field(&mut summary, 1, &value);
        }
        bytes_field(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> Result<(), TrainError> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked_crc(data).to_le_bytes());
        self.file
            .write_all(&record)
            .map_err(TrainError::io(&self.path, "cannot be written"))
    }
}

/// The numbers of a metrics line as TensorBoard names them; an evaluation before the first step
/// is at step 0.
pub fn scalars(line: &MetricsLine) -> Vec<Scalar> {
    let scalar = |step, tag: String, value: f64| Scalar {
        step,
        tag,
        value: value as f32,
    };
    match line {
        MetricsLine::Step(line) => [
            ("loss", line.loss),
            ("loss_floor", line.loss_floor),
            ("kl", line.kl),
            ("lr", line.lr),
            ("weight_decay", line.weight_decay),
            ("momentum", line.momentum),
            ("teacher_temp", line.teacher_temp),
            ("grad_norm", line.grad_norm),
            ("feature_std", line.feature_std),
            ("images_per_s", line.images_per_s),
            ("data_wait_frac", line.data_wait_frac),
        ]
        .map(|(name, value)| scalar(line.step, format!("train/{name}"), value))
        .to_vec(),
        MetricsLine::Eval(line) => {
            let step = line.step.unwrap_or(0);
            let of = |(k, value): (&String, &f64)| {
                scalar(step, format!("knn/{}/k{k}", line.label), *value)
            };
            line.knn.iter().map(of).collect()
        }
        MetricsLine::Views(line) => [
            ("auc", line.view_auc),
            ("effective_rank", line.effective_rank),
        ]
        .map(|(name, value)| scalar(line.step.unwrap_or(0), format!("views/{name}"), value))
        .to_vec(),
    }
}

/// Reads the numbers of an event file; an unfinished last record is left out.
///
/// # Errors
/// [`TrainError::Io`] with the path; [`TrainError::State`] for a wrong checksum or another format.
pub fn read_events(path: &Path) -> Result<Vec<Scalar>, TrainError> {
    let bytes = std::fs::read(path).map_err(TrainError::io(path, "cannot be read"))?;
    let wrong = |what: &str| TrainError::State(format!("{}: {what}", path.display()));
    let mut rest = bytes.as_slice();
    let mut found = Vec::new();
    while let Some((head, after)) = rest.split_first_chunk::<12>() {
        let (length, crc) = head.split_at(8);
        if crc != masked_crc(length).to_le_bytes() {
            return Err(wrong("not an event file, or a damaged one"));
        }
        let length = length
            .iter()
            .rev()
            .fold(0u64, |sum, &b| sum << 8 | u64::from(b));
        let Some((data, after)) = usize::try_from(length)
            .ok()
            .and_then(|length| after.split_at_checked(length))
        else {
            break;
        };
        let Some((crc, after)) = after.split_first_chunk::<4>() else {
            break;
        };
        if *crc != masked_crc(data).to_le_bytes() {
            return Err(wrong("a damaged record"));
        }
        found.extend(event_scalars(data).ok_or_else(|| wrong("a record that is no event"))?);
        rest = after;
    }
    Ok(found)
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |time| time.as_secs_f64())
}

/// Field 1 of an event: the wall time, eight bytes.
fn time_field() -> Vec<u8> {
    let mut bytes = vec![1 << 3 | 1];
    bytes.extend(now().to_le_bytes());
    bytes
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_field(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3);
    varint(out, value);
}

fn bytes_field(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// A field's value.
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

/// The first field of a message: number, value, what follows.
fn field(bytes: &[u8]) -> Option<(u64, Value<'_>, &[u8])> {
    let (key, rest) = read_varint(bytes)?;
    let (value, rest) = match key & 7 {
        0 => {
            let (value, rest) = read_varint(rest)?;
            (Value::Varint(value), rest)
        }
        1 => rest
            .split_at_checked(8)
            .map(|(v, r)| (Value::Bytes(v), r))?,
        2 => {
            let (length, rest) = read_varint(rest)?;
            let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            (Value::Bytes(value), rest)
        }
        5 => rest
            .split_at_checked(4)
            .map(|(v, r)| (Value::Bytes(v), r))?,
        _ => return None,
    };
    Some((key >> 3, value, rest))
}

fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i).min(63);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

fn event_scalars(mut event: &[u8]) -> Option<Vec<Scalar>> {
    let (mut step, mut found) = (0, Vec::new());
    while !event.is_empty() {
        let (number, value, rest) = field(event)?;
        match (number, value) {
            (2, Value::Varint(value)) => step = value,
            (5, Value::Bytes(mut summary)) => {
                while !summary.is_empty() {
                    let (number, value, rest) = field(summary)?;
                    if let (1, Value::Bytes(value)) = (number, value) {
                        found.push(summary_value(value)?);
                    }
                    summary = rest;
                }
            }
            _ => {}
        }
        event = rest;
    }
    found
        .iter_mut()
        .for_each(|scalar: &mut Scalar| scalar.step = step);
    Some(found)
}

fn summary_value(mut bytes: &[u8]) -> Option<Scalar> {
    let (mut tag, mut value) = (String::new(), 0f32);
    while !bytes.is_empty() {
        let (number, content, rest) = field(bytes)?;
        match (number, content) {
            (1, Value::Bytes(text)) => tag = String::from_utf8(text.to_vec()).ok()?,
            (2, Value::Bytes(four)) => value = f32::from_le_bytes(four.try_into().ok()?),
            _ => {}
        }
        bytes = rest;
    }
    Some(Scalar {
        step: 0,
        tag,
        value,
    })
}

/// CRC-32C, rotated and shifted as TensorFlow does, so that a checksum of checksums is no trap.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with Castagnoli's polynomial, bit by bit: records are short.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), step)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::metrics::{EvalLine, StepLine};

    fn lines() -> [MetricsLine; 3] {
        let eval = |step, percent| {
            MetricsLine::Eval(EvalLine {
                step,
                epoch: 0,
                knn: BTreeMap::from([("20".to_owned(), percent)]),
                label: "gender".to_owned(),
            })
        };
        let step = MetricsLine::Step(StepLine {
            step: 300,
            loss: 5.25,
            lr: 1e-3,
            ..StepLine::default()
        });
        [eval(None, 55.0), step, eval(Some(300), 71.5)]
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(dir.path(), 0).unwrap();
        lines().iter().for_each(|line| file.write(line).unwrap());
        let found = read_events(&file.path).unwrap();
        let expected: Vec<Scalar> = lines().iter().flat_map(scalars).collect();
        assert_eq!(found, expected);
        assert_eq!(found.len(), 1 + 11 + 1);
        assert!(
            found
                .iter()
                .any(|s| s.tag == "train/loss" && s.value == 5.25 && s.step == 300)
        );
        assert_ne!(EventFile::create(dir.path(), 0).unwrap().path, file.path);
    }

    #[test]
    fn a_damaged_file_is_named_and_a_torn_one_read_as_far_as_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(dir.path(), 0).unwrap();
        lines().iter().for_each(|line| file.write(line).unwrap());
        let whole = std::fs::read(&file.path).unwrap();
        std::fs::write(&file.path, &whole[..whole.len() - 3]).unwrap();
        assert_eq!(read_events(&file.path).unwrap().len(), 12);
        let mut damaged = whole;
        damaged[60] ^= 1;
        std::fs::write(&file.path, &damaged).unwrap();
        let error = read_events(&file.path).unwrap_err().to_string();
        assert!(error.contains("events.out.tfevents."), "{error}");
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283); // RFC 3720, appendix B.4's polynomial
    }
}
