//! A feature table as pages to look at: static HTML that opens from disk, with no network and no server.
//!
//! One file holds everything up to about two thousand latents; more make a folder, whose chunks are read when a latent is opened.
//! What the page shows, its keys and its security: docs/dashboard.md. Not for: computing anything (`features`, `score`), charts on paper
//! (`plot`).
//!
//! Corpora are untrusted: data is JSON without `<`, `>`, `&` (`json`), shown through text nodes only, under a policy that names our
//! script and style by hash (`page`). The bytes depend on the inputs alone.

mod data;
mod json;
mod overview;
mod page;
mod vocabulary;

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::artefact;
use crate::error::{Error, Result};
use crate::features::{Examples, FeatureTable};
use crate::score::{ScoreReport, SCORE_FILE};

use data::{Chunk, Index, CHUNK};

/// More latents than this read better as a folder.
pub const ONE_FILE: usize = 2000;
/// The page of a folder.
pub const INDEX_FILE: &str = "index.html";
/// Chunks are here, beside it.
pub const DATA_DIR: &str = "data";

/// A curve of the training log.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curve {
    /// What it shows.
    pub name: String,
    /// Of its values.
    pub unit: String,
    /// Tokens seen.
    pub x: Vec<f64>,
    /// Values there; as many.
    pub y: Vec<f64>,
}

/// What the page shows beside the table; everything may be absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extra {
    /// Heading [default: the dictionary's name and hook point].
    pub title: Option<String>,
    /// The dictionary's folder as command lines should name it.
    pub dictionary: Option<String>,
    /// The table's folder as command lines should name it.
    pub features: Option<String>,
    /// `provenance` of `dictionary.json`.
    pub provenance: Value,
    /// Its scores.
    pub scores: Option<ScoreReport>,
    /// Its training.
    pub curves: Vec<Curve>,
}

impl Extra {
    /// Reads what a dictionary's folder has: provenance, and `score.json` if it is there. Weights are not read.
    ///
    /// # Errors
    /// No `dictionary.json`, or one that is not a dictionary's; a damaged `score.json`.
    pub fn of_dictionary(dir: &Path) -> Result<Self> {
        let path = dir.join("dictionary.json");
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let wrong = |problem: String| Error::format("dictionary", &path, problem, "point to the folder of a Lapidary dictionary");
        let mut value: Value = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        if value["kind"] != "lapidary-dictionary" {
            return Err(wrong(format!("its kind is {}", value["kind"])));
        }
        let score = dir.join(SCORE_FILE);
        let scores = if score.exists() { Some(ScoreReport::load(&score)?) } else { None };
        Ok(Self { dictionary: Some(dir.display().to_string()), provenance: value["provenance"].take(), scores, ..Self::default() })
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Written {
    /// The page to open.
    pub page: PathBuf,
    /// Latents on it.
    pub latents: usize,
    /// Files, the page included.
    pub files: usize,
    /// Of all of them.
    pub bytes: u64,
}

/// Writes the dashboard: one file where `out` ends in `.html`, otherwise a folder. What is there is replaced only if `overwrite`.
///
/// # Errors
/// Something there already; I/O errors.
pub fn write(table: &FeatureTable, examples: &Examples, extra: &Extra, out: &Path, overwrite: bool) -> Result<Written> {
    let source = &table.info.dictionary;
    let title = extra.title.clone().unwrap_or_else(|| format!("{} · {}", source.name, source.hook));
    let n_chunks = table.features.len().div_ceil(CHUNK);
    let is_file = out.extension().is_some_and(|e| e.eq_ignore_ascii_case("html") || e.eq_ignore_ascii_case("htm"));
    let index = json::embed(&Index::new(table, examples, extra, title.clone(), !is_file));
    let chunk = |i: usize| json::embed(&Chunk::new(i, table, examples));
    let latents = table.features.len();
    if is_file {
        if out.exists() && !(overwrite && out.is_file()) {
            return Err(Error::request(format!("{} is there already", out.display()), "pass another --out, or --overwrite to replace it"));
        }
        let chunks: Vec<String> = (0..n_chunks).map(chunk).collect();
        let html = page::page(&title, &index, &chunks);
        let dir = out.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = out.file_name().and_then(|n| n.to_str()).ok_or_else(|| {
            Error::request(format!("{} is no name for a page", out.display()), "choose a name of letters, digits and dashes")
        })?;
        fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        artefact::write(dir, name, html.as_bytes())?;
        return Ok(Written { page: out.to_path_buf(), latents, files: 1, bytes: html.len() as u64 });
    }
    if !overwrite && !artefact::is_empty(out)? {
        return Err(Error::request(
            format!("{} is not empty", out.display()),
            "pass another --out, or --overwrite to replace the page there",
        ));
    }
    let data = out.join(DATA_DIR);
    fs::create_dir_all(&data).map_err(|e| Error::io("create", &data, e))?;
    // The page goes first and comes last: at no moment does one stand beside chunks that are not its own.
    remove(&out.join(INDEX_FILE))?;
    for i in n_chunks.. {
        if !remove(&data.join(chunk_name(i)))? {
            break;
        }
    }
    let mut bytes = 0;
    for i in 0..n_chunks {
        let script = format!("lapidaryChunk({i},{});\n", chunk(i));
        artefact::write(&data, &chunk_name(i), script.as_bytes())?;
        bytes += script.len() as u64;
    }
    let html = page::page(&title, &index, &[]);
    artefact::write(out, INDEX_FILE, html.as_bytes())?;
    Ok(Written { page: out.join(INDEX_FILE), latents, files: n_chunks + 1, bytes: bytes + html.len() as u64 })
}

/// `007.js`.
fn chunk_name(i: usize) -> String {
    format!("{i:03}.js")
}

/// Was there such a file? It is not there any more.
fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("remove", path, e)),
    }
}
