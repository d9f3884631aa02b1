//! Which pictures the copies in a folder were made from.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::UNIX_EPOCH;

/// The journal's name in the folder of copies; data sets pass over it.
const JOURNAL: &str = ".copies";

/// What a file's content is told by: its length in bytes and its time in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    length: u64,
    time: u128,
}

impl Stamp {
    pub(crate) fn of(file: &fs::Metadata) -> Self {
        let time = file.modified().ok();
        let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self {
            length: file.len(),
            time: since.map_or(0, |since| since.as_nanos()),
        }
    }
}

/// What the line of the journal begins with that says how copies are made; no other one does, as they
/// begin with a number.
const SETTINGS: &str = "made with ";

/// A journal with a line for how copies are made, and one for every copy: length and time of its
/// picture, its own length, its name.
///
/// A line is written after its copy. A copy without one, as of a name with a line break, is made
/// again.
pub(crate) struct Copies {
    /// How they are made, unless the journal was written before it kept that.
    settings: Option<String>,
    /// Of each name its picture's stamp and its own length.
    known: HashMap<String, (Stamp, u64)>,
    journal: Mutex<File>,
}

impl Copies {
    /// Opens the journal of a folder, which is made if it is not there.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut options = File::options();
        let mut journal = options
            .read(true)
            .append(true)
            .create(true)
            .open(folder.join(JOURNAL))?;
        let mut bytes = Vec::new();
        journal.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        let whole = whole.map_or(0, |last| last + 1);
        if whole < bytes.len() {
            // Broken off. Windows cuts no file that is open for appending.
            let cut = File::options().write(true).open(folder.join(JOURNAL))?;
            cut.set_len(whole as u64)?;
        }
        let text = String::from_utf8_lossy(&bytes[..whole]);
        let mut settings = text.lines().filter_map(|line| line.strip_prefix(SETTINGS));
        Ok(Self {
            settings: settings.next_back().map(str::to_owned),
            known: text.lines().filter_map(entry).collect(),
            journal: Mutex::new(journal),
        })
    }

    /// Notes how copies are made from now on, or tells how those in `folder` were made if that is not
    /// the same.
    pub(crate) fn agree(&mut self, settings: &str, folder: &Path) -> io::Result<Option<String>> {
        match &self.settings {
            Some(before) if before == settings => return Ok(None),
            Some(before) if self.known.keys().any(|name| folder.join(name).exists()) => {
                return Ok(Some(before.clone()));
            }
            // Those that were made otherwise are gone.
            Some(_) => self.known.clear(),
            None => {}
        }
        self.settings = Some(settings.to_owned());
        self.write(&format!("{SETTINGS}{settings}\n"))?;
        Ok(None)
    }

    /// The length of the copy at `target` under this name, if it is whole and its picture's stamp is
    /// this one.
    pub(crate) fn whole(&self, name: &str, picture: Stamp, target: &Path) -> Option<u64> {
        /// What JPEG and PNG end in.
        const ENDS: [&[u8]; 2] = [&[0xFF, 0xD9], b"IEND\xAE\x42\x60\x82"];
        let (of, length) = self.known.get(name)?;
        let mut file = File::open(target).ok()?;
        if *of != picture || file.metadata().ok()?.len() != *length {
            return None;
        }
        if *length == picture.length {
            // Copied byte for byte, in any format.
            return Some(*length);
        }
        // After a loss of power it may be long enough and empty.
        let mut end = [0; 8];
        file.seek(SeekFrom::End(-(end.len() as i64))).ok()?;
        file.read_exact(&mut end).ok()?;
        ENDS.iter().any(|e| end.ends_with(e)).then_some(*length)
    }

    /// Notes that the copy of that name was written.
    pub(crate) fn note(&self, name: &str, picture: Stamp, length: u64) -> io::Result<()> {
        if name.contains('\n') {
            return Ok(());
        }
        self.write(&format!(
            "{} {} {length} {name}\n",
            picture.length, picture.time
        ))
    }

    fn write(&self, line: &str) -> io::Result<()> {
        let mut journal = self.journal.lock().unwrap_or_else(|held| held.into_inner());
        journal.write_all(line.as_bytes())
    }
}

fn entry(line: &str) -> Option<(String, (Stamp, u64))> {
    let mut parts = line.splitn(4, ' ');
    let length = parts.next()?.parse().ok()?;
    let time = parts.next()?.parse().ok()?;
    let own = parts.next()?.parse().ok()?;
    Some((parts.next()?.to_owned(), (Stamp { length, time }, own)))
}
