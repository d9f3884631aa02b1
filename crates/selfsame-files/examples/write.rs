//! Standard input becomes a file that is there whole or not at all.
//! `cargo run -p selfsame-files --example write -- FILE`

use std::io::{Error, ErrorKind, Read};
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let Some(path) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err(Error::new(ErrorKind::InvalidInput, "which file to write"));
    };
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    selfsame_files::write_whole(&path, &bytes)
}
