//! Is a file what its name says? Cheap checks of form, made before a file gets its name in the cache and again when it is found there.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use serde::de::IgnoredAny;

/// Longest safetensors header, as the format's own library has it.
const LONGEST_HEADER: u64 = 100_000_000;

/// Does this file's form tell whether it is whole?
pub(super) fn has_form(name: &str) -> bool {
    [".json", ".safetensors", ".parquet"].iter().any(|e| name.ends_with(e))
}

/// Checks a file by its name; the error says what is wrong with it.
pub(super) fn form(name: &str, path: &Path) -> Result<(), String> {
    let mut file = File::open(path).map_err(|e| format!("it cannot be read: {e}"))?;
    let length = file.metadata().map_err(|e| format!("it cannot be read: {e}"))?.len();
    if name.ends_with(".json") {
        json(file)
    } else if name.ends_with(".safetensors") {
        safetensors(&mut file, length)
    } else if name.ends_with(".parquet") {
        parquet(&mut file, length)
    } else {
        Ok(())
    }
}

/// One value or several one after the other (files of JSON lines are called .json too).
fn json(file: File) -> Result<(), String> {
    let mut values = serde_json::Deserializer::from_reader(BufReader::new(file)).into_iter::<IgnoredAny>();
    let first = values.next().ok_or("it is empty")?;
    std::iter::once(first).chain(values).try_for_each(|v| v.map(|_| ()).map_err(|e| format!("it is no JSON: {e}")))
}

/// The header parses, and its tensors end where the file ends.
fn safetensors(file: &mut File, length: u64) -> Result<(), String> {
    let mut head = [0u8; 8];
    file.read_exact(&mut head).map_err(|_| "it is no safetensors file: it is too short".to_string())?;
    let header = u64::from_le_bytes(head);
    if header > LONGEST_HEADER || header + 8 > length {
        return Err(format!("it is no safetensors file: its header would be {header} bytes long, the file has {length}"));
    }
    let mut json = vec![0u8; header as usize];
    file.read_exact(&mut json).map_err(|e| format!("its header cannot be read: {e}"))?;
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&json).map_err(|e| format!("it is no safetensors file: its header is no JSON: {e}"))?;
    let mut end = 0;
    for (name, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let offsets = tensor.get("data_offsets").and_then(|o| Some((o.get(0)?.as_u64()?, o.get(1)?.as_u64()?)));
        let Some((from, to)) = offsets.filter(|(from, to)| from <= to) else {
            return Err(format!("its header places tensor `{name}` nowhere"));
        };
        let _ = from;
        end = end.max(to);
    }
    let held = length - 8 - json.len() as u64;
    if end != held {
        return Err(format!("its header asks for {end} bytes of tensors, it holds {held}"));
    }
    Ok(())
}

/// The magic bytes at both ends, and a footer that fits between them.
fn parquet(file: &mut File, length: u64) -> Result<(), String> {
    let bad = |e: std::io::Error| format!("it is no Parquet file: {e}");
    let (mut head, mut tail) = ([0u8; 4], [0u8; 8]);
    if length < 12 {
        return Err(format!("it is no Parquet file: it has {length} bytes"));
    }
    file.read_exact(&mut head).map_err(bad)?;
    file.seek(SeekFrom::End(-8)).map_err(bad)?;
    file.read_exact(&mut tail).map_err(bad)?;
    let footer = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if &head != b"PAR1" || &tail[4..] != b"PAR1" || footer + 12 > length {
        return Err("it is no Parquet file: it does not begin and end as one".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, bytes: &[u8]) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        std::fs::write(&path, bytes).unwrap();
        form(name, &path)
    }

    #[test]
    fn forms() {
        let tensors = |header: &str, data: usize| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.bytes());
            bytes.extend(vec![0; data]);
            bytes
        };
        let header = r#"{"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert!(check("m.safetensors", &tensors(header, 8)).is_ok());
        assert!(check("m.safetensors", &tensors(header, 7)).unwrap_err().contains("asks for 8 bytes"));
        assert!(check("m.safetensors", &tensors(header, 9)).is_err());
        assert!(check("m.safetensors", b"<!doctype html><html>nothing here</html>").unwrap_err().contains("no safetensors"));
        assert!(check("m.safetensors", b"abc").is_err());
        assert!(check("m.safetensors", &u64::MAX.to_le_bytes()).is_err());
        assert!(check("c.json", b"{\"a\": 1}\n").is_ok() && check("c.json", b"{}\n{}\n").is_ok());
        assert!(check("c.json", b"{\"a\": ").is_err() && check("c.json", b"").is_err() && check("c.json", b"<html>").is_err());
        assert!(check("x.parquet", b"PAR1....\0\0\0\0PAR1").is_ok());
        assert!(check("x.parquet", b"PAR1....\xff\0\0\0PAR1").is_err() && check("x.parquet", b"PAR1").is_err());
        assert!(check("x.txt", b"anything").is_ok() && !has_form("x.txt"));
    }
}
