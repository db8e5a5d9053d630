//! What a reader returns: a dictionary, with where it comes from kept beside it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{json, Value};
use sha2::{Digest, Sha256};

use crate::dictionary::{Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::hook::HookPoint;

/// An imported dictionary.
#[derive(Debug, Clone)]
pub struct Foreign {
    /// With its provenance filled in: `made_by` is `imported`, `notes.imported` says from what.
    pub dictionary: Dictionary,
    /// What was left behind or put in another, equal form, as sentences for a person. None of it changes the function.
    pub notes: Vec<String>,
}

/// Where a dictionary was read from.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The dialect's id.
    pub format: &'static str,
    /// The files that were read; their names, sizes and hashes are recorded, not their folder.
    pub files: Vec<PathBuf>,
    /// The foreign configuration, whole. It is kept, and nothing reads it but a writer of the same dialect.
    pub config: Value,
    /// The hook point as the file names it, or empty.
    pub hook: String,
    /// The host model's name, where it is told.
    pub host: Option<String>,
    /// Latents per row that its training meant, where its codes are above thresholds and the file tells.
    pub k: Option<usize>,
    /// Widths of which each is a dictionary of its own (Matryoshka), the whole may be among them.
    pub prefixes: Vec<usize>,
}

impl Foreign {
    /// Puts the provenance together.
    ///
    /// # Errors
    /// A file that cannot be read again.
    pub fn new(mut dictionary: Dictionary, source: Source, notes: Vec<String>) -> Result<Self> {
        let files = source.files.iter().map(|f| file_entry(f)).collect::<Result<Vec<_>>>()?;
        let mut kept = json!({
            "imported": { "format": source.format, "files": files, "config": source.config, "notes": notes },
        });
        if let Some(k) = source.k {
            kept["k"] = k.into();
        }
        if !source.prefixes.is_empty() {
            kept["prefixes"] = json!(source.prefixes);
        }
        dictionary.provenance = Provenance {
            hook: hook_name(&source.hook),
            made_by: "imported".into(),
            lapidary: env!("CARGO_PKG_VERSION").into(),
            host: source.host.map_or(Value::Null, |name| json!({ "name": name })),
            notes: kept,
            ..Default::default()
        };
        Ok(Self { dictionary, notes })
    }
}

/// The canonical spelling where it is one of ours, else the name as it is.
fn hook_name(name: &str) -> String {
    name.parse::<HookPoint>().map_or_else(|_| name.to_string(), |p| p.to_string())
}

/// The configuration that a dictionary was imported with, if `format` was its dialect.
pub(super) fn own_config<'a>(dictionary: &'a Dictionary, format: &str) -> Option<&'a Value> {
    let imported = dictionary.provenance.notes.get("imported")?;
    (imported["format"] == format).then(|| &imported["config"])
}

fn file_entry(path: &Path) -> Result<Value> {
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let (mut hash, mut bytes, mut block) = (Sha256::new(), 0u64, vec![0; 1 << 20]);
    loop {
        let n = file.read(&mut block).map_err(|e| Error::io("read", path, e))?;
        if n == 0 {
            break;
        }
        hash.update(&block[..n]);
        bytes += n as u64;
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
    Ok(json!({ "name": name, "bytes": bytes, "sha256": format!("{:x}", hash.finalize()) }))
}
