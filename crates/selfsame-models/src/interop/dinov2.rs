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
            name.replace(".mlp.w12.", ".mlp.fc1.")
                .replace(".mlp.w3.", ".mlp.fc2."),
        ),
    }
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
