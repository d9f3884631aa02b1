//! `docs/configuration.md` against the program.

use std::collections::BTreeSet;

use super::*;

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    std::fs::read_to_string(path).unwrap()
}

/// The cells of the page's tables whose first cell is one name, by that name.
fn rows(page: &str) -> Vec<(&str, Vec<&str>)> {
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| ")?.split(" | ").collect();
        let name = cells[0].strip_prefix('`')?.strip_suffix('`')?;
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.".contains(c);
        name.chars().all(is_name).then_some((name, cells))
    });
    rows.collect()
}

fn defaults() -> BTreeMap<String, Value> {
    let mut leaves = Vec::new();
    collect_leaves(&Merged::defaults().table, "", &mut leaves);
    leaves.into_iter().collect()
}

/// What the program says there is, of a name that there is not.
fn expected_of(set: &str) -> Vec<String> {
    let Err(error) = merged(&[set]) else {
        return Vec::new();
    };
    let error = error.to_string();
    let Some((_, names)) = error.split_once("expected ") else {
        return Vec::new();
    };
    let names = names.split(" in `").next().unwrap();
    names
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn its_keys_and_defaults_are_the_programs() {
    let (page, defaults) = (page(), defaults());
    let mut told = BTreeSet::new();
    for (key, cells) in rows(&page) {
        if !(key.contains('.') || defaults.contains_key(key)) {
            continue;
        }
        assert_eq!(cells.len(), 5, "{key}: {cells:?}");
        let default = defaults.get(key);
        let default = default.unwrap_or_else(|| panic!("the program has no {key}"));
        if !cells[2].contains("operations") {
            let text = cells[3].trim_matches('`');
            let value = format!("v = {text}").parse::<Table>().unwrap()["v"].clone();
            assert_eq!(value, *default, "{key}");
        }
        assert!(told.insert(key), "{key} stands there twice");
    }
    for key in defaults.keys() {
        assert!(told.contains(key.as_str()), "{key} is missing");
    }
}

#[test]
fn its_names_are_those_that_the_program_takes() {
    let page = page();
    let mut with_names = 0;
    for (key, cells) in rows(&page) {
        if !matches!(defaults().get(key), Some(Value::String(_))) {
            continue;
        }
        let names = expected_of(&format!("{key}=nonsense"));
        with_names += usize::from(!names.is_empty());
        for name in names {
            let name = format!("`{name}`");
            assert!(cells[2].contains(&name), "{key}: {name} is missing");
        }
    }
    assert!(with_names > 10, "{with_names}");
    for (name, _) in PRESETS {
        assert!(page.contains(&format!("`{name}`")), "preset {name}");
    }
}

#[test]
fn its_operations_and_their_settings_are_the_programs() {
    let page = page();
    let ops = expected_of("augment.local=[{ op = \"nonsense\" }]");
    assert!(ops.len() >= 5, "{ops:?}");
    let rows: BTreeMap<&str, Vec<&str>> = rows(&page).into_iter().collect();
    for op in &ops {
        let row = rows.get(op.as_str());
        let row = row.unwrap_or_else(|| panic!("{op} is missing"));
        let settings = expected_of(&format!(
            "augment.local=[{{ op = \"{op}\", nonsense = 1 }}]"
        ));
        assert!(settings.iter().any(|setting| setting == "p"), "{op}");
        for setting in settings {
            let is_told = setting == "p" || row[2].contains(&format!("`{setting}`"));
            assert!(is_told, "{op}: {setting} is missing");
        }
    }
    let known = |name: &&str| ops.iter().any(|op| op == name) || defaults().contains_key(*name);
    let unknown: Vec<&&str> = rows.keys().filter(|name| !known(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn its_examples_are_configurations_and_what_may_change_is_complete() {
    let page = page();
    let blocks: Vec<&str> = page.split("```toml\n").skip(1).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let mut merged = Merged::defaults();
        let text = block.split("```").next().unwrap();
        merged.overlay(text, "docs/configuration.md").unwrap();
        merged.resolve().unwrap();
    }
    let line = page
        .lines()
        .find(|line| line.contains("only these may change"));
    let told = line.unwrap().split('`').skip(1).step_by(2);
    let keys = told.filter(|name| !name.contains(' ')).collect::<Vec<_>>();
    assert_eq!(keys, MAY_CHANGE);
}
