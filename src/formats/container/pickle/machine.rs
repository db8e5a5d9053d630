//! The stack machine. Values live in an arena and are named by index, because a pickle fills lists and dicts after it remembered them.
//!
//! Limits: the arena grows by at most one value per instruction; what comes out is at most [`MOST_VALUES`] values, [`MOST_DEPTH`] deep
//! and [`MOST_TEXT`] bytes of text, so that a small pickle whose values repeat each other cannot become a large one.

use std::collections::{HashMap, HashSet};

use super::{opcode, Global, Value};

/// Values that come out, at most. A state dict has some 20 per tensor.
const MOST_VALUES: usize = 1 << 17;
/// How deep they are nested, at most. A state dict needs 6.
const MOST_DEPTH: usize = 32;
/// Bytes of text that come out, at most.
const MOST_TEXT: usize = 1 << 20;
/// Bytes of pickle that are read, at most. The arena is some 50 times as large.
const MOST_BYTES: usize = 1 << 20;
/// Arguments of a call, at most: they are copied, and could be called again and again.
const MOST_ARGUMENTS: usize = 8;

/// Index of a node in the arena.
type Id = usize;

#[derive(Debug, Clone)]
enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Persistent(Id),
    Call(Global, Vec<Id>),
}

struct Machine<'a> {
    code: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack that a MARK remembers.
    marks: Vec<usize>,
    /// Slots are small and dense in real files, and may be anything in others.
    memo: HashMap<u64, Id>,
}

/// Reads a pickle of protocol 2 to 5.
///
/// # Errors
/// As text: an instruction or a name that is not allowed, a pickle that is damaged or cut off, one that is larger than any state dict.
pub fn read(bytes: &[u8]) -> Result<Value, String> {
    if bytes.len() > MOST_BYTES {
        return Err(format!("a pickle of {} bytes is no state dict: at most {MOST_BYTES} are read", bytes.len()));
    }
    let mut m = Machine { code: bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let root = m.run().map_err(|e| format!("{e} (byte {} of the pickle)", m.at))?;
    let mut budget = Budget { values: MOST_VALUES, text: MOST_TEXT };
    value(&m.nodes, root, 0, &mut budget)
}

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let rest = &self.code[self.at..];
        let taken = rest.get(..n).ok_or_else(|| format!("it ends where {n} more bytes are announced"))?;
        self.at += n;
        Ok(taken)
    }

    fn number(&mut self, n: usize) -> Result<u64, String> {
        Ok(self.take(n)?.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b)))
    }

    /// Bytes with a length of `n` bytes before them.
    fn counted(&mut self, n: usize) -> Result<&'a [u8], String> {
        let length = usize::try_from(self.number(n)?).map_err(|_| "a length beyond this machine".to_string())?;
        self.take(length)
    }

    fn text(&mut self, n: usize) -> Result<&'a str, String> {
        std::str::from_utf8(self.counted(n)?).map_err(|_| "a string that is not UTF-8".into())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.code[self.at..];
        // Names are short: no search through the rest of a damaged file.
        let length = rest.iter().take(256).position(|&b| b == b'\n').ok_or("a name without an end")?;
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length]).map_err(|_| "a name that is not UTF-8".into())
    }

    fn push(&mut self, node: Node<'a>) {
        self.nodes.push(node);
        self.stack.push(self.nodes.len() - 1);
    }

    /// Where the topmost MARK left the stack: nothing below it may be taken.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, String> {
        if self.stack.len() <= self.floor() {
            return Err("an instruction that takes a value where there is none".into());
        }
        Ok(self.stack.pop().expect("it is higher than its floor"))
    }

    fn top(&self) -> Result<Id, String> {
        self.stack
            .last()
            .copied()
            .filter(|_| self.stack.len() > self.floor())
            .ok_or_else(|| "an instruction for a value that is not there".into())
    }

    /// What lies above the last MARK.
    fn marked(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("an instruction that needs a MARK")?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, n: usize) -> Result<(), String> {
        let mut items = Vec::with_capacity(n);
        for _ in 0..n {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Node::Tuple(items));
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), String> {
        match Global::find(module, name) {
            Some(global) => {
                self.push(Node::Global(global));
                Ok(())
            }
            None => Err(format!("it names `{module}.{name}`, which no state dict needs; nothing was run")),
        }
    }

    fn set(&mut self, items: Vec<Id>) -> Result<(), String> {
        if !items.len().is_multiple_of(2) {
            return Err("a dict with a key and no value".into());
        }
        let target = self.top()?;
        let Node::Dict(entries) = &mut self.nodes[target] else {
            return Err("entries for what is no dict".into());
        };
        entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        let target = self.top()?;
        let Node::List(list) = &mut self.nodes[target] else {
            return Err("items for what is no list".into());
        };
        list.extend(items);
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Node::Tuple(arguments) = &self.nodes[arguments] else {
            return Err("a call without a tuple of arguments".into());
        };
        if arguments.len() > MOST_ARGUMENTS {
            return Err(format!("a call with {} arguments", arguments.len()));
        }
        let arguments = arguments.clone();
        let Node::Global(global) = self.nodes[callee] else {
            return Err("a call of what is no name".into());
        };
        match global {
            // An empty one is a dict, filled later; one made of a list of pairs is not what PyTorch writes.
            Global::OrderedDict if arguments.is_empty() => self.push(Node::Dict(Vec::new())),
            Global::RebuildTensor | Global::RebuildParameter => self.push(Node::Call(global, arguments)),
            Global::OrderedDict | Global::Storage(_) => {
                return Err(format!("it calls `{}.{}` with {} arguments", global.names().0, global.names().1, arguments.len()))
            }
        }
        Ok(())
    }

    fn run(&mut self) -> Result<Id, String> {
        if self.number(1)? != 0x80 {
            return Err("it does not begin as a pickle of protocol 2 or later".into());
        }
        let protocol = self.number(1)?;
        if !(2..=5).contains(&protocol) {
            return Err(format!("protocol {protocol}: 2 to 5 are read"));
        }
        loop {
            let op = self.take(1)?[0];
            match op {
                b'N' => self.push(Node::None),
                0x88 => self.push(Node::Bool(true)),
                0x89 => self.push(Node::Bool(false)),
                b'K' => {
                    let v = self.number(1)?;
                    self.push(Node::Int(v as i64));
                }
                b'M' => {
                    let v = self.number(2)?;
                    self.push(Node::Int(v as i64));
                }
                b'J' => {
                    let v = self.number(4)? as u32 as i32;
                    self.push(Node::Int(v.into()));
                }
                0x8a => {
                    let raw = self.counted(1)?;
                    if raw.len() > 8 {
                        return Err(format!("an integer of {} bytes: at most 8 are read", raw.len()));
                    }
                    // Two's complement: the sign is the last byte's.
                    let sign = if raw.last().is_some_and(|b| b & 0x80 != 0) { -1i64 } else { 0 };
                    let v = raw.iter().rev().fold(sign, |value, &b| value << 8 | i64::from(b));
                    self.push(Node::Int(v));
                }
                b'G' => {
                    let raw = self.take(8)?;
                    self.push(Node::Float(f64::from_be_bytes(raw.try_into().expect("8 were taken"))));
                }
                b'X' => {
                    let v = self.text(4)?;
                    self.push(Node::Text(v));
                }
                0x8c => {
                    let v = self.text(1)?;
                    self.push(Node::Text(v));
                }
                0x8d => {
                    let v = self.text(8)?;
                    self.push(Node::Text(v));
                }
                b'C' => {
                    let v = self.counted(1)?;
                    self.push(Node::Bytes(v));
                }
                b'B' => {
                    let v = self.counted(4)?;
                    self.push(Node::Bytes(v));
                }
                b'(' => self.marks.push(self.stack.len()),
                b')' => self.push(Node::Tuple(Vec::new())),
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b't' => {
                    let items = self.marked()?;
                    self.push(Node::Tuple(items));
                }
                b']' => self.push(Node::List(Vec::new())),
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.marked()?;
                    self.append(items)?;
                }
                b'}' => self.push(Node::Dict(Vec::new())),
                b's' => {
                    let (v, k) = (self.pop()?, self.pop()?);
                    self.set(vec![k, v])?;
                }
                b'u' => {
                    let items = self.marked()?;
                    self.set(items)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Node::Text(module), Node::Text(name)) = (&self.nodes[module], &self.nodes[name]) else {
                        return Err("a name that is not made of strings".into());
                    };
                    let (module, name) = (*module, *name);
                    self.global(module, name)?;
                }
                b'R' => self.call()?,
                b'b' => {
                    // PyTorch gives its OrderedDicts an attribute `_metadata`: versions of module classes, which no number depends on.
                    let state = self.pop()?;
                    let target = self.top()?;
                    if !(matches!(self.nodes[target], Node::Dict(_)) && matches!(self.nodes[state], Node::Dict(_))) {
                        return Err("attributes (BUILD) for what is no OrderedDict".into());
                    }
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Node::Persistent(id));
                }
                b'q' | b'r' => {
                    let slot = self.number(if op == b'q' { 1 } else { 4 })?;
                    let id = self.top()?;
                    self.memo.insert(slot, id);
                }
                0x94 => {
                    let id = self.top()?;
                    self.memo.insert(self.memo.len() as u64, id);
                }
                b'h' | b'j' => {
                    let slot = self.number(if op == b'h' { 1 } else { 4 })?;
                    let id = *self.memo.get(&slot).ok_or_else(|| format!("it asks for value {slot}, which was never stored"))?;
                    self.stack.push(id);
                }
                // A frame announces how many bytes follow: of use to who reads from a pipe.
                0x95 => drop(self.take(8)?),
                b'.' => {
                    let root = self.pop()?;
                    if !self.stack.is_empty() || !self.marks.is_empty() {
                        return Err("values are left over at its end".into());
                    }
                    if self.at != self.code.len() {
                        return Err(format!("{} bytes follow its end", self.code.len() - self.at));
                    }
                    return Ok(root);
                }
                other => {
                    self.at -= 1;
                    return Err(match opcode::name(other) {
                        Some(name) => format!("it uses the instruction {name}, which no state dict needs; nothing was run"),
                        None => format!("byte {other:#04x} is no instruction of a state dict"),
                    });
                }
            }
        }
    }
}

/// What may still come out.
struct Budget {
    values: usize,
    text: usize,
}

impl Budget {
    fn text(&mut self, bytes: usize) -> Result<(), String> {
        self.text = self.text.checked_sub(bytes).ok_or_else(|| format!("its text adds up to more than {MOST_TEXT} bytes"))?;
        Ok(())
    }
}

fn value(nodes: &[Node<'_>], id: Id, depth: usize, budget: &mut Budget) -> Result<Value, String> {
    if depth > MOST_DEPTH {
        return Err(format!("its values are nested more than {MOST_DEPTH} deep"));
    }
    budget.values = budget.values.checked_sub(1).ok_or_else(|| format!("it holds more than {MOST_VALUES} values"))?;
    let all = |ids: &[Id], budget: &mut Budget| ids.iter().map(|&i| value(nodes, i, depth + 1, budget)).collect::<Result<Vec<_>, _>>();
    Ok(match &nodes[id] {
        Node::None => Value::None,
        Node::Bool(v) => Value::Bool(*v),
        Node::Int(v) => Value::Int(*v),
        Node::Float(v) => Value::Float(*v),
        Node::Text(v) => {
            budget.text(v.len())?;
            Value::Text((*v).to_string())
        }
        Node::Bytes(v) => {
            budget.text(v.len())?;
            Value::Bytes(v.to_vec())
        }
        Node::Tuple(ids) => Value::Tuple(all(ids, budget)?),
        Node::List(ids) => Value::List(all(ids, budget)?),
        Node::Dict(entries) => {
            // Python takes the last of two equal keys, other readers the first: no reader should have to choose.
            let mut seen = HashSet::new();
            let mut dict = Vec::new();
            for &(k, v) in entries {
                let key = value(nodes, k, depth + 1, budget)?;
                if let Node::Text(name) = nodes[k] {
                    if !seen.insert(name) {
                        return Err(format!("it has two values for {name:?}"));
                    }
                }
                dict.push((key, value(nodes, v, depth + 1, budget)?));
            }
            Value::Dict(dict)
        }
        Node::Global(g) => Value::Global(*g),
        Node::Persistent(id) => Value::Persistent(Box::new(value(nodes, *id, depth + 1, budget)?)),
        Node::Call(g, ids) => Value::Call(*g, all(ids, budget)?),
    })
}
