//! `cargo xtask tidy`: the rules of the repository that no compiler knows.

mod files;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// Which of our crates each may depend on (ARCHITECTURE.md); anything else is an error.
const ARROWS: [(&str, &[&str]); 15] = [
    ("selfsame-augment", &[]),
    ("selfsame-kernels", &[]),
    ("selfsame-files", &[]),
    ("selfsame-checkpoint", &["selfsame-files"]),
    ("selfsame-report", &[]),
    ("selfsame-pth", &[]),
    ("selfsame-hub", &["selfsame-files"]),
    ("selfsame-data", &["selfsame-augment", "selfsame-files"]),
    ("selfsame-models", &["selfsame-kernels", "selfsame-pth"]),
    ("selfsame-objectives", &["selfsame-kernels"]),
    ("selfsame-optim", &["selfsame-kernels"]),
    ("selfsame-eval", &[]),
    (
        "selfsame-train",
        &[
            "selfsame-data",
            "selfsame-models",
            "selfsame-objectives",
            "selfsame-optim",
            "selfsame-checkpoint",
            "selfsame-eval",
        ],
    ),
    (
        "selfsame",
        &[
            "selfsame-data",
            "selfsame-models",
            "selfsame-eval",
            "selfsame-report",
            "selfsame-train",
            "selfsame-checkpoint",
            "selfsame-hub",
        ],
    ),
    ("xtask", &["selfsame-data"]),
];

/// Crates that must build without candle.
const CANDLE_FREE: [&str; 7] = [
    "selfsame-augment",
    "selfsame-files",
    "selfsame-data",
    "selfsame-report",
    "selfsame-pth",
    "selfsame-hub",
    "xtask",
];

pub(crate) fn run() -> anyhow::Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .context("running cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let mut problems: Vec<String> = packages.iter().flat_map(package_problems).collect();
    let root = metadata["workspace_root"].as_str().unwrap_or(".");
    problems.extend(files::problems(Path::new(root))?);
    if !problems.is_empty() {
        bail!(
            "tidy found {} problem(s):\n  {}",
            problems.len(),
            problems.join("\n  ")
        );
    }
    eprintln!("tidy: {} packages are in order", packages.len());
    Ok(())
}

fn package_problems(package: &Value) -> Vec<String> {
    let name = package["name"].as_str().unwrap_or_default();
    let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
    let folder = manifest.parent().unwrap_or(Path::new("."));
    let mut problems = arrow_problems(name, &runtime_dependencies(package));
    if folder.file_name().and_then(|f| f.to_str()) != Some(name) {
        problems.push(format!(
            "{}: the folder of {name} has another name",
            folder.display()
        ));
    }
    if package["description"]
        .as_str()
        .is_none_or(|text| text.len() < 20)
    {
        problems.push(format!(
            "{name}: description in Cargo.toml is missing or empty"
        ));
    }
    if name.starts_with("selfsame-") {
        for part in ["README.md", "examples", "LICENSE-MIT", "LICENSE-APACHE"] {
            if !folder.join(part).exists() {
                problems.push(format!("{name}: {part} is missing"));
            }
        }
        let library = std::fs::read_to_string(folder.join("src/lib.rs")).unwrap_or_default();
        if !library.contains("#[doc = include_str!(\"../README.md\")]") {
            problems.push(format!("{name}: the examples of README.md are not tested"));
        }
    }
    problems
}

/// Names of what a package needs at run time; dev-dependencies are exempt.
fn runtime_dependencies(package: &Value) -> Vec<&str> {
    let all = package["dependencies"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    all.iter()
        .filter(|d| d["kind"].is_null())
        .filter_map(|d| d["name"].as_str())
        .collect()
}

fn arrow_problems(name: &str, dependencies: &[&str]) -> Vec<String> {
    let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
        return vec![format!(
            "{name}: not in the picture of ARCHITECTURE.md (xtask/src/tidy.rs)"
        )];
    };
    let mut problems = Vec::new();
    for dependency in dependencies {
        if dependency.starts_with("selfsame") && !allowed.contains(dependency) {
            problems.push(format!("{name} must not depend on {dependency}"));
        }
        if dependency.starts_with("candle") && CANDLE_FREE.contains(&name) {
            problems.push(format!(
                "{name} must build without candle, but needs {dependency}"
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_outside_the_picture_is_named() {
        assert!(arrow_problems("selfsame-data", &["selfsame-augment", "csv"]).is_empty());
        let problems = arrow_problems("selfsame-data", &["selfsame-models", "candle-core"]);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("must not depend on selfsame-models"));
    }

    #[test]
    fn a_crate_that_the_picture_lacks_is_named() {
        assert_eq!(arrow_problems("selfsame-new", &[]).len(), 1);
    }
}
