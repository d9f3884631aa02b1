//! Architectures by a short name.

use std::str::FromStr;

use crate::config::{Arch, ModelConfig};
use crate::error::ParseArchError;
use crate::input::InputConfig;

/// `ARCH[/PATCH][@SIZE]`, such as `vit_small/16@224`: an architecture with what was said of its
/// sizes in pixels. A ResNet has no patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedArch {
    /// The architecture.
    pub arch: Arch,
    /// Side of a patch, if it was said.
    pub patch_size: Option<usize>,
    /// Side of the pictures, if it was said.
    pub image_size: Option<usize>,
}

impl FromStr for NamedArch {
    type Err = ParseArchError;

    fn from_str(text: &str) -> Result<Self, ParseArchError> {
        let number = |size: &str| {
            let wrong = |_| ParseArchError(format!("{text:?}: {size:?} is not a size in pixels"));
            size.parse().map_err(wrong)
        };
        let (rest, image_size) = match text.split_once('@') {
            Some((rest, size)) => (rest, Some(number(size)?)),
            None => (text, None),
        };
        let (arch, patch_size) = match rest.split_once('/') {
            Some((arch, patch)) => (arch, Some(number(patch)?)),
            None => (rest, None),
        };
        let arch: Arch = arch.parse()?;
        if let (false, Some(patch)) = (arch.is_vit(), patch_size) {
            return Err(ParseArchError(format!(
                "{text:?}: {arch} has no patches, of {patch} pixels or any"
            )));
        }
        Ok(Self {
            arch,
            patch_size,
            image_size,
        })
    }
}

impl NamedArch {
    /// The whole configuration: patches of 16 pixels at 224 unless it says otherwise.
    pub fn model(self) -> ModelConfig {
        let known = ModelConfig {
            arch: self.arch,
            patch_size: 16,
            image_size: 224,
            ..ModelConfig::default()
        };
        self.sizes_for(known)
    }

    /// Pictures of the size that is said, else of the one that [`NamedArch::model`] is made for, with
    /// ImageNet's normalisation.
    pub fn input(self) -> InputConfig {
        let input = InputConfig::imagenet(&self.model());
        InputConfig {
            image_size: self.image_size.unwrap_or(input.image_size),
            ..input
        }
    }

    /// `known` with the sizes that are said here.
    pub fn sizes_for(self, known: ModelConfig) -> ModelConfig {
        ModelConfig {
            patch_size: self.patch_size.unwrap_or(known.patch_size),
            image_size: self.image_size.unwrap_or(known.image_size),
            ..known
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_from_the_name() {
        let model = |text: &str| text.parse::<NamedArch>().unwrap().model();
        let tiny = model("vit_tiny/8@64");
        assert_eq!(tiny.arch, Arch::VitTiny);
        assert_eq!((tiny.patch_size, tiny.image_size), (8, 64));
        assert_eq!(model("vit_tiny@64").patch_size, 16);
        assert_eq!(model("resnet18").image_size, 224);
    }

    #[test]
    fn pictures_have_the_size_that_is_said() {
        let size = |text: &str| text.parse::<NamedArch>().unwrap().input().image_size;
        assert_eq!(size("vit_tiny/8@64"), 64);
        assert_eq!(size("vit_tiny/8"), 224);
        assert_eq!(size("resnet18@64"), 64);
        assert_eq!(size("resnet18"), 224);
    }

    #[test]
    fn what_is_no_name_says_which_part() {
        for (text, part) in [
            ("vit_huge", "vit_huge"),
            ("vit_tiny/x", "\"x\""),
            ("vit_tiny/8@", "\"\""),
            ("vit_tiny@64/8", "\"64/8\""),
            ("resnet18/16@64", "resnet18 has no patches"),
        ] {
            let error = text.parse::<NamedArch>().unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn a_refused_name_is_an_error_that_others_can_carry() {
        let read = |text: &str| -> Result<NamedArch, Box<dyn std::error::Error + Send + Sync>> {
            let _: Arch = text.split('/').next().unwrap_or(text).parse()?;
            Ok(text.parse()?)
        };
        assert!(read("vit_tiny/8").is_ok());
        let error = read("vit_tiny/x").unwrap_err();
        assert!(error.is::<ParseArchError>(), "{error}");
    }
}
