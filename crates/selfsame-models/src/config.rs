//! The tables `[model]` and `[head]` of a configuration.

use serde::{Deserialize, Serialize};

use crate::error::ParseArchError;

// Bounds far above what anybody trains: behind them are slips of the keyboard and damaged files,
// which would end in hours of set-up or in sizes that no number holds.

/// Pixels of a side of an image at most: as much as a picture may have.
pub(crate) const MOST_PIXELS: usize = 16_384;
/// Width of a transformer at most.
const MOST_WIDE: usize = 65_536;
/// Blocks, and registers, of a transformer at most.
const MOST_DEEP: usize = 1_024;
/// Width of a layer of the head at most.
const MOST_OUTPUTS: usize = 1 << 24;

/// The backbone architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// Vision transformer, width 192, 12 blocks, 3 heads (timm's `vit_tiny`).
    VitTiny,
    /// Vision transformer, width 384, 12 blocks, 6 heads (DeiT-S; the paper's ViT-S).
    VitSmall,
    /// Vision transformer, width 768, 12 blocks, 12 heads.
    VitBase,
    /// ResNet-18, 512 features.
    Resnet18,
    /// ResNet-50 (v1.5: the stride stands on the 3×3 convolution), 2048 features.
    Resnet50,
}

impl Arch {
    /// All architectures, in the order of the documentation.
    pub const ALL: [Arch; 5] = [
        Arch::VitTiny,
        Arch::VitSmall,
        Arch::VitBase,
        Arch::Resnet18,
        Arch::Resnet50,
    ];

    /// The name used in configuration files, e.g. `vit_small`.
    pub fn name(self) -> &'static str {
        match self {
            Arch::VitTiny => "vit_tiny",
            Arch::VitSmall => "vit_small",
            Arch::VitBase => "vit_base",
            Arch::Resnet18 => "resnet18",
            Arch::Resnet50 => "resnet50",
        }
    }

    /// Whether the architecture is a vision transformer.
    pub fn is_vit(self) -> bool {
        self.vit_dims().is_some()
    }

    /// Width, depth and heads of a vision transformer; `None` for a ResNet.
    pub fn vit_dims(self) -> Option<VitDims> {
        let (embed_dim, num_heads) = match self {
            Arch::VitTiny => (192, 3),
            Arch::VitSmall => (384, 6),
            Arch::VitBase => (768, 12),
            Arch::Resnet18 | Arch::Resnet50 => return None,
        };
        Some(VitDims {
            embed_dim,
            depth: 12,
            num_heads,
        })
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Arch {
    type Err = ParseArchError;

    fn from_str(text: &str) -> Result<Self, ParseArchError> {
        Arch::ALL
            .into_iter()
            .find(|arch| arch.name() == text)
            .ok_or_else(|| {
                let known: Vec<_> = Arch::ALL.iter().map(|arch| arch.name()).collect();
                ParseArchError(format!(
                    "{text:?} is not an architecture; known are {}",
                    known.join(", ")
                ))
            })
    }
}

/// Dimensions of a vision transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VitDims {
    /// Width of a token.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads per block; `embed_dim / num_heads` is the width of one.
    pub num_heads: usize,
}

/// How position embeddings learned at one image size are used at another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PosEmbedResample {
    /// Bicubic, A = −0.75, coordinates by the scale factor (n + 0.1)/m of the official code
    /// (vision_transformer.py:174-194).
    Official,
    /// Bicubic, A = −0.75, coordinates by the size ratio, as Hugging Face's ViT does.
    Hf,
    /// Antialiased bicubic, A = −0.5, as timm's `resample_abs_pos_embed` does.
    Timm,
}

/// The feed-forward part of a transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpKind {
    /// Linear, GELU, Linear; four times the width between them.
    Gelu,
    /// `(silu(x W1) * x W2) W3`, as in the largest DINOv2: W1 and W2 are packed in `fc1`, the
    /// width between them is 8/3 of the outer one, rounded up to a multiple of 8.
    Swiglu,
}

/// Which published distributions the backbone's first values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitForm {
    /// As the head: `timm` with the notebook head, `official` with the official head.
    Auto,
    /// timm: class token N(0, 1e-6); the last gamma of each residual branch of a ResNet is 0.
    Timm,
    /// The official DINO code: class token N(0, 0.02); every gamma of a ResNet is 1.
    Official,
}

/// The table `[model]`: the backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Architecture. Notebook: `vit_small_patch16_224` at 128 pixels.
    pub arch: Arch,
    /// Side of a patch in pixels; ViT only.
    pub patch_size: usize,
    /// The image size in pixels that the position embeddings are learned at; ViT only.
    pub image_size: usize,
    /// Stochastic depth of the last block, growing linearly from 0 in the first; ViT only.
    pub drop_path_rate: f64,
    /// How position embeddings are resampled for other sizes; ViT only.
    pub pos_embed_resample: PosEmbedResample,
    /// Which first values the backbone gets. Ours, not the notebook's.
    pub init: InitForm,
    /// Width in place of the architecture's own; 0: its own. ViT only.
    pub embed_dim: usize,
    /// Number of blocks in place of the architecture's own; 0: its own. ViT only.
    pub depth: usize,
    /// Attention heads in place of the architecture's own; 0: its own. ViT only.
    pub num_heads: usize,
    /// Register tokens beside the class token (Darcet et al. 2024), as in DINOv2; ViT only.
    pub num_registers: usize,
    /// First value of a learned scale per channel after attention and MLP (Touvron et al. 2021),
    /// as in DINOv2, which has 1e-5; 0: no such scale. ViT only.
    pub layer_scale: f64,
    /// The feed-forward part of a block; ViT only.
    pub mlp: MlpKind,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            arch: Arch::VitSmall,
            patch_size: 16,
            image_size: 128,
            drop_path_rate: 0.0,
            pos_embed_resample: PosEmbedResample::Official,
            init: InitForm::Auto,
            embed_dim: 0,
            depth: 0,
            num_heads: 0,
            num_registers: 0,
            layer_scale: 0.0,
            mlp: MlpKind::Gelu,
        }
    }
}

impl ModelConfig {
    /// Whether this is a vision transformer with parts that only DINOv2 has.
    pub fn is_dinov2(&self) -> bool {
        self.arch.is_vit()
            && (self.num_registers > 0 || self.layer_scale != 0.0 || self.mlp == MlpKind::Swiglu)
    }

    /// Dimensions of the vision transformer with the overrides applied; `None` for a ResNet.
    pub fn vit_dims(&self) -> Option<VitDims> {
        let own = self.arch.vit_dims()?;
        let or = |value: usize, own: usize| if value == 0 { own } else { value };
        Some(VitDims {
            embed_dim: or(self.embed_dim, own.embed_dim),
            depth: or(self.depth, own.depth),
            num_heads: or(self.num_heads, own.num_heads),
        })
    }

    /// Side in pixels of the pictures that the network is made for: a ViT's position embeddings have
    /// one; for a ResNet, which has none, 224.
    pub fn native_size(&self) -> usize {
        match self.arch.is_vit() {
            true => self.image_size,
            false => 224,
        }
    }

    /// Number of features that the backbone gives per image.
    pub fn feature_dim(&self) -> usize {
        match self.arch {
            Arch::Resnet18 => 512,
            Arch::Resnet50 => 2048,
            _ => self.vit_dims().map_or(0, |dims| dims.embed_dim),
        }
    }

    /// Every problem of the table, each naming its key.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let Some(dims) = self.vit_dims() else {
            for (key, value) in [
                ("embed_dim", self.embed_dim),
                ("depth", self.depth),
                ("num_heads", self.num_heads),
                ("num_registers", self.num_registers),
                ("layer_scale", usize::from(self.layer_scale != 0.0)),
                ("mlp", usize::from(self.mlp != MlpKind::Gelu)),
            ] {
                if value != 0 {
                    problems.push(format!("model.{key}: {} has no such setting", self.arch));
                }
            }
            if self.drop_path_rate != 0.0 {
                problems.push(format!(
                    "model.drop_path_rate: {} has no drop path",
                    self.arch
                ));
            }
            return problems;
        };
        if self.patch_size == 0 {
            problems.push("model.patch_size: 0 is not a size".into());
        } else if self.image_size == 0 || !self.image_size.is_multiple_of(self.patch_size) {
            problems.push(format!(
                "model.image_size: {} is not a multiple of model.patch_size = {}",
                self.image_size, self.patch_size
            ));
        }
        for (key, value, most) in [
            ("image_size", self.image_size, MOST_PIXELS),
            ("embed_dim", dims.embed_dim, MOST_WIDE),
            ("depth", dims.depth, MOST_DEEP),
            ("num_registers", self.num_registers, MOST_DEEP),
        ] {
            if value > most {
                problems.push(format!("model.{key}: {value} is more than {most}"));
            }
        }
        if !(0.0..1.0).contains(&self.drop_path_rate) {
            problems.push(format!(
                "model.drop_path_rate: {} is not in [0, 1)",
                self.drop_path_rate
            ));
        }
        if !self.layer_scale.is_finite() {
            problems.push(format!(
                "model.layer_scale: {} is no number",
                self.layer_scale
            ));
        }
        if !dims.embed_dim.is_multiple_of(dims.num_heads) {
            problems.push(format!(
                "model.num_heads: {} heads do not divide the width {}",
                dims.num_heads, dims.embed_dim
            ));
        }
        problems
    }
}

/// The two forms of the projection head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    /// The teaching notebook's: two hidden layers of the feature width, no bottleneck.
    Notebook,
    /// The official code's: three layers to a bottleneck, L2 norm, weight-normalised last layer.
    Official,
}

/// The table `[head]`: the projection head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadConfig {
    /// Form of the head.
    pub kind: HeadKind,
    /// Number of prototypes K.
    pub out_dim: usize,
    /// Width of the hidden layers; official only (the notebook's is the feature width).
    pub hidden_dim: usize,
    /// Width of the L2-normalised bottleneck; official only.
    pub bottleneck_dim: usize,
    /// Notebook: rows of the last layer are normalised at each forward (`false`: plain linear).
    /// Official: the last layer's `weight_g` is frozen at 1.
    pub norm_last_layer: bool,
    /// Batch norm. Notebook: after GELU. Official: before GELU.
    pub use_bn: bool,
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self {
            kind: HeadKind::Notebook,
            out_dim: 2048,
            hidden_dim: 2048,    // vision_transformer.py, DINOHead
            bottleneck_dim: 256, // vision_transformer.py, DINOHead
            norm_last_layer: true,
            use_bn: false,
        }
    }
}

impl HeadConfig {
    /// Every problem of the table, each naming its key.
    pub fn check(&self) -> Vec<String> {
        let mut sizes = vec![("out_dim", self.out_dim)];
        if self.kind == HeadKind::Official {
            sizes.push(("hidden_dim", self.hidden_dim));
            sizes.push(("bottleneck_dim", self.bottleneck_dim));
        }
        let problem = |(key, size)| match size {
            0 => Some(format!("head.{key}: 0 is not a size")),
            // Of one prototype every softmax is 1, and there is nothing to learn.
            1 if key == "out_dim" => Some(format!("head.{key}: 1 prototype tells nothing apart")),
            1..=MOST_OUTPUTS => None,
            _ => Some(format!("head.{key}: {size} is more than {MOST_OUTPUTS}")),
        };
        sizes.into_iter().filter_map(problem).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound_and_the_notebooks() {
        assert!(ModelConfig::default().check().is_empty());
        assert!(HeadConfig::default().check().is_empty());
        let parsed: ModelConfig = serde_json::from_str(r#"{"arch": "vit_small"}"#).unwrap();
        assert_eq!(parsed, ModelConfig::default());
    }

    #[test]
    fn a_head_of_one_prototype_is_refused() {
        let of = |out_dim| HeadConfig {
            out_dim,
            ..HeadConfig::default()
        };
        assert!(of(2).check().is_empty());
        for too_few in [0, 1] {
            assert!(of(too_few).check()[0].starts_with("head.out_dim"));
        }
    }

    #[test]
    fn every_architecture_is_read_by_its_name() {
        for arch in Arch::ALL {
            assert_eq!(arch.name().parse(), Ok(arch));
            let json = serde_json::to_string(&arch).unwrap();
            assert_eq!(json, format!("{:?}", arch.name()));
        }
        let error = "resnet".parse::<Arch>().unwrap_err();
        assert!(error.to_string().contains("resnet50"), "{error}");
    }

    #[test]
    fn what_nobody_trains_is_refused() {
        let model = ModelConfig {
            depth: 10_000_000_000,
            embed_dim: 6_000_000_000_000,
            ..ModelConfig::default()
        };
        let problems = model.check();
        assert!(problems[0].starts_with("model.embed_dim"), "{problems:?}");
        assert!(problems[1].starts_with("model.depth"), "{problems:?}");
        let head = HeadConfig {
            out_dim: 99_999_999_999,
            ..HeadConfig::default()
        };
        assert!(head.check()[0].starts_with("head.out_dim"));
    }

    #[test]
    fn all_problems_are_listed_with_their_keys() {
        let config = ModelConfig {
            image_size: 100,
            drop_path_rate: 1.0,
            num_heads: 7,
            ..Default::default()
        };
        let problems = config.check();
        assert_eq!(problems.len(), 3);
        for (problem, key) in problems
            .iter()
            .zip(["image_size", "drop_path_rate", "num_heads"])
        {
            assert!(problem.starts_with(&format!("model.{key}: ")), "{problem}");
        }
        let config = ModelConfig {
            arch: Arch::Resnet50,
            depth: 3,
            ..Default::default()
        };
        assert_eq!(
            config.check(),
            ["model.depth: resnet50 has no such setting"]
        );
        let config = HeadConfig {
            kind: HeadKind::Official,
            out_dim: 0,
            ..Default::default()
        };
        assert_eq!(config.check(), ["head.out_dim: 0 is not a size"]);
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(serde_json::from_str::<ModelConfig>(r#"{"patch": 16}"#).is_err());
        assert!(serde_json::from_str::<HeadConfig>(r#"{"nlayers": 3}"#).is_err());
    }
}
