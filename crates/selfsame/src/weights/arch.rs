//! `--arch ARCH[/PATCH][@SIZE]`.

use selfsame_models::{ModelConfig, NamedArch, ParseArchError};

use super::describe_model;
use crate::exit::usage;

/// What `--arch` makes of an architecture that is known: the same with another patch or image size.
///
/// # Errors
/// A usage error for what is no architecture, is another network, or has sizes that do not fit.
pub(super) fn asked(text: &str, known: Option<ModelConfig>) -> anyhow::Result<ModelConfig> {
    let named: NamedArch = text.parse().map_err(|problem: ParseArchError| {
        usage(format!(
            "--arch {text}: {problem}; write it as vit_small/16@224"
        ))
    })?;
    let model = match known {
        None => named.model(),
        Some(known) if named.arch == known.arch => named.sizes_for(known),
        Some(known) if known.arch.is_vit() => {
            return Err(usage(format!(
                "--arch {text}: these weights are {}; another patch or image size is all that \
                 --arch can give them, such as {}/16@224",
                describe_model(&known),
                known.arch
            )));
        }
        Some(known) => {
            return Err(usage(format!(
                "--arch {text}: these weights are {known}; --arch can give them nothing else",
                known = known.arch
            )));
        }
    };
    match model.check().as_slice() {
        [] => Ok(model),
        problems => Err(usage(format!("--arch {text}: {}", problems.join("; ")))),
    }
}

#[cfg(test)]
mod tests {
    use selfsame_models::Arch;

    use super::*;

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
        let error = asked("vit_huge", Some(known)).unwrap_err().to_string();
        assert!(error.contains("known are vit_tiny, vit_small"), "{error}");
    }
}
