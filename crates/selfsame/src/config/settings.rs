//! The flags of `train` and its kin, merged with preset and file.

use std::path::PathBuf;

use selfsame_models::Arch;
use toml::Value;

use super::{Merged, preset};
use crate::cli::Settings;
use crate::exit::usage;
use crate::stderr::tell;

/// A value by a flag that only some of the commands with [`Settings`] have.
pub(crate) struct OwnFlag {
    key: &'static str,
    value: Value,
    flag: &'static str,
}

fn said_nothing(flag: &str) -> anyhow::Error {
    usage(format!(
        "{flag}: it is empty; say what is meant, or leave the flag out"
    ))
}

impl OwnFlag {
    /// `--init W`.
    ///
    /// # Errors
    /// A usage error if it is empty, as a variable of a script may be.
    pub(crate) fn init(spec: Option<&str>) -> anyhow::Result<Option<Self>> {
        match spec {
            None => Ok(None),
            Some("") => Err(said_nothing("--init")),
            Some(spec) => Ok(Some(Self {
                key: "train.init",
                value: Value::String(spec.to_owned()),
                flag: "--init",
            })),
        }
    }

    /// `--seed N`.
    ///
    /// # Errors
    /// A usage error above what TOML's integers hold.
    pub(crate) fn seed(seed: Option<u64>) -> anyhow::Result<Option<Self>> {
        let Some(seed) = seed else { return Ok(None) };
        let seed = i64::try_from(seed).map_err(|_| usage("--seed: at most 2^63 - 1"))?;
        Ok(Some(Self {
            key: "seed",
            value: seed.into(),
            flag: "--seed",
        }))
    }
}

impl Merged {
    /// Defaults, then preset, file, flags (`own` is of the command alone) and `--set`.
    pub(crate) fn from_settings(settings: &Settings, own: Option<OwnFlag>) -> anyhow::Result<Self> {
        let mut merged = Self::defaults();
        if let Some(name) = &settings.preset {
            merged.overlay(preset(name)?, &format!("preset {name}"))?;
        }
        let arch_of_preset = merged.arch();
        if let Some(path) = &settings.config {
            let text = std::fs::read_to_string(path)
                .map_err(|error| usage(format!("--config {}: {error}", path.display())))?;
            merged.overlay(&text, &path.display().to_string())?;
        }
        let as_text = |dir: &PathBuf| {
            dir.to_str().map(str::to_owned).ok_or_else(|| {
                usage(format!(
                    "--images-root {}: a path that is no UTF-8 cannot be kept in a configuration",
                    dir.display()
                ))
            })
        };
        let images_root = settings.images_root.as_ref().map(as_text).transpose()?;
        let flags = [
            ("--data", "data.train", settings.data.clone()),
            ("--val", "data.val", settings.val.clone()),
            ("--layout", "data.layout", settings.layout.clone()),
            ("--images-root", "data.images_root", images_root),
            ("--precision", "train.precision", settings.precision.clone()),
        ];
        for (flag, key, value) in flags {
            if value.as_deref() == Some("") {
                return Err(said_nothing(flag));
            }
            if let Some(value) = value {
                merged.put(key, Value::String(value), "flag")?;
            }
        }
        let device = settings.device.as_deref();
        merged.put_machine(device, settings.threads, settings.max_memory, |_| "flag")?;
        if settings.allow_outside {
            merged.put("data.allow_outside", Value::Boolean(true), "flag")?;
        }
        if let Some(flag) = own {
            merged.put(flag.key, flag.value, flag.flag)?;
        }
        merged.set_all(&settings.set)?;
        merged.make_absolute()?;
        if merged.arch() != arch_of_preset {
            merged.forget_sizes_of_preset();
        }
        Ok(merged)
    }

    /// The flags of `train` and `resume` that say what a run may take of a machine; `source` is what
    /// is kept of where a value came from, given its flag.
    ///
    /// # Errors
    /// A usage error for an empty device, or more threads than TOML's integers hold.
    pub(crate) fn put_machine(
        &mut self,
        device: Option<&str>,
        threads: Option<usize>,
        max_memory_mib: Option<u64>,
        source: impl Fn(&'static str) -> &'static str,
    ) -> anyhow::Result<()> {
        if let Some(device) = device {
            if device.is_empty() {
                return Err(said_nothing("--device"));
            }
            let value = Value::String(device.to_owned());
            self.put("train.device", value, source("--device"))?;
        }
        let numbers = [
            ("--threads", "train.threads", threads.map(|n| n as u64)),
            ("--max-memory", "train.max_memory_mib", max_memory_mib),
        ];
        for (flag, key, number) in numbers {
            if let Some(number) = number {
                let integer = i64::try_from(number)
                    .map_err(|_| usage(format!("{flag} {number}: too many")))?;
                self.put(key, Value::Integer(integer), source(flag))?;
            }
        }
        Ok(())
    }

    fn arch(&self) -> Option<String> {
        let arch = self.table.get("model")?.get("arch")?;
        Some(arch.as_str()?.to_owned())
    }

    /// Leaves out what a preset said of its own architecture: another one has other sizes.
    fn forget_sizes_of_preset(&mut self) {
        let arch = self.arch().unwrap_or_default();
        let is_resnet = arch.parse().is_ok_and(|arch: Arch| !arch.is_vit());
        let own = Self::defaults().table;
        let mut forgotten = Vec::new();
        for key in ["embed_dim", "depth", "num_heads", "drop_path_rate"] {
            let whole_key = format!("model.{key}");
            let source = self.sources.get(&whole_key);
            let is_of_preset = source.is_some_and(|source| source.starts_with("preset "));
            let value = match key {
                "drop_path_rate" if is_resnet => Some(Value::Float(0.0)),
                "drop_path_rate" => None,
                _ => own["model"].get(key).cloned(),
            };
            if let (true, Some(value)) = (is_of_preset, value) {
                self.table["model"][key] = value;
                self.sources.remove(&whole_key);
                forgotten.push(whole_key);
            }
        }
        if !forgotten.is_empty() {
            tell!(
                "note: model.arch is {arch}, so what the preset says of {} does not count",
                forgotten.join(", ")
            );
        }
    }
}
