//! From nested dictionaries to one list of names.

use std::collections::BTreeMap;

use crate::pickle::{Id, Node, Objects, Tensor};
use crate::{Limits, PthError, Result};

/// Every tensor under its path of keys, joined by dots.
///
/// # Errors
/// [`PthError::TooLarge`] past `max_depth` (a dictionary that holds itself ends there) and past
/// `max_objects` visits, [`PthError::Tensor`] if two tensors have one name,
/// [`PthError::NoTensors`].
pub(crate) fn tensors(objects: &Objects, limits: &Limits) -> Result<BTreeMap<String, Tensor>> {
    let mut found = BTreeMap::new();
    let (mut visits, mut name_bytes) = (0, 0);
    // Depth first with a stack of our own: (object, name, depth).
    let mut open: Vec<(Id, String, usize)> = vec![(objects.root, String::new(), 0)];
    while let Some((id, name, depth)) = open.pop() {
        // A shared dictionary is walked each time, so its length counts each time.
        visits += 1 + match objects.get(id) {
            Node::Dict(pairs) => pairs.len(),
            Node::Sequence(items) => items.len(),
            _ => 0,
        };
        if visits > limits.max_objects {
            return Err(too_large(
                "visits of shared objects",
                visits,
                limits.max_objects,
            ));
        }
        if depth > limits.max_depth {
            return Err(too_large("nested dictionaries", depth, limits.max_depth));
        }
        let children: Vec<(String, Id)> = match objects.get(id) {
            Node::Tensor(tensor) => {
                let earlier = found.insert(name.clone(), tensor.clone());
                if earlier.is_some() {
                    let what = "two tensors have this name".to_owned();
                    return Err(PthError::Tensor { name, what });
                }
                continue;
            }
            Node::Dict(pairs) => last_of_each(objects, pairs).into_iter().collect(),
            Node::Sequence(items) => (0..items.len())
                .map(|i| i.to_string())
                .zip(items.iter().copied())
                .collect(),
            _ => continue,
        };
        for (key, value) in children {
            if may_hold_tensors(objects.get(value)) {
                let child = join(&name, &key);
                name_bytes += child.len();
                if name_bytes > MAX_NAME_BYTES {
                    return Err(too_large("bytes of names", name_bytes, MAX_NAME_BYTES));
                }
                open.push((value, child, depth + 1));
            }
        }
    }
    if found.is_empty() {
        return Err(PthError::NoTensors {
            keys: keys(objects),
        });
    }
    Ok(found)
}

/// Longest name that is built; a longer one is cut, and then refused as a duplicate or unknown.
const MAX_NAME: usize = 256;

/// Names of all objects together; 500 tensors of a large model have 25 kB.
const MAX_NAME_BYTES: usize = 16 << 20;

fn join(name: &str, key: &str) -> String {
    let mut joined = match name {
        "" => key.to_owned(),
        name => format!("{name}.{key}"),
    };
    let cut = (0..=MAX_NAME.min(joined.len())).rev();
    let cut = cut.into_iter().find(|at| joined.is_char_boundary(*at));
    joined.truncate(cut.unwrap_or(0));
    joined
}

/// As in Python, a key that is set again has its last value. Keys that are no text or number are
/// passed over.
fn last_of_each(objects: &Objects, pairs: &[(Id, Id)]) -> BTreeMap<String, Id> {
    let key = |id| match objects.get(id) {
        Node::Text(text) => Some(text.clone()),
        Node::Int(number) => Some(number.to_string()),
        _ => None,
    };
    pairs
        .iter()
        .filter_map(|(id, value)| Some((key(*id)?, *value)))
        .collect()
}

fn may_hold_tensors(node: &Node) -> bool {
    matches!(node, Node::Tensor(_) | Node::Dict(_) | Node::Sequence(_))
}

/// The first top-level keys with the kind of their values, for an error's text.
fn keys(objects: &Objects) -> Vec<String> {
    const SHOWN: usize = 20;
    let root = objects.get(objects.root);
    let Node::Dict(pairs) = root else {
        return vec![format!("not a dictionary but {}", kind(root))];
    };
    let all = last_of_each(objects, pairs);
    let more = all.len().saturating_sub(SHOWN);
    let mut keys: Vec<String> = all
        .iter()
        .take(SHOWN)
        .map(|(key, value)| {
            let key: String = key.chars().take(80).collect();
            format!("{key} ({})", kind(objects.get(*value)))
        })
        .collect();
    if keys.is_empty() {
        keys.push("an empty dictionary".to_owned());
    }
    if more > 0 {
        keys.push(format!("and {more} more"));
    }
    keys
}

fn kind(node: &Node) -> &'static str {
    match node {
        Node::None => "None",
        Node::Bool(_) => "a truth value",
        Node::Int(_) | Node::Float => "a number",
        Node::Text(_) => "a text",
        Node::Bytes => "bytes",
        Node::Sequence(_) => "a list",
        Node::Dict(_) => "a dictionary",
        Node::Global(_) => "a class",
        Node::Storage(_) => "a bare storage",
        Node::Tensor(_) => "a tensor",
        Node::Opaque(class) => class,
    }
}

fn too_large(what: &'static str, found: usize, limit: usize) -> PthError {
    PthError::TooLarge {
        what,
        found: found as u64,
        limit: limit as u64,
    }
}
