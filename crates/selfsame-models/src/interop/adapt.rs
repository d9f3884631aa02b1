//! Position embeddings and patch kernels of one image or patch size for a model of another.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::grid::{self, Positions};
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::patch_kernel::kernel_matrix;
use crate::pos_embed::{Grid, resample_matrix};

const NAME: &str = "backbone.pos_embed";
const KERNEL: &str = "backbone.patch_embed.proj.weight";
const REGISTERS: &str = "backbone.reg_token";

/// More numbers than this no matrix has that resamples, nor what it makes: 4 GiB, and 30 times what
/// DINOv2 takes at 2,072 pixels.
const MOST_RESAMPLED: usize = 1 << 30;

/// Resamples the position embeddings of `tensors` to the grid of `model`, by its configured
/// formula; the grids before and after, or `None` if there is nothing to do.
///
/// Positions of registers, which timm can have, are added to the registers. Nothing else is touched;
/// a patch kernel of another size is [`fit_patches`]' to change.
/// # Errors
/// [`ModelError::Positions`] if the embeddings are not those of a class token and a square,
/// [`ModelError::Config`] if the grid of `model` is empty, or too large to resample to.
pub fn fit_positions(
    tensors: &mut BTreeMap<String, Tensor>,
    model: &ModelConfig,
) -> Result<Option<(Grid, Grid)>, ModelError> {
    fold_registers(tensors, model)?;
    let (Some(positions), Some(_)) = (tensors.get(NAME), model.vit_dims()) else {
        return Ok(None);
    };
    if model.patch_size == 0 {
        return Ok(None);
    }
    let side = model.image_size / model.patch_size;
    let &[1, tokens, d] = positions.dims() else {
        return Ok(None);
    };
    if tokens == 1 + side * side {
        return Ok(None);
    }
    if side == 0 {
        return Err(ModelError::Config(model.check()));
    }
    let Some(Positions { side: from, .. }) = grid::positions(tokens, 0, None) else {
        return Err(ModelError::Positions { name: NAME, tokens });
    };
    check_resampled("image_size", "position embeddings", from, side, d)?;
    let positions = positions.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    let (from, to) = ((from, from), (side, side));
    let matrix = resample_matrix(model.pos_embed_resample, from, to);
    let matrix = Tensor::from_vec(matrix, (to.0 * to.1, from.0 * from.1), &Device::Cpu)?;
    let patches = positions
        .narrow(1, 1, tokens - 1)?
        .squeeze(0)?
        .contiguous()?;
    let patches = matrix.matmul(&patches)?.unsqueeze(0)?;
    let resampled = Tensor::cat(&[&positions.narrow(1, 0, 1)?, &patches], 1)?;
    tensors.insert(NAME.to_owned(), resampled);
    Ok(Some((from, to)))
}

/// Adds the positions of registers, between those of class token and patches, to the registers, where
/// they come to the same.
fn fold_registers(
    tensors: &mut BTreeMap<String, Tensor>,
    model: &ModelConfig,
) -> Result<(), ModelError> {
    let (Some(positions), Some(registers)) = (tensors.get(NAME), tensors.get(REGISTERS)) else {
        return Ok(());
    };
    let (&[1, tokens, d], &[1, count, width]) = (positions.dims(), registers.dims()) else {
        return Ok(());
    };
    let native = model.image_size / model.patch_size.max(1);
    let Some(Positions {
        registers: own,
        side,
    }) = grid::positions(tokens, count, Some(native))
    else {
        return Ok(());
    };
    if own == 0 || width != d {
        return Ok(());
    }
    let [positions, registers] = [positions, registers].map(|x| x.to_dtype(DType::F32));
    let (positions, registers) = (positions?, registers?);
    let class = positions.narrow(1, 0, 1)?;
    let own = positions.narrow(1, 1, count)?;
    let rest = positions.narrow(1, 1 + count, side * side)?;
    tensors.insert(REGISTERS.to_owned(), (registers + own)?);
    tensors.insert(NAME.to_owned(), Tensor::cat(&[&class, &rest], 1)?);
    Ok(())
}

/// Resamples the patch kernel of `tensors` to the patch size of `model`, so that a patch and the
/// same patch enlarged give the same token (FlexiViT, arXiv:2212.08013, section 3.4; timm's
/// `resample_patch_embed`); the sides before and after, or `None` if there is nothing to do.
///
/// # Errors
/// [`ModelError::Config`] if the patches of `model` are too large to resample to,
/// [`ModelError::Tensor`] from the computation.
pub fn fit_patches(
    tensors: &mut BTreeMap<String, Tensor>,
    model: &ModelConfig,
) -> Result<Option<(usize, usize)>, ModelError> {
    let (Some(kernel), Some(_)) = (tensors.get(KERNEL), model.vit_dims()) else {
        return Ok(None);
    };
    let &[d, channels, from, width] = kernel.dims() else {
        return Ok(None);
    };
    let to = model.patch_size;
    if from != width || from == to || from == 0 || to == 0 {
        return Ok(None);
    }
    check_resampled("patch_size", "a kernel of pixels", from, to, d * channels)?;
    let kernel = kernel.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    let matrix = kernel_matrix(from, to);
    let matrix = Tensor::from_vec(matrix, (to * to, from * from), &Device::Cpu)?;
    let kernel = kernel.reshape((d * channels, from * from))?;
    let resampled = kernel.matmul(&matrix.t()?.contiguous()?)?;
    tensors.insert(KERNEL.to_owned(), resampled.reshape((d, channels, to, to))?);
    Ok(Some((from, to)))
}

/// Refuses to resample `count` grids of side `from` to side `to` where the numbers of the matrix, or
/// of what it makes, are more than any published network asks for.
fn check_resampled(
    key: &str,
    what: &str,
    from: usize,
    to: usize,
    count: usize,
) -> Result<(), ModelError> {
    let each = from.saturating_mul(from).max(count);
    let numbers = to.saturating_mul(to).saturating_mul(each);
    if numbers <= MOST_RESAMPLED {
        return Ok(());
    }
    Err(ModelError::Config(vec![format!(
        "model.{key}: to resample {what} from {from}x{from} to {to}x{to} takes {numbers} numbers, \
         which is more than {MOST_RESAMPLED}"
    )]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PosEmbedResample;

    fn positions(tokens: usize) -> BTreeMap<String, Tensor> {
        let values: Vec<f32> = (0..tokens * 2).map(|i| (i % 7) as f32).collect();
        let tensor = Tensor::from_vec(values, (1, tokens, 2), &Device::Cpu).unwrap();
        BTreeMap::from([(NAME.to_owned(), tensor)])
    }

    fn model(image_size: usize, patch_size: usize) -> ModelConfig {
        ModelConfig {
            image_size,
            patch_size,
            pos_embed_resample: PosEmbedResample::Hf,
            ..Default::default()
        }
    }

    #[test]
    fn another_size_is_resampled_and_the_class_position_kept() {
        let mut tensors = positions(17);
        let done = fit_positions(&mut tensors, &model(48, 8)).unwrap();
        assert_eq!(done, Some(((4, 4), (6, 6))));
        assert_eq!(tensors[NAME].dims(), [1, 37, 2]);
        let class = |tensors: &BTreeMap<String, Tensor>| {
            let class = tensors[NAME].narrow(1, 0, 1).unwrap();
            class.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(class(&tensors), class(&positions(17)));
        assert_eq!(fit_positions(&mut tensors, &model(48, 8)).unwrap(), None);
    }

    #[test]
    fn positions_of_registers_are_added_to_them() {
        let ones = Tensor::ones((1, 4, 2), DType::F32, &Device::Cpu).unwrap();
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // 1 + 4 + 36 tokens; 1 + 4 + 16 for a model of another size.
        for (tokens, size) in [(41, 48), (21, 48)] {
            let mut tensors = positions(tokens);
            let before = flat(&tensors[NAME]);
            tensors.insert(REGISTERS.to_owned(), ones.clone());
            let done = fit_positions(&mut tensors, &model(size, 8)).unwrap();
            assert_eq!(done.is_some(), tokens == 21);
            assert_eq!(tensors[NAME].dims(), [1, 37, 2]);
            assert_eq!(flat(&tensors[NAME])[..2], before[..2]);
            let expected: Vec<f32> = before[2..10].iter().map(|x| x + 1.0).collect();
            assert_eq!(flat(&tensors[REGISTERS]), expected);
        }
        // Registers without positions.
        let mut tensors = positions(37);
        tensors.insert(REGISTERS.to_owned(), ones.clone());
        assert_eq!(fit_positions(&mut tensors, &model(48, 8)).unwrap(), None);
        assert_eq!(flat(&tensors[REGISTERS]), flat(&ones));
    }

    #[test]
    fn a_grid_that_no_memory_holds_is_refused_before_it_is_made() {
        let text = |done: Result<_, ModelError>| done.unwrap_err().to_string();
        let told = text(fit_positions(&mut positions(65), &model(16_384, 1)).map(drop));
        let grids = "model.image_size: to resample position embeddings from 8x8 to 16384x16384";
        assert!(told.contains(grids), "{told}");
        let kernel = Tensor::zeros((2, 3, 16, 16), DType::F32, &Device::Cpu).unwrap();
        let mut tensors = BTreeMap::from([(KERNEL.to_owned(), kernel)]);
        let told = text(fit_patches(&mut tensors, &model(16_384, 16_384)).map(drop));
        assert!(told.contains("from 16x16 to 16384x16384"), "{told}");
    }

    #[test]
    fn what_is_no_square_is_refused() {
        let error = fit_positions(&mut positions(16), &model(48, 8)).unwrap_err();
        let told = "backbone.pos_embed has 16 tokens, not a class token and a square of patches";
        assert_eq!(error.to_string(), told);
    }

    #[test]
    fn pictures_smaller_than_a_patch_are_the_models_fault() {
        let error = fit_positions(&mut positions(17), &model(8, 16)).unwrap_err();
        assert!(error.to_string().contains("model.image_size: 8"), "{error}");
    }
}
