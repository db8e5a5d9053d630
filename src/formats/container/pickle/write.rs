//! The writer: protocol 2, no memo, which `torch.load(weights_only=True)` reads.

use super::{Global, Value};

/// A pickle of `value`. Byte strings become lists of integers, as protocol 2 has none.
pub fn write(value: &Value) -> Vec<u8> {
    let mut out = vec![0x80, 2];
    put(value, &mut out);
    out.push(b'.');
    out
}

fn global(g: Global, out: &mut Vec<u8>) {
    let (module, name) = g.names();
    out.extend(format!("c{module}\n{name}\n").as_bytes());
}

fn all<'a>(items: impl IntoIterator<Item = &'a Value>, out: &mut Vec<u8>) {
    for item in items {
        put(item, out);
    }
}

fn put(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::None => out.push(b'N'),
        Value::Bool(v) => out.push(if *v { 0x88 } else { 0x89 }),
        Value::Int(v) => match (u8::try_from(*v), i32::try_from(*v)) {
            (Ok(v), _) => out.extend([b'K', v]),
            (_, Ok(v)) => {
                out.push(b'J');
                out.extend(v.to_le_bytes());
            }
            _ => {
                out.extend([0x8a, 8]);
                out.extend(v.to_le_bytes());
            }
        },
        Value::Float(v) => {
            out.push(b'G');
            out.extend(v.to_be_bytes());
        }
        Value::Text(text) => {
            out.push(b'X');
            out.extend(u32::try_from(text.len()).expect("names and settings are short").to_le_bytes());
            out.extend(text.as_bytes());
        }
        Value::Bytes(bytes) => put(&Value::List(bytes.iter().map(|&b| Value::Int(b.into())).collect()), out),
        Value::Tuple(items) => {
            out.push(b'(');
            all(items, out);
            out.push(b't');
        }
        Value::List(items) => {
            out.extend(b"](");
            all(items, out);
            out.push(b'e');
        }
        Value::Dict(entries) => {
            out.extend(b"}(");
            all(entries.iter().flat_map(|(k, v)| [k, v]), out);
            out.push(b'u');
        }
        Value::Global(g) => global(*g, out),
        Value::Persistent(id) => {
            put(id, out);
            out.push(b'Q');
        }
        Value::Call(g, arguments) => {
            global(*g, out);
            out.push(b'(');
            all(arguments, out);
            out.extend(b"tR");
        }
    }
}
