//! `ARCH[/PATCH][@SIZE]`, in `random:` and `--arch`.

use selfsame_models::{Arch, ModelConfig};

use super::describe_model;
use crate::exit::usage;

/// An architecture with what was said of its sizes.
struct Named {
    arch: Arch,
    patch_size: Option<usize>,
    image_size: Option<usize>,
}

fn parse(text: &str) -> Option<Named> {
    let (text, image_size) = match text.split_once('@') {
        Some((text, size)) => (text, Some(size.parse().ok()?)),
        None => (text, None),
    };
    let (arch, patch_size) = match text.split_once('/') {
        Some((arch, patch)) => (arch, Some(patch.parse().ok()?)),
        None => (text, None),
    };
    Some(Named {
        arch: arch.parse().ok()?,
        patch_size,
        image_size,
    })
}

/// The architecture of that name; patches of 16 pixels at 224 unless it says otherwise.
pub(super) fn parse_arch(text: &str) -> Option<ModelConfig> {
    let named = parse(text)?;
    Some(ModelConfig {
        arch: named.arch,
        patch_size: named.patch_size.unwrap_or(16),
        image_size: named.image_size.unwrap_or(224),
        ..ModelConfig::default()
    })
}

/// What `--arch` makes of an architecture that is known: the same with another patch or image size.
///
/// # Errors
/// A usage error for what is no architecture, is another network, or has sizes that do not fit.
pub(super) fn asked(text: &str, known: Option<ModelConfig>) -> anyhow::Result<ModelConfig> {
    let wrong = || usage(format!("--arch {text}: write it as vit_small/16@224"));
    let model = match known {
        None => parse_arch(text).ok_or_else(wrong)?,
        Some(known) => {
            let named = parse(text).ok_or_else(wrong)?;
            if named.arch != known.arch {
                return Err(usage(format!(
                    "--arch {text}: these weights are {}; another patch or image size is all that \
                     --arch can give them, such as {}/16@224",
                    describe_model(&known),
                    known.arch
                )));
            }
            ModelConfig {
                patch_size: named.patch_size.unwrap_or(known.patch_size),
                image_size: named.image_size.unwrap_or(known.image_size),
                ..known
            }
        }
    };
    match model.check().as_slice() {
        [] => Ok(model),
        problems => Err(usage(format!("--arch {text}: {}", problems.join("; ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn baselines_are_read_from_their_names() {
        let model = parse_arch("vit_tiny/8@64").unwrap();
        assert_eq!((model.patch_size, model.image_size), (8, 64));
        assert_eq!(parse_arch("resnet18").unwrap().image_size, 224);
        assert!(parse_arch("vit_huge").is_none() && parse_arch("vit_tiny/x").is_none());
    }

    #[test]
    fn a_known_network_keeps_what_is_not_asked_for() {
        let known = ModelConfig {
            arch: Arch::VitTiny,
            patch_size: 8,
            image_size: 32,
            depth: 2,
            ..ModelConfig::default()
        };
        let model = asked("vit_tiny/4", Some(known.clone())).unwrap();
        assert_eq!(
            (model.patch_size, model.image_size, model.depth),
            (4, 32, 2)
        );
        for wrong in [
            "resnet50",
            "vit_small/8",
            "nonsense",
            "vit_tiny/5",
            "vit_tiny/0",
        ] {
            let error = asked(wrong, Some(known.clone())).unwrap_err();
            assert!(error.is::<crate::exit::Usage>(), "{wrong}");
            assert!(error.to_string().contains(&format!("--arch {wrong}")));
        }
    }
}
