//! Reads a `.pth` file and lists its tensors: `cargo run -p selfsame-pth --example list -- FILE.pth`

#![expect(clippy::print_stdout, reason = "the list is the result")]

use std::path::PathBuf;

use selfsame_pth::{PthError, PthFile};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path: PathBuf = std::env::args_os().nth(1).ok_or("name a file")?.into();
    let mut file = match PthFile::open(path) {
        Ok(file) => file,
        Err(error @ PthError::NoTensors { .. }) => {
            println!("{error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let unreadable = file.unreadable().clone();
    for (name, kind) in &unreadable {
        println!("{name} is not read: {kind}");
    }
    let tensors = file.read(|name| !unreadable.contains_key(name))?;
    for (name, tensor) in &tensors {
        println!("{name} {:?} {:?}", tensor.dtype, tensor.shape);
    }
    let bytes: usize = tensors.values().map(|tensor| tensor.bytes.len()).sum();
    println!("{} tensors, {bytes} bytes", tensors.len());
    Ok(())
}
