//! The stack machine: protocols 2 to 5, as far as PyTorch uses them.

use std::collections::HashMap;

use super::reader::{Reader, text};
use super::{Global, Id, Node, Objects, globals};
use crate::{Limits, PthError, Result};

/// What an opcode can come to.
enum Fault {
    Wrong(String),
    Forbidden(String, String),
    TooMany(usize),
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Fault::Wrong(what)
    }
}

/// Reads a pickle; nothing of it is executed.
///
/// # Errors
/// [`PthError::Forbidden`] for a class that is not on the list, [`PthError::TooLarge`] past
/// `max_objects`, [`PthError::Pickle`] for everything else.
pub(crate) fn parse(bytes: &[u8], limits: &Limits) -> Result<Objects> {
    let mut machine = Machine {
        reader: Reader::new(bytes),
        objects: Objects {
            nodes: Vec::new(),
            root: 0,
        },
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
        max_objects: limits.max_objects,
    };
    loop {
        let offset = machine.reader.offset;
        match machine.step() {
            Ok(false) => {}
            Ok(true) => return Ok(machine.objects),
            Err(Fault::Wrong(what)) => return Err(PthError::Pickle { offset, what }),
            Err(Fault::Forbidden(module, name)) => {
                return Err(PthError::Forbidden { module, name });
            }
            Err(Fault::TooMany(found)) => {
                return Err(PthError::TooLarge {
                    what: "objects in the pickle",
                    found: found as u64,
                    limit: limits.max_objects as u64,
                });
            }
        }
    }
}

struct Machine<'a> {
    reader: Reader<'a>,
    objects: Objects,
    stack: Vec<Id>,
    /// Stack heights at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Items of shared lists and dictionaries that calls have copied or looked at so far.
    copied: usize,
    max_objects: usize,
}

type Step<T> = std::result::Result<T, Fault>;

impl Machine<'_> {
    /// One opcode; true at the end.
    fn step(&mut self) -> Step<bool> {
        let opcode = self.reader.u8()?;
        match opcode {
            0x80 => match self.reader.u8()? {
                2..=5 => {}
                other => return Err(Fault::Wrong(format!("protocol {other} is not 2 to 5"))),
            },
            0x95 => {
                self.reader.long_len()?; // FRAME: a hint about buffering
            }
            b'.' => {
                self.objects.root = self.pop()?;
                return Ok(true);
            }
            b'(' => self.mark()?,
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'N' => self.push(Node::None)?,
            0x88 => self.push(Node::Bool(true))?,
            0x89 => self.push(Node::Bool(false))?,
            b'J' => {
                let value = i32::from_le_bytes(self.reader.array()?);
                self.push(Node::Int(value.into()))?;
            }
            b'K' => {
                let value = self.reader.u8()?;
                self.push(Node::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.reader.array()?);
                self.push(Node::Int(value.into()))?;
            }
            0x8a => {
                let len = self.reader.u8()?.into();
                self.long(len)?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.reader.array()?);
                self.push(Node::Float(value))?;
            }
            b'X' | 0x8c | 0x8d | b'T' | b'U' | b'B' | b'C' | 0x8e => self.string(opcode)?,
            b']' | b')' | 0x8f => self.push(Node::Sequence(Vec::new()))?,
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b't' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Node::Sequence(items))?;
            }
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.push(Node::Sequence(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(items)?;
            }
            b's' => {
                let pair = self.pop_many(2)?;
                self.set_items(pair)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(items)?;
            }
            b'q' | b'r' | 0x94 => self.remember(opcode)?,
            b'h' => {
                let key = self.reader.u8()?.into();
                self.recall(key)?;
            }
            b'j' => {
                let key = self.reader.u32()?;
                self.recall(key)?;
            }
            b'c' => {
                let (module, name) = (self.reader.line()?, self.reader.line()?);
                self.global(module.to_owned(), name.to_owned())?;
            }
            0x93 => self.stack_global()?,
            b'R' | 0x81 => self.call()?,
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                let storage = globals::persistent(&self.objects, id)?;
                self.push(storage)?;
            }
            other => {
                return Err(Fault::Wrong(format!(
                    "opcode 0x{other:02x} is not on the list"
                )));
            }
        }
        Ok(false)
    }

    fn push(&mut self, node: Node) -> Step<()> {
        let count = self.objects.nodes.len();
        if count >= self.max_objects {
            return Err(Fault::TooMany(count + 1));
        }
        self.objects.nodes.push(node);
        self.push_id(count as Id)
    }

    fn push_id(&mut self, id: Id) -> Step<()> {
        if self.stack.len() >= self.max_objects {
            return Err(Fault::TooMany(self.stack.len() + 1));
        }
        self.stack.push(id);
        Ok(())
    }

    fn mark(&mut self) -> Step<()> {
        if self.marks.len() >= self.max_objects {
            return Err(Fault::TooMany(self.marks.len()));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// Height below which only an open mark's owner may take.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Step<Id> {
        if self.stack.len() <= self.floor() {
            return Err(Fault::Wrong("it takes from an empty stack".to_owned()));
        }
        Ok(self.stack.pop().unwrap_or_default())
    }

    fn pop_many(&mut self, count: usize) -> Step<Vec<Id>> {
        let from = self.stack.len().checked_sub(count);
        match from.filter(|from| *from >= self.floor()) {
            Some(from) => Ok(self.stack.split_off(from)),
            None => Err(Fault::Wrong("it takes from an empty stack".to_owned())),
        }
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark.min(self.stack.len()))),
            None => Err(Fault::Wrong("there is no open mark".to_owned())),
        }
    }

    fn top(&self) -> Step<Id> {
        match self.stack.get(self.floor()..).and_then(<[Id]>::last) {
            Some(id) => Ok(*id),
            None => Err(Fault::Wrong("the stack is empty".to_owned())),
        }
    }

    fn top_node(&mut self) -> Step<&mut Node> {
        let id = self.top()?;
        let node = self.objects.nodes.get_mut(id as usize);
        node.ok_or_else(|| Fault::Wrong("there is no such object".to_owned()))
    }

    /// An integer of up to 8 bytes; a longer one is kept without its value.
    fn long(&mut self, len: usize) -> Step<()> {
        let bytes = self.reader.take(len)?;
        if len > 8 {
            return self.push(Node::Opaque("long integer"));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..len].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(wide)))
    }

    fn string(&mut self, opcode: u8) -> Step<()> {
        let len = match opcode {
            b'X' | b'T' | b'B' => self.reader.u32()? as usize,
            0x8d | 0x8e => self.reader.long_len()?,
            _ => self.reader.u8()?.into(),
        };
        let bytes = self.reader.take(len)?;
        match opcode {
            b'X' | 0x8c | 0x8d | b'U' | b'T' => {
                let text = text(bytes)?.to_owned();
                self.push(Node::Text(text))
            }
            _ => self.push(Node::Bytes),
        }
    }

    fn extend(&mut self, items: Vec<Id>) -> Step<()> {
        match self.top_node()? {
            Node::Sequence(list) => list.extend(items),
            Node::Opaque(_) => {}
            _ => return Err(Fault::Wrong("it appends to what is no list".to_owned())),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Step<()> {
        if !items.len().is_multiple_of(2) {
            return Err(Fault::Wrong("a key has no value".to_owned()));
        }
        match self.top_node()? {
            Node::Dict(dict) => dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            Node::Opaque(_) => {}
            _ => {
                return Err(Fault::Wrong(
                    "it sets keys of what is no dictionary".to_owned(),
                ));
            }
        }
        Ok(())
    }

    fn remember(&mut self, opcode: u8) -> Step<()> {
        let key = match opcode {
            b'q' => self.reader.u8()?.into(),
            b'r' => self.reader.u32()?,
            _ => self.memo.len() as u32,
        };
        let id = self.top()?;
        if self.memo.len() >= self.max_objects {
            return Err(Fault::TooMany(self.memo.len() + 1));
        }
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Step<()> {
        match self.memo.get(&key) {
            Some(id) => self.push_id(*id),
            None => Err(Fault::Wrong(format!(
                "it recalls {key}, which it never kept"
            ))),
        }
    }

    fn global(&mut self, module: String, name: String) -> Step<()> {
        match globals::lookup(&module, &name) {
            Some(global) => self.push(Node::Global(global)),
            None => Err(Fault::Forbidden(module, name)),
        }
    }

    /// The class whose module and name are on the stack.
    fn stack_global(&mut self) -> Step<()> {
        let names = self.pop_many(2)?;
        match (self.objects.get(names[0]), self.objects.get(names[1])) {
            (Node::Text(module), Node::Text(name)) => self.global(module.clone(), name.clone()),
            _ => Err(Fault::Wrong("a class has no name".to_owned())),
        }
    }

    /// Passes over attributes of the object below them, which no weights are in.
    fn build(&mut self) -> Step<()> {
        self.pop()?;
        let id = self.top()?;
        match self.objects.get(id) {
            Node::Global(_) => Err(Fault::Wrong("attributes of a class are set".to_owned())),
            _ => Ok(()),
        }
    }

    fn call(&mut self) -> Step<()> {
        let ids = self.pop_many(2)?;
        let node = match (self.objects.get(ids[0]), self.objects.get(ids[1])) {
            (Node::Global(global), Node::Sequence(args)) => {
                let global: Global = *global;
                // One shared list or dictionary can be the argument of many calls.
                let length = |id: &Id| match self.objects.get(*id) {
                    Node::Sequence(items) => items.len(),
                    Node::Dict(pairs) => pairs.len(),
                    _ => 0,
                };
                let mut lists: usize = args.iter().map(length).sum();
                // The arguments of the function that it calls.
                if global == Global::RebuildFromType
                    && let Some(inner) = args.get(2)
                    && let Node::Sequence(inner) = self.objects.get(*inner)
                {
                    lists += inner.iter().map(length).sum::<usize>();
                }
                self.copied = self.copied.saturating_add(lists);
                if self.copied > self.max_objects {
                    return Err(Fault::TooMany(self.copied));
                }
                globals::call(&self.objects, global, args)?
            }
            _ => return Err(Fault::Wrong("it calls what is no class".to_owned())),
        };
        self.push(node)
    }
}
