//! What can be no file of weights, told before a reader of one trips over it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use selfsame_models::interop::is_pth;

/// Refuses a file that is neither safetensors nor a PyTorch file, such as a picture.
///
/// # Errors
/// A failure, as such a file may be a damaged one of weights; if it cannot be read.
pub(super) fn refuse_other_kinds(path: &Path) -> anyhow::Result<()> {
    if is_pth(path)? {
        return Ok(());
    }
    let reading = || format!("reading {}", path.display());
    let mut first = Vec::new();
    let file = File::open(path).with_context(reading)?;
    file.take(9).read_to_end(&mut first).with_context(reading)?;
    // The length of the header in eight bytes, then the header, which is JSON.
    match first.get(8) {
        Some(b'{') => Ok(()),
        None if first.is_empty() => bail!("the file is empty"),
        _ => bail!("it is neither a .safetensors file nor a .pth file of PyTorch"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_kind_is_told_by_how_it_begins() {
        let dir = tempfile::tempdir().unwrap();
        let told = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            refuse_other_kinds(&path).map_err(|error| error.to_string())
        };
        for weights in [
            &b"\x02\0\0\0\0\0\0\0{}"[..],
            b"PK\x03\x04 of PyTorch",
            b"\x80\x02 of PyTorch before 1.6",
        ] {
            assert_eq!(told("weights", weights), Ok(()));
        }
        for other in [
            &b"\xff\xd8\xff\xe0\0\x10JFIF"[..],
            b"[package]\nname = 1",
            b"few",
        ] {
            let problem = told("other", other).unwrap_err();
            assert!(problem.contains("neither a .safetensors"), "{problem}");
        }
        assert_eq!(told("empty", b"").unwrap_err(), "the file is empty");
    }
}
