//! Python pickles, read as data by a strict allow-list and never executed.
//!
//! A pickle is a program for a small stack machine whose instructions can name any Python function and call it. This reader knows the
//! instructions that build plain values, the few names ([`Global`]) that PyTorch's state dicts use, and keeps calls of those names as
//! data ([`Value::Call`]) for [`pt`](super::pt) to interpret. Any other instruction or name is an error that says which.
//!
//! Not for: classes, functions, references between values (a shared value is read as two equal ones), values that contain themselves.

mod machine;
mod opcode;
mod write;

pub use machine::read;
pub use write::write;

use super::array::Element;

/// A name a pickle may mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.FloatStorage` and its siblings.
    Storage(Element),
}

/// Every name there is, with its module: reader and writer go by this table.
const GLOBALS: &[(&str, &str, Global)] = &[
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils", "_rebuild_parameter", Global::RebuildParameter),
    ("torch", "DoubleStorage", Global::Storage(Element::F64)),
    ("torch", "FloatStorage", Global::Storage(Element::F32)),
    ("torch", "HalfStorage", Global::Storage(Element::F16)),
    ("torch", "BFloat16Storage", Global::Storage(Element::Bf16)),
    ("torch", "LongStorage", Global::Storage(Element::I64)),
    ("torch", "IntStorage", Global::Storage(Element::I32)),
    ("torch", "ShortStorage", Global::Storage(Element::I16)),
    ("torch", "CharStorage", Global::Storage(Element::I8)),
    ("torch", "ByteStorage", Global::Storage(Element::U8)),
    ("torch", "BoolStorage", Global::Storage(Element::Bool)),
];

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        GLOBALS.iter().find(|(m, n, _)| *m == module && *n == name).map(|(.., g)| *g)
    }

    fn names(self) -> (&'static str, &'static str) {
        let (module, name, _) = GLOBALS.iter().find(|(.., g)| *g == self).expect("the table has every case");
        (module, name)
    }
}

/// What a pickle holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`
    None,
    /// `True`, `False`
    Bool(bool),
    /// An integer of at most 8 bytes.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Text(String),
    /// A byte string.
    Bytes(Vec<u8>),
    /// A tuple.
    Tuple(Vec<Value>),
    /// A list.
    List(Vec<Value>),
    /// A dict, or an `OrderedDict` (its attributes are left out), in the file's order.
    Dict(Vec<(Value, Value)>),
    /// A name by itself.
    Global(Global),
    /// What stands for an object outside the pickle; PyTorch's storages.
    Persistent(Box<Value>),
    /// What a call of a name with arguments would make.
    Call(Global, Vec<Value>),
}

impl Value {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Text(_) => "a string",
            Self::Bytes(_) => "a byte string",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a name",
            Self::Persistent(_) => "a storage",
            Self::Call(..) => "an object",
        }
    }

    /// The string it is.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The integer it is.
    pub fn int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The entries of the dict it is.
    pub fn dict(&self) -> Option<&[(Value, Value)]> {
        match self {
            Self::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value under a string key of the dict it is.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.dict()?.iter().find(|(k, _)| k.text() == Some(key)).map(|(_, v)| v)
    }
}

#[cfg(test)]
mod tests;
