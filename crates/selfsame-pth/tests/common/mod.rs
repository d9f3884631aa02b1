//! Archives and pickles made by hand, as no PyTorch would make them.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::io::{Cursor, Write};

use selfsame_pth::{Limits, PthError, PthFile};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A zip archive with these entries, stored.
pub(crate) fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in entries {
        zip.start_file(*name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A file with this pickle and a storage `0` of four f32.
pub(crate) fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    let storage: Vec<u8> = [1f32, 2.0, 3.0, 4.0]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    archive(&[
        ("archive/data.pkl", pickle),
        ("archive/byteorder", b"little"),
        ("archive/data/0", &storage),
    ])
}

pub(crate) fn open(bytes: &[u8]) -> Result<PthFile<Cursor<&[u8]>>, PthError> {
    PthFile::new(Cursor::new(bytes), Limits::default())
}

/// Opens and reads everything.
pub(crate) fn read_all(bytes: &[u8]) -> Result<usize, PthError> {
    let mut file = open(bytes)?;
    Ok(file.read(|_| true)?.len())
}

/// A pickle, opcode by opcode.
#[derive(Clone)]
pub(crate) struct Pickle(pub(crate) Vec<u8>);

impl Pickle {
    pub(crate) fn new() -> Self {
        Pickle(vec![0x80, 2])
    }

    pub(crate) fn op(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend(bytes.as_ref());
        self
    }

    pub(crate) fn text(self, text: &str) -> Self {
        let len = (text.len() as u32).to_le_bytes();
        self.op("X").op(len).op(text)
    }

    pub(crate) fn int(self, value: i64) -> Self {
        self.op([0x8a, 8]).op(value.to_le_bytes())
    }

    pub(crate) fn global(self, module: &str, name: &str) -> Self {
        self.op("c").op(module).op("\n").op(name).op("\n")
    }

    pub(crate) fn tuple(mut self, values: &[i64]) -> Self {
        self = self.op("(");
        for value in values {
            self = self.int(*value);
        }
        self.op("t")
    }

    /// The storage `key` of `elements` by a persistent id.
    pub(crate) fn storage(self, class: (&str, &str), key: &str, elements: i64) -> Self {
        self.op("(")
            .text("storage")
            .global(class.0, class.1)
            .text(key)
            .text("cpu")
            .int(elements)
            .op("tQ")
    }

    /// `_rebuild_tensor_v2` of storage `0`.
    pub(crate) fn tensor(self, offset: i64, shape: &[i64], strides: &[i64]) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op("(")
            .storage(("torch", "FloatStorage"), "0", 4)
            .int(offset)
            .tuple(shape)
            .tuple(strides)
            .op([0x89])
            .op("}tR")
    }

    /// `{name: <what follows>}`, closed by [`Pickle::end`].
    pub(crate) fn named(self, name: &str) -> Self {
        self.op("}").text(name)
    }

    pub(crate) fn end(self) -> Vec<u8> {
        self.op("s.").0
    }
}
