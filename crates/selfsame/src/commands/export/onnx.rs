//! `model.onnx`.

use std::path::Path;

use selfsame_checkpoint::write_bytes;
use selfsame_models::interop::onnx::encode;

use super::create;
use crate::weights::Loaded;

/// Writes `model.onnx` with the normalisation in its metadata.
pub(super) fn onnx(loaded: &Loaded, out: &Path) -> anyhow::Result<()> {
    create(out)?;
    let bytes = encode(&loaded.model, &loaded.params.tensors(), &loaded.metadata()?)?;
    Ok(write_bytes(&out.join("model.onnx"), &bytes)?)
}
