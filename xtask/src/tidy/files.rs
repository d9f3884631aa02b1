//! What `tidy` reads in files: sources, presets and the documents that name them.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// Past this a file has a second subject.
const MAX_LINES: usize = 600;

/// Sources that may be longer, each with its reason.
const LONG_FILES: [(&str, &str); 0] = [];

/// Documents whose paths must exist, as those of `docs/` must.
const DOCUMENTS: [&str; 5] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "data/README.md",
    "tests/golden/README.md",
];

/// Folders that a path in a document begins with.
const FOLDERS: [&str; 7] = [
    "crates/", "tests/", "xtask/", "docs/", "data/", ".ci/", ".github/",
];

/// Named by documents, made by commands: in no clone.
const MADE_LATER: [&str; 2] = ["data/agedb", "data/utkface"];

/// The problems of all files below `root`.
///
/// # Errors
/// If a file cannot be read.
pub(super) fn problems(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in ["crates", "tests", "xtask"] {
        walk(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut problems = Vec::new();
    for path in &files {
        let name = path.strip_prefix(root).unwrap_or(path).to_string_lossy();
        let name = name.replace('\\', "/");
        if let Some("rs" | "py" | "toml") = path.extension().and_then(|e| e.to_str()) {
            problems.extend(source_problems(&name, &read(path)?));
        }
    }
    let mut documents = DOCUMENTS.map(str::to_owned).to_vec();
    let mut pages = names_in(&root.join("docs"))?;
    pages.retain(|name| name.ends_with(".md"));
    documents.extend(pages.iter().map(|name| format!("docs/{name}")));
    for document in documents {
        let text = read(&root.join(&document))?;
        for path in named_paths(&text) {
            if !root.join(&path).exists() && !MADE_LATER.contains(&path.as_str()) {
                problems.push(format!("{document} names {path}, which does not exist"));
            }
        }
    }
    let listed = read(&root.join("crates/selfsame/Cargo.toml"))?;
    let mut tests = names_in(&root.join("tests"))?;
    tests.retain(|name| name.ends_with(".rs"));
    for test in tests {
        if !listed.contains(&format!("\"../../tests/{test}\"")) {
            problems.push(format!(
                "tests/{test} is never run: crates/selfsame/Cargo.toml does not list it"
            ));
        }
    }
    Ok(problems)
}

/// Names of what lies in a folder, in order.
fn names_in(folder: &Path) -> anyhow::Result<Vec<String>> {
    let listing = || format!("listing {}", folder.display());
    let mut names = Vec::new();
    for entry in folder.read_dir().with_context(listing)? {
        names.push(entry.with_context(listing)?.file_name());
    }
    names.sort();
    let names = names.into_iter();
    Ok(names
        .map(|name| name.to_string_lossy().into_owned())
        .collect())
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for name in names_in(folder)? {
        if name.starts_with('.') || name == "target" {
            continue;
        }
        let path = folder.join(name);
        if path.is_dir() {
            walk(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// What is wrong with one source or preset, `name` being its path from the root.
fn source_problems(name: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let lines = text.lines().count();
    let allowed = LONG_FILES.iter().any(|(file, _)| *file == name);
    if !name.ends_with(".toml") && lines > MAX_LINES && !allowed {
        problems.push(format!("{name}: {lines} lines; split it by subject"));
    }
    if name.ends_with(".rs") && !may_be_unsafe(name) {
        for (number, line) in (1..).zip(text.lines()) {
            if is_unsafe(line) {
                problems.push(format!("{name}:{number}: no unsafe code is allowed here"));
            }
        }
    }
    if name.starts_with("crates/selfsame-") && name.ends_with("/src/lib.rs") {
        if !text.starts_with("//! ") {
            problems.push(format!("{name}: does not open with what the crate is for"));
        }
        if !text.lines().any(|line| line.starts_with("//! ```")) {
            problems.push(format!("{name}: its documentation has no example"));
        }
    }
    if name.contains("/presets/") && !text.starts_with("# ") {
        problems.push(format!("{name}: no head comment says what it should reach"));
    }
    problems
}

/// A test whose allocator counts: the allocator's trait is unsafe.
const COUNTING_ALLOCATOR: &str = "crates/selfsame-augment/tests/allocations.rs";

/// Kernels, SIMD modules of the augmentation (ARCHITECTURE.md), and one test's allocator.
fn may_be_unsafe(name: &str) -> bool {
    name == COUNTING_ALLOCATOR
        || name.starts_with("crates/selfsame-kernels/src/")
        || name
            .strip_prefix("crates/selfsame-augment/src/")
            .is_some_and(|rest| rest.split('/').any(|part| part.starts_with("simd")))
}

/// Whether a line of Rust holds the keyword or lifts its lint, comments and texts left out.
fn is_unsafe(line: &str) -> bool {
    let texts_out: String = line.replace("\\\"", "").split('"').step_by(2).collect();
    let code = texts_out.split("//").next().unwrap_or_default();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let lifts = ["allow(", "expect("].iter().any(|word| code.contains(word));
    code.split(|c| !is_word(c))
        .any(|word| word == "unsafe" || (lifts && word == "unsafe_code"))
}

/// Paths between backticks or in links of a Markdown text, outside code blocks.
fn named_paths(text: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            let quoted = line.split('`').skip(1).step_by(2);
            let linked = line
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split(')').next());
            paths.extend(
                quoted
                    .chain(linked)
                    .map(|path| path.trim_end_matches('/').to_owned()),
            );
        }
    }
    paths.retain(|path| {
        FOLDERS
            .iter()
            .any(|folder| format!("{path}/").starts_with(folder))
            && !path.contains(|c: char| c.is_whitespace() || "*{<".contains(c))
    });
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_code_is_found_outside_its_crates_only() {
        let text = "fn f() {\n    unsafe { g() }\n}\n";
        let problems = source_problems("crates/selfsame-eval/src/knn.rs", text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("crates/selfsame-eval/src/knn.rs:2"));
        for name in [
            "crates/selfsame-kernels/src/host.rs",
            "crates/selfsame-augment/src/simd.rs",
            "crates/selfsame-augment/src/ops/simd/rows.rs",
        ] {
            assert!(source_problems(name, text).is_empty(), "{name}");
        }
        assert!(is_unsafe("#![allow(unsafe_code, reason = \"fast\")]"));
        assert!(!is_unsafe("// unsafe here") && !is_unsafe("let x = \"unsafe {\";"));
        assert!(!is_unsafe("unsafe_code = deny") && !is_unsafe("fn not_unsafe() {}"));
    }

    #[test]
    fn long_files_bare_presets_and_undocumented_crates_are_named() {
        let long = "\n".repeat(MAX_LINES + 1);
        assert_eq!(source_problems("tests/long.rs", &long).len(), 1);
        assert!(source_problems("tests/long.rs", &long[1..]).is_empty());
        let preset = "crates/selfsame/src/presets/new.toml";
        assert_eq!(source_problems(preset, "[train]\n").len(), 1);
        assert!(source_problems(preset, "# What for.\n[train]\n").is_empty());
        let lib = "crates/selfsame-new/src/lib.rs";
        assert_eq!(source_problems(lib, "mod a;\n").len(), 2);
        assert!(source_problems(lib, "//! For this.\n//!\n//! ```\n//! ```\n").is_empty());
    }

    #[test]
    fn paths_are_taken_from_backticks_and_links_but_not_from_code() {
        let text = "`crates/a` and [b](docs/b.md) and `cargo run` and `--out data/x`\n\
                    ```\n`crates/c`\n```\n`tests/`, `crates/*/tests`, `rose/d`\n";
        assert_eq!(named_paths(text), ["crates/a", "docs/b.md", "tests"]);
    }
}
