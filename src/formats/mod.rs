//! Dictionaries of other tools: one file per dialect, which reads **and** writes it. A dialect is a mapping to
//! [`Dictionary`] and nothing more. docs/formats.md says what each can hold.
//!
//! ```text
//! path -> find (which dialects see a dictionary here?) -> Format::read -> Foreign { dictionary, notes }
//! Dictionary -> fit (what the dialect cannot hold is refused, what can be folded away exactly is) -> Format::write -> folder
//!            -> Format::read -> compare: both encode the same rows
//! ```
//!
//! Rules of reading: the function never changes (norms, input transforms, skip paths, selection scales are kept); a tensor, an
//! architecture or a setting that is not understood is an error, never dropped; sizes are checked against the file before anything
//! is allocated; NaN and infinity are refused; nothing in a file is ever executed.
//!
//! Not for: fetching files from a hub (`hub`).

mod archive;
pub mod card;
pub mod container;
pub mod delphi;
mod dictionary_learning;
mod fit;
mod foreign;
mod gemma_scope;
mod gemma_scope_2;
mod goodfire;
mod llamascopium;
mod names;
mod openai;
mod overcomplete;
pub mod pages;
mod proof;
mod saelens;
mod sparsify;
mod state_dict;
pub mod tensors;
pub mod vectors;

use std::path::{Path, PathBuf};

use crate::dictionary::Dictionary;
use crate::error::{Error, Result};

pub use fit::{fit, Holds};
pub use foreign::{Foreign, Source};
pub use proof::{compare, export, made_rows, Comparison, Exported, TOLERANCE};

/// What a file does not say and a reader may need. What the file says wins: contradicting it is an error.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ReadOptions {
    /// Latents per row, where the file has none (overcomplete's state dicts).
    pub k: Option<usize>,
    /// A threshold for all latents, where the file has none (overcomplete does not save its running threshold).
    pub threshold: Option<f32>,
}

/// What a writer may be told.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct WriteOptions {
    /// Share of rows on which each latent fires, `[d_sae]`, where it was measured: some dialects keep it.
    pub density: Option<Vec<f64>>,
}

/// What a writer left.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// What [`Format::read`] takes: the folder, or the file in it.
    pub path: PathBuf,
    /// What the dialect does not carry, or carries in another form, as sentences for a person. None of it changes the function.
    pub notes: Vec<String>,
}

/// A dialect.
///
/// Errors of `read`: [`Error::format`] (exit 3) for a damaged file; [`Error::Unsupported`] (exit 2) for a dictionary that is what it says
/// and that ours cannot hold; [`Error::io`]. Errors of `write`: `Unsupported` with what to do instead.
pub trait Format: Sync {
    /// Name on the command line: `saelens`.
    fn id(&self) -> &'static str;

    /// Library and version it was checked against, for lists: `SAELens 6.54.12`.
    fn title(&self) -> &'static str;

    /// Dictionaries of this dialect at `at` itself: if it is a folder, those directly in it (nothing below); if a file, that one. Each as
    /// a path that [`read`](Self::read) takes. Decides by contents where names do not; what cannot be read is none.
    fn find(&self, at: &Path) -> Vec<PathBuf>;

    /// Reads one.
    ///
    /// # Errors
    /// As said above.
    fn read(&self, at: &Path, options: &ReadOptions) -> Result<Foreign>;

    /// Can it be written? Some dialects are read only.
    fn writes(&self) -> bool {
        true
    }

    /// Writes `dictionary` into the folder `out`, which exists. Begins with [`fit`].
    ///
    /// # Errors
    /// As said above.
    fn write(&self, dictionary: &Dictionary, out: &Path, options: &WriteOptions) -> Result<Written> {
        let _ = (dictionary, out, options);
        Err(Error::Unsupported {
            by: self.title().into(),
            what: "a dictionary of ours: Lapidary only reads this dialect".into(),
            instead: format!("write one of: {}", names(|f| f.writes())),
        })
    }
}

/// Every dialect.
pub const ALL: &[&dyn Format] = &[
    &saelens::SaeLens,
    &sparsify::Sparsify,
    &dictionary_learning::DictionaryLearning,
    &openai::OpenAi,
    &gemma_scope::GemmaScope,
    &gemma_scope_2::GemmaScope2,
    &llamascopium::Llamascopium,
    &overcomplete::Overcomplete,
    &goodfire::Goodfire,
    &state_dict::StateDict,
];

/// The dialect of that name.
///
/// # Errors
/// No such dialect.
pub fn by_id(id: &str) -> Result<&'static dyn Format> {
    let known = ALL.iter().copied().find(|f| f.id() == id);
    known.ok_or_else(|| Error::request(format!("there is no format `{id}`"), format!("choose one of: {}", names(|_| true))))
}

fn names(keep: impl Fn(&dyn Format) -> bool) -> String {
    ALL.iter().filter(|f| keep(**f)).map(|f| f.id()).collect::<Vec<_>>().join(", ")
}

/// A dictionary that was found, and whose it is.
#[derive(Clone)]
pub struct Candidate {
    /// Its dialect.
    pub format: &'static dyn Format,
    /// What [`Format::read`] takes.
    pub path: PathBuf,
}

/// Folders below the one that was named are looked into so deep.
const DEPTH: usize = 5;
/// Folders looked into at most.
const FOLDERS: usize = 10_000;

/// Dictionaries at `at`, or, where a folder has none itself, in the folders below it; in the order of their paths. Links to folders are
/// not followed. `format`: this dialect only.
///
/// # Errors
/// `at` is not there, a folder that cannot be listed.
pub fn find(at: &Path, format: Option<&'static dyn Format>) -> Result<Vec<Candidate>> {
    std::fs::metadata(at).map_err(|e| Error::io("read", at, e))?;
    let mut found = Vec::new();
    let mut left = FOLDERS;
    look(at, format, DEPTH, &mut left, &mut found)?;
    Ok(found)
}

fn look(at: &Path, format: Option<&'static dyn Format>, depth: usize, left: &mut usize, found: &mut Vec<Candidate>) -> Result<()> {
    let before = found.len();
    for &dialect in ALL.iter().filter(|f| format.is_none_or(|wanted| wanted.id() == f.id())) {
        found.extend(dialect.find(at).into_iter().map(|path| Candidate { format: dialect, path }));
    }
    if found.len() > before || depth == 0 || *left == 0 || !at.is_dir() {
        return Ok(());
    }
    *left -= 1;
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(at).map_err(|e| Error::io("list", at, e))? {
        let entry = entry.map_err(|e| Error::io("list", at, e))?;
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            folders.push(entry.path());
        }
    }
    folders.sort();
    folders.iter().try_for_each(|folder| look(folder, format, depth - 1, left, found))
}

/// The one dictionary at `at`.
///
/// # Errors
/// None, or several: then the message lists them.
pub fn find_one(at: &Path, format: Option<&'static dyn Format>) -> Result<Candidate> {
    let mut found = find(at, format)?;
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Error::request(
            format!("{} holds no dictionary of {}", at.display(), format.map_or("a known format", |f| f.id())),
            format!("point to the folder or file of one; formats: {}", names(|_| true)),
        )),
        n => {
            let lines: Vec<String> = found.iter().map(|c| format!("    {} ({})", c.path.display(), c.format.id())).collect();
            Err(Error::request(
                format!("{} holds {n} dictionaries:\n{}", at.display(), lines.join("\n")),
                "name one of them, and its format where one file is listed twice",
            ))
        }
    }
}
