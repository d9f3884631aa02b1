//! From nested dictionaries to one list of names.

use std::collections::BTreeMap;

use crate::error::MAX_SHOWN;
use crate::pickle::{Id, Node, Objects, Tensor};
use crate::{Limits, PthError, Result};

/// A tensor, or the kind of one that is not read.
pub(crate) type Found = std::result::Result<Tensor, &'static str>;

/// Every tensor under its path of keys, joined by dots.
///
/// # Errors
/// [`PthError::TooLarge`] past `max_depth` (a dictionary that holds itself ends there) and past
/// `max_objects` visits, [`PthError::Tensor`] if two tensors have one name or the name is too long,
/// [`PthError::NoTensors`].
pub(crate) fn tensors(objects: &Objects, limits: &Limits) -> Result<BTreeMap<String, Found>> {
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
                enter(&mut found, name, Ok(tensor.clone()))?;
                continue;
            }
            Node::Unreadable(kind) => {
                enter(&mut found, name, Err(*kind))?;
                continue;
            }
            Node::Dict(pairs) => last_of_each(objects, pairs)
                .into_iter()
                .map(|(key, value)| (key.text, value))
                .collect(),
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

fn enter(found: &mut BTreeMap<String, Found>, name: String, tensor: Found) -> Result<()> {
    let what = if name.len() > MAX_NAME {
        format!("its name has more than {MAX_NAME} bytes")
    } else {
        match found.insert(name.clone(), tensor) {
            None => return Ok(()),
            Some(_) => "two tensors have this name".to_owned(),
        }
    };
    let name = match name.char_indices().nth(MAX_SHOWN - 1) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name,
    };
    Err(PthError::Tensor { name, what })
}

/// Longest name of a tensor in bytes; a longer key is cut, and what lies under it refused.
const MAX_NAME: usize = 4096;

/// Names of all objects together; 500 tensors of a large model have 25 kB.
const MAX_NAME_BYTES: usize = 16 << 20;

fn join(name: &str, key: &str) -> String {
    match name {
        "" => key.to_owned(),
        name => format!("{name}.{key}"),
    }
}

/// A key of a dictionary.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// As a part of a name.
    text: String,
    /// Keys of one text may be several, such as 1 and "1": their tensors then have one name, which
    /// is an error. The object itself where the text does not tell it whole.
    is_text: bool,
    object: Option<Id>,
}

impl Key {
    fn new(objects: &Objects, id: Id) -> Self {
        let node = objects.get(id);
        let is_text = matches!(node, Node::Text(_));
        let (text, is_whole) = match node {
            Node::Text(text) if text.len() > MAX_NAME => (cut(text, MAX_NAME), false),
            Node::Sequence(items) => (tuple_text(objects, items), false),
            node => scalar_text(node),
        };
        let object = (!is_whole).then_some(id);
        Self {
            text,
            is_text,
            object,
        }
    }
}

/// A key that is one value as Python writes it, and whether that tells it whole.
fn scalar_text(node: &Node) -> (String, bool) {
    match node {
        Node::Text(text) => (text.clone(), true),
        Node::Int(number) => (number.to_string(), true),
        Node::Float(number) => (format!("{number:?}"), true),
        Node::Bool(true) => ("True".to_owned(), true),
        Node::Bool(false) => ("False".to_owned(), true),
        Node::None => ("None".to_owned(), true),
        other => (format!("<{}>", kind(other)), false),
    }
}

/// A tuple as a part of a name, as Python writes it: `('layer', 1)`.
fn tuple_text(objects: &Objects, items: &[Id]) -> String {
    let mut text = "(".to_owned();
    for (position, id) in items.iter().enumerate() {
        if text.len() > MAX_SHOWN {
            text.push('…');
            break;
        }
        if position > 0 {
            text.push_str(", ");
        }
        match objects.get(*id) {
            Node::Text(item) if item.len() > MAX_SHOWN => text.push_str(&cut(item, MAX_SHOWN)),
            Node::Text(item) => text.push_str(&format!("'{item}'")),
            item => text.push_str(&scalar_text(item).0),
        }
    }
    match items {
        [_] => text + ",)",
        _ => text + ")",
    }
}

/// The beginning of a text with a mark that it is one.
fn cut(text: &str, bytes: usize) -> String {
    let end = (0..=bytes).rev().find(|at| text.is_char_boundary(*at));
    format!("{}…", &text[..end.unwrap_or(0)])
}

/// As in Python, a key that is set again has its last value.
fn last_of_each(objects: &Objects, pairs: &[(Id, Id)]) -> BTreeMap<Key, Id> {
    let mut last = BTreeMap::new();
    // One by one: collected, the keys would all be held at once, each with a text of its own.
    for (id, value) in pairs {
        last.insert(Key::new(objects, *id), *value);
    }
    last
}

fn may_hold_tensors(node: &Node) -> bool {
    matches!(
        node,
        Node::Tensor(_) | Node::Unreadable(_) | Node::Dict(_) | Node::Sequence(_)
    )
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
            let key: String = key.text.chars().take(80).collect();
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
        Node::Int(_) | Node::Float(_) => "a number",
        Node::Text(_) => "a text",
        Node::Bytes => "bytes",
        Node::Sequence(_) => "a list",
        Node::Dict(_) => "a dictionary",
        Node::Global(_) => "a class",
        Node::Storage(_) => "a bare storage",
        Node::Tensor(_) => "a tensor",
        Node::Unreadable(kind) => kind,
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
