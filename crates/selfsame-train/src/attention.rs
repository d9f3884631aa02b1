//! Where a backbone looks in one picture, as numbers for each cell of it.

use candle_core::{Device, IndexOp};
use selfsame_eval::Features;
use selfsame_models::Backbone;

use crate::device_batch::upload_picture;
use crate::error::TrainError;

/// Strides of a ResNet multiply to this.
const RESNET_STRIDE: usize = 32;

/// Pixels on a side of what a network tells apart: of a patch, or of a place of its last feature map.
pub fn cell_side(backbone: &dyn Backbone) -> usize {
    match backbone.patch_size() {
        0 => RESNET_STRIDE,
        patch => patch,
    }
}

/// What the numbers of [`CellMaps`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Attention of the class token to each patch, one map per head.
    Attention,
    /// Length of the last feature map at each place: one map, of a network without attention.
    FeatureNorm,
}

/// Maps over the cells of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct CellMaps {
    /// What the numbers are.
    pub kind: MapKind,
    /// Cells down.
    pub rows: usize,
    /// Cells across.
    pub columns: usize,
    /// One map per head, each `rows × columns`, row by row.
    pub maps: Vec<Vec<f32>>,
}

impl CellMaps {
    /// The mean over the heads.
    pub fn mean(&self) -> Vec<f32> {
        let count = self.maps.len().max(1) as f32;
        (0..self.rows * self.columns)
            .map(|cell| self.maps.iter().map(|map| map[cell]).sum::<f32>() / count)
            .collect()
    }
}

/// The class token's row of the attention of `block` (from 0; `None`: the last), in evaluation
/// mode; for a ResNet the norm of the last feature map.
///
/// # Shape
/// `pixels`: `[3, height, width]`, normalised.
/// # Errors
/// [`TrainError::Tensor`] if the patch does not divide the size or there is no such block.
pub fn attention(
    backbone: &dyn Backbone,
    pixels: &[f32],
    [height, width]: [usize; 2],
    block: Option<usize>,
    device: &Device,
) -> Result<CellMaps, TrainError> {
    let picture = upload_picture(pixels, [height, width], device)?;
    let last = backbone.num_blocks().saturating_sub(1);
    let Some(of_class_token) = backbone.class_attention(&picture, block.unwrap_or(last))? else {
        let (features, [rows, columns]) =
            patch_features(backbone, pixels, [height, width], device)?;
        let norm = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
        return Ok(CellMaps {
            kind: MapKind::FeatureNorm,
            rows,
            columns,
            maps: vec![features.rows().map(norm).collect()],
        });
    };
    let patch = backbone.patch_size();
    let of_patches = of_class_token.i((0, .., 1..))?; // [heads, patches]
    Ok(CellMaps {
        kind: MapKind::Attention,
        rows: height / patch,
        columns: width / patch,
        maps: of_patches.to_vec2::<f32>()?,
    })
}

/// Features of each cell of a picture after the last layer, row by row, and rows and columns.
///
/// # Errors
/// As [`attention`].
pub fn patch_features(
    backbone: &dyn Backbone,
    pixels: &[f32],
    [height, width]: [usize; 2],
    device: &Device,
) -> Result<(Features, [usize; 2]), TrainError> {
    let picture = upload_picture(pixels, [height, width], device)?;
    let layers = backbone.intermediate_layers(&picture, 1)?;
    let (_, patches) = &layers[0]; // [1, cells, D]
    let (_, cells, d) = patches.dims3()?;
    let columns = width.div_ceil(cell_side(backbone));
    let features = Features {
        n: cells,
        d,
        data: patches.flatten_all()?.to_vec1::<f32>()?,
    };
    Ok((features, [cells / columns.max(1), columns]))
}

#[cfg(test)]
mod tests {
    use selfsame_models::{Arch, ModelConfig, build_backbone, draw_backbone};

    use super::*;

    fn backbone(arch: Arch) -> Box<dyn Backbone> {
        let model = ModelConfig {
            arch,
            patch_size: 8,
            image_size: 32,
            ..ModelConfig::default()
        };
        let params = draw_backbone(&model, 0, &Device::Cpu).unwrap();
        build_backbone(&model, &params).unwrap()
    }

    fn pixels(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
    }

    #[test]
    fn a_wide_picture_has_a_row_of_cells_for_each_row_of_patches() {
        let vit = backbone(Arch::VitTiny);
        let maps = attention(
            vit.as_ref(),
            &pixels(3 * 24 * 40),
            [24, 40],
            None,
            &Device::Cpu,
        );
        let maps = maps.unwrap();
        assert_eq!((maps.rows, maps.columns, maps.maps.len()), (3, 5, 3));
        assert_eq!(maps.kind, MapKind::Attention);
        for map in &maps.maps {
            let sum: f32 = map.iter().sum();
            assert!(
                map.len() == 15 && sum > 0.5 && sum < 1.0,
                "the rest is on the token itself"
            );
        }
        let mean: f32 = maps.maps.iter().map(|map| map[7]).sum::<f32>() / 3.0;
        assert!((maps.mean()[7] - mean).abs() < 1e-7);
        let beyond = attention(
            vit.as_ref(),
            &pixels(3 * 64),
            [8, 8],
            Some(12),
            &Device::Cpu,
        );
        assert!(beyond.is_err());
    }

    #[test]
    fn a_resnet_shows_the_norm_of_its_last_feature_map() {
        let resnet = backbone(Arch::Resnet18);
        let maps = attention(
            resnet.as_ref(),
            &pixels(3 * 64 * 96),
            [64, 96],
            None,
            &Device::Cpu,
        );
        let maps = maps.unwrap();
        assert_eq!((maps.rows, maps.columns, maps.maps.len()), (2, 3, 1));
        assert_eq!(maps.kind, MapKind::FeatureNorm);
        assert!(maps.maps[0].iter().all(|x| *x >= 0.0));
    }
}
