//! The names of the official DINOv2 code, where they differ from timm's.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::names::Renamed;

/// A name that only the official DINOv2 code gives.
pub(super) fn is_telling(name: &str) -> bool {
    let bare = name.strip_prefix("backbone.").unwrap_or(name);
    matches!(bare, "mask_token" | "register_tokens") || bare.contains(".mlp.w12.")
}

/// timm's name, which most have already.
pub(super) fn own_name(name: &str) -> Renamed {
    match name {
        "mask_token" => Renamed::Unused,
        "register_tokens" => Renamed::Whole("reg_token".to_owned()),
        _ => Renamed::Whole(
            without_chunk(name)
                .replace(".mlp.w12.", ".mlp.fc1.")
                .replace(".mlp.w3.", ".mlp.fc2."),
        ),
    }
}

/// The name without the number of the chunk of blocks that training put its block in; a block's own
/// number counts through all chunks (dinov2, `block_chunks`). Other networks number stages and blocks
/// alike, but have no such parts.
fn without_chunk(name: &str) -> String {
    const PARTS: [&str; 6] = ["norm1.", "attn.", "ls1.", "norm2.", "mlp.", "ls2."];
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let in_block = || {
        let (chunk, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
        let (index, part) = rest.split_once('.')?;
        let is_ours = PARTS.iter().any(|start| part.starts_with(start));
        (is_number(chunk) && is_number(index) && is_ours).then(|| format!("blocks.{rest}"))
    };
    in_block().unwrap_or_else(|| name.to_owned())
}

/// timm's models with registers learn no position for the class token (it is in the token itself);
/// ours have one, which is then 0.
pub(super) fn give_class_token_a_position(
    tensors: &mut BTreeMap<String, Tensor>,
) -> candle_core::Result<()> {
    const NAME: &str = "backbone.pos_embed";
    let Some(positions) = tensors.get(NAME) else {
        return Ok(());
    };
    let &[1, tokens, d] = positions.dims() else {
        return Ok(());
    };
    let is_grid = tokens > 0 && tokens.isqrt().pow(2) == tokens;
    if is_grid && tensors.contains_key("backbone.reg_token") {
        let positions = positions.to_dtype(DType::F32)?;
        let class = Tensor::zeros((1, 1, d), DType::F32, positions.device())?;
        let with_class = Tensor::cat(&[&class, &positions], 1)?;
        tensors.insert(NAME.to_owned(), with_class);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_in_chunks_have_their_own_numbers() {
        for (theirs, ours) in [
            ("blocks.1.13.attn.qkv.weight", "blocks.13.attn.qkv.weight"),
            ("blocks.0.3.mlp.w12.bias", "blocks.3.mlp.fc1.bias"),
            ("blocks.2.ls1.gamma", "blocks.2.ls1.gamma"),
            ("blocks.2.0", "blocks.2.0"),
            // EfficientNet's.
            ("blocks.1.0.conv_dw.weight", "blocks.1.0.conv_dw.weight"),
        ] {
            assert_eq!(own_name(theirs), Renamed::Whole(ours.to_owned()));
        }
    }
}
