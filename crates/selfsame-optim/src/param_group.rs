//! Which parameters are decayed.

/// What weight decay applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decayed {
    /// Every parameter (the notebook).
    All,
    /// All but biases and other one-dimensional parameters, as those of norms (`utils.py`,
    /// `get_params_groups`). `cls_token` and `pos_embed` have three dimensions and `weight_g` has
    /// two: they *are* decayed, there and here.
    WeightsOnly,
}

/// Whether weight decay applies to a parameter.
pub fn is_decayed(name: &str, dims: &[usize], decayed: Decayed) -> bool {
    match decayed {
        Decayed::All => true,
        Decayed::WeightsOnly => !(name.ends_with(".bias") || dims.len() == 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn official_groups_leave_out_biases_and_one_dimensional_parameters() {
        let decayed = |name, dims: &[usize]| is_decayed(name, dims, Decayed::WeightsOnly);
        assert!(decayed("backbone.blocks.0.attn.qkv.weight", &[1152, 384]));
        assert!(decayed("backbone.cls_token", &[1, 1, 384]));
        assert!(decayed("backbone.pos_embed", &[1, 197, 384]));
        assert!(decayed("head.last_layer.weight_g", &[2048, 1]));
        assert!(!decayed("backbone.blocks.0.norm1.weight", &[384]));
        assert!(!decayed("backbone.blocks.0.attn.qkv.bias", &[1152]));
        assert!(
            !decayed("relative.bias", &[4, 4]),
            "a bias by name, whatever its shape"
        );
    }

    #[test]
    fn notebook_decays_everything() {
        assert!(is_decayed("backbone.norm.bias", &[384], Decayed::All));
        assert!(is_decayed("backbone.norm.weight", &[384], Decayed::All));
    }
}
