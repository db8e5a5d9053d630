//! Finding a source's files, and telling their format.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{jsonl, table, text, tokens, CorpusConfig, Kind, Pieces};
use crate::error::{Error, Result};

const KNOWN: &str = ".txt, .jsonl, .parquet, .u16, .u32 and .npy are read";

/// How a file holds documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// UTF-8 text, split at the separator.
    Text,
    /// One JSON object per line.
    Jsonl,
    /// A table with a text column.
    Parquet,
    /// Little-endian 16-bit token ids, one stream.
    U16,
    /// Little-endian 32-bit token ids, one stream.
    U32,
    /// Token ids as a NumPy array: one stream, or one document per row.
    Npy,
}

impl Format {
    /// The format that a file's name tells.
    ///
    /// # Errors
    /// When it tells none.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        Ok(match extension.as_str() {
            "txt" | "text" => Self::Text,
            "jsonl" | "ndjson" => Self::Jsonl,
            "parquet" => Self::Parquet,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "npy" => Self::Npy,
            _ => {
                return Err(Error::request(
                    format!("{}: the format of this file is not known by its name", path.display()),
                    format!("{KNOWN}; set corpus.format to read it as one of these"),
                ))
            }
        })
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Text | Self::Jsonl | Self::Parquet => Kind::Text,
            Self::U16 | Self::U32 | Self::Npy => Kind::Tokens,
        }
    }

    pub(super) fn open(self, path: &Path, config: &CorpusConfig) -> Result<Box<dyn Pieces>> {
        Ok(match self {
            Self::Text => Box::new(text::TextFile::open(path, &config.doc_separator)?),
            Self::Jsonl => Box::new(jsonl::JsonLines::open(path, &config.text_field)?),
            Self::Parquet => Box::new(table::Table::open(path, &config.text_field)?),
            Self::U16 | Self::U32 | Self::Npy => Box::new(tokens::TokenFile::open(path, self, config)?),
        })
    }
}

/// The files of a source, sorted, and the folder that their names are relative to. Never empty.
///
/// # Errors
/// When nothing is found.
pub(super) fn find(source: &str) -> Result<(PathBuf, Vec<PathBuf>)> {
    let path = Path::new(source);
    if source.is_empty() {
        return Err(Error::config("corpus.source", "is empty", "name a file, a folder or a glob"));
    }
    if path.is_file() {
        let root = path.parent().unwrap_or(Path::new("")).to_path_buf();
        return Ok((root, vec![path.to_path_buf()]));
    }
    if path.is_dir() {
        let mut found = Vec::new();
        walk(path, &mut found)?;
        if found.is_empty() {
            return Err(Error::request(format!("no corpus file in the folder {source}"), KNOWN));
        }
        found.sort();
        return Ok((path.to_path_buf(), found));
    }
    if !source.contains(['*', '?', '[']) {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(Error::io("read the corpus", path, missing));
    }
    let matches = glob::glob(source).map_err(|e| {
        Error::config("corpus.source", format!("`{source}` is no glob: {e}"), "quote [, ? and * in file names as [[], [?], [*]")
    })?;
    let mut found = Vec::new();
    for entry in matches {
        let entry = entry.map_err(|e| {
            let path = e.path().to_path_buf();
            Error::io("read the corpus", path, e.into())
        })?;
        if entry.is_file() {
            found.push(entry);
        }
    }
    if found.is_empty() {
        return Err(Error::request(format!("no file matches {source}"), "quote the glob, so that the shell leaves it alone"));
    }
    found.sort();
    // Names are kept from the last folder without a wildcard on.
    let root = path.iter().take_while(|part| !part.to_string_lossy().contains(['*', '?', '['])).collect();
    Ok((root, found))
}

/// Files with a known name, below `dir`; hidden ones and everything else (licences, readmes) are passed over.
fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let path = entry.map_err(|e| Error::io("list", dir, e))?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() {
            walk(&path, found)?;
        } else if Format::of(&path).is_ok() {
            found.push(path);
        }
    }
    Ok(())
}
