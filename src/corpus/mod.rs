//! What a host reads: documents of text or of token ids, streamed from files in a fixed order, numbered from 0.
//!
//! ```text
//! path, folder, glob or hub dataset -> files (sorted) -> documents (text.rs, jsonl.rs, table.rs, tokens.rs) -> contexts (contexts.rs)
//! ```
//!
//! `planted` holds vectors with known features, which need no host.
//!
//! Not for: running a model over them (`host`), or which split a document belongs to (`shard::split_of`).

mod contexts;
pub mod fable;
mod files;
mod jsonl;
pub(crate) mod npy;
pub mod planted;
mod table;
mod text;
mod tokenizer;
mod tokens;

pub use contexts::{Context, ContextConfig, Contexts, Mask, Pack, Place, Specials};
pub use files::Format;
pub use tokenizer::{Bos, Tokenizer};

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::hub::{Dataset, DatasetSpec, Hub};

/// The word that names the built-in generator as a source.
const BUILTIN: &str = "fable";
/// A document must fit into memory several times over; beyond this a separator is surely missing.
const MAX_DOCUMENT_BYTES: usize = 64 << 20;

/// Where documents come from and how files are cut into them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CorpusConfig {
    /// A file, a folder (searched through, in name order) or a glob; the word `fable` is the built-in generator; a dataset of the hub is
    /// `hf:org/name`, with `@revision` and `:split` where they matter (`hf:org/name@main:validation`).
    pub source: String,
    /// Hub datasets: which configuration (subset), where there are several.
    pub config: Option<String>,
    /// Format of the files; `None`: told by their names (.txt, .jsonl, .parquet, .u16, .u32, .npy).
    pub format: Option<Format>,
    /// Text files: what stands between documents. One line break on either side of it belongs to it. Empty: a file is one document.
    pub doc_separator: String,
    /// .jsonl and .parquet: the field that holds a document's text.
    pub text_field: String,
    /// Token streams: the id that begins a document.
    pub doc_token: Option<u32>,
    /// The built-in generator: which stories. (The built-in host was trained on others.)
    pub seed: u64,
    /// Token streams without `doc_token`: cut into documents of this many tokens. A harvest sets it to its context.
    pub block_tokens: Option<usize>,
}

impl Default for CorpusConfig {
    fn default() -> Self {
        Self {
            source: String::new(),
            config: None,
            format: None,
            doc_separator: "<|endoftext|>".to_string(),
            text_field: "text".to_string(),
            doc_token: None,
            seed: 0,
            block_tokens: None,
        }
    }
}

impl CorpusConfig {
    /// The default configuration for a source.
    pub fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), ..Self::default() }
    }
}

/// What a document is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Text, to be tokenized.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its number in the corpus, from 0: the `doc_id` of its rows.
    pub ordinal: u64,
    /// What it holds; may be empty where a record is.
    pub content: Content,
}

/// Do documents hold text or token ids?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Text: a tokenizer is needed.
    Text,
    /// Token ids: nothing is needed, nothing is added.
    Tokens,
}

/// A corpus: its files are found, nothing is read yet.
#[derive(Debug, Clone)]
pub struct Corpus {
    config: CorpusConfig,
    kind: Kind,
    root: PathBuf,
    files: Vec<(PathBuf, Format)>,
    /// Where the files come from, if not from this machine: each is fetched when it is read.
    hub: Option<Dataset>,
}

impl Corpus {
    /// Finds the files of a source.
    ///
    /// # Errors
    /// When there are none, a format is unknown, text and token ids are mixed, or a key cannot hold.
    pub fn open(config: &CorpusConfig) -> Result<Self> {
        if config.source == BUILTIN {
            return Ok(Self { config: config.clone(), kind: Kind::Tokens, root: PathBuf::new(), files: Vec::new(), hub: None });
        }
        if let Some(id) = config.source.strip_prefix("hf:") {
            return Err(Error::Unsupported {
                by: "a corpus that is opened without a hub".to_string(),
                what: format!("the hub dataset `{id}`"),
                instead: "open it with `Corpus::open_from`, or download its files and name their folder".to_string(),
            });
        }
        if config.config.is_some() {
            let help = "leave it out: only datasets of the hub (hf:...) have configurations";
            return Err(Error::config("corpus.config", format!("means nothing for `{}`", config.source), help));
        }
        if config.block_tokens == Some(0) {
            return Err(Error::config("corpus.block_tokens", "is 0", "give a number of tokens, or leave it out"));
        }
        let (root, paths) = files::find(&config.source)?;
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let format = config.format.map_or_else(|| Format::of(&path), Ok)?;
            files.push((path, format));
        }
        let kind = files[0].1.kind();
        if let Some((other, _)) = files.iter().find(|(_, f)| f.kind() != kind) {
            return Err(Error::request(
                format!("`{}` mixes text with token ids: {} and {}", config.source, files[0].0.display(), other.display()),
                "name one kind of file with a glob, such as 'corpus/*.txt'",
            ));
        }
        Ok(Self { config: config.clone(), kind, root, files, hub: None })
    }

    /// As [`Corpus::open`], datasets of the hub included. Their revision is looked up now and stands in [`Corpus::config`] from then
    /// on; each file is fetched when it is read.
    ///
    /// # Errors
    /// As [`Corpus::open`] and [`Hub::dataset`].
    pub fn open_from(config: &CorpusConfig, hub: &Hub) -> Result<Self> {
        if !config.source.starts_with("hf:") {
            return Self::open(config);
        }
        let spec = DatasetSpec::parse(&config.source)?;
        let endings: &[&[&str]] = match config.format {
            None => &[&[".parquet"], &[".jsonl", ".ndjson"], &[".json"], &[".txt", ".text"]],
            Some(Format::Parquet) => &[&[".parquet"]],
            Some(Format::Jsonl) => &[&[".jsonl", ".ndjson"], &[".json"]],
            Some(Format::Text) => &[&[".txt", ".text"]],
            Some(Format::U16 | Format::U32 | Format::Npy) => {
                let help = "name parquet, jsonl or text, or download the files and name their folder";
                return Err(Error::config("corpus.format", "is one of token ids: hub datasets are read as text", help));
            }
        };
        let dataset = hub.dataset(&spec, config.config.as_deref(), endings)?;
        let format = |name: &Path| match config.format {
            Some(format) => Ok(format),
            None if name.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) => Ok(Format::Jsonl),
            None => Format::of(name),
        };
        let files = dataset.names().into_iter().map(|name| Ok((name.to_path_buf(), format(name)?))).collect::<Result<_>>()?;
        let config = CorpusConfig { source: dataset.pinned(), ..config.clone() };
        Ok(Self { config, kind: Kind::Text, root: PathBuf::new(), files, hub: Some(dataset) })
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &CorpusConfig {
        &self.config
    }

    /// Text or token ids?
    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn is_builtin(&self) -> bool {
        self.config.source == BUILTIN
    }

    /// Streams cut into blocks where `block_tokens` is not set yet: a harvest passes its context.
    pub fn with_default_block(mut self, tokens: usize) -> Self {
        self.config.block_tokens.get_or_insert(tokens);
        self
    }

    /// All documents.
    ///
    /// # Errors
    /// When the first file cannot be opened; later errors come from the iterator, which ends after one.
    pub fn documents(&self) -> Result<Documents> {
        self.documents_from(0)
    }

    /// The documents from number `ordinal` on; those before it are passed over without being decoded.
    ///
    /// # Errors
    /// As [`Corpus::documents`]. A corpus that is shorter gives no documents.
    pub fn documents_from(&self, ordinal: u64) -> Result<Documents> {
        let mut documents = Documents { corpus: self.clone(), file: 0, current: None, ordinal: 0, failed: false };
        while documents.ordinal < ordinal {
            let left = ordinal - documents.ordinal;
            let Some(pieces) = documents.current_pieces()? else { break };
            let skipped = pieces.skip(left)?;
            documents.ordinal += skipped;
            if skipped < left {
                documents.current = None;
                documents.file += 1;
            }
        }
        Ok(documents)
    }

    /// What the corpus is made of: number of files, bytes, and a hash over names and contents; up to 100 files one by one.
    /// Reads every file once; of a hub dataset it reads none, and says what the hub says.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn provenance(&self) -> Result<Value> {
        if self.is_builtin() {
            return Ok(json!({ "kind": self.kind, "builtin": BUILTIN, "seed": self.config.seed }));
        }
        if let Some(hub) = &self.hub {
            let mut value = hub.provenance();
            value["kind"] = json!(self.kind);
            return Ok(value);
        }
        let hashed = |(path, _): &(PathBuf, Format)| -> Result<(String, u64, String)> {
            let (bytes, sha256) = hash_file(path)?;
            let name = path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().replace('\\', "/");
            Ok((name, bytes, sha256))
        };
        let files = self.files.par_iter().map(hashed).collect::<Result<Vec<_>>>()?;
        let mut all = Sha256::new();
        for (name, _, sha256) in &files {
            all.update(format!("{name}\0{sha256}\n"));
        }
        let bytes: u64 = files.iter().map(|f| f.1).sum();
        let mut value = json!({ "kind": self.kind, "n_files": files.len(), "bytes": bytes, "sha256": hex(&all.finalize()) });
        if files.len() <= 100 {
            let list = files.iter().map(|(name, bytes, sha256)| json!({ "name": name, "bytes": bytes, "sha256": sha256 }));
            value["files"] = Value::Array(list.collect());
        }
        Ok(value)
    }
}

/// A file cut into documents.
trait Pieces: Send {
    /// The next document.
    fn next(&mut self) -> Result<Option<Content>>;
    /// Passes over up to `n` documents; says how many there were.
    fn skip(&mut self, n: u64) -> Result<u64>;
}

/// The built-in generator: stories without end.
struct Stories {
    seed: u64,
    next: u64,
}

impl Pieces for Stories {
    fn next(&mut self) -> Result<Option<Content>> {
        self.next += 1;
        Ok(Some(Content::Tokens(fable::story(self.seed, self.next - 1).tokens)))
    }

    fn skip(&mut self, n: u64) -> Result<u64> {
        self.next += n;
        Ok(n)
    }
}

/// Documents in order: see [`Corpus::documents`]. Holds one document and a read buffer.
pub struct Documents {
    corpus: Corpus,
    file: usize,
    current: Option<Box<dyn Pieces>>,
    ordinal: u64,
    failed: bool,
}

impl Documents {
    /// The file being read, opened; `None` after the last.
    fn current_pieces(&mut self) -> Result<Option<&mut Box<dyn Pieces>>> {
        if self.current.is_none() && self.corpus.is_builtin() {
            self.current = Some(Box::new(Stories { seed: self.corpus.config.seed, next: 0 }));
        }
        if self.current.is_none() {
            let Some((path, format)) = self.corpus.files.get(self.file) else { return Ok(None) };
            let fetched = match &self.corpus.hub {
                // What was harvested before this file is kept.
                Some(hub) => Some(hub.fetch(self.file).map_err(|e| match e {
                    Error::Cancelled { doing } => Error::Interrupted { doing },
                    other => other,
                })?),
                None => None,
            };
            self.current = Some(format.open(fetched.as_ref().unwrap_or(path), &self.corpus.config)?);
        }
        Ok(self.current.as_mut())
    }

    fn next_document(&mut self) -> Result<Option<Document>> {
        while let Some(pieces) = self.current_pieces()? {
            if let Some(content) = pieces.next()? {
                let document = Document { ordinal: self.ordinal, content };
                self.ordinal += 1;
                return Ok(Some(document));
            }
            self.current = None;
            self.file += 1;
        }
        Ok(None)
    }
}

impl Iterator for Documents {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_document();
        self.failed = next.is_err();
        next.transpose()
    }
}

/// Name (without folders), size and SHA-256 of a file, as a manifest lists it.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn file_provenance(path: &Path) -> Result<Value> {
    let (bytes, sha256) = hash_file(path)?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
    Ok(json!({ "name": name, "bytes": bytes, "sha256": sha256 }))
}

/// Size and SHA-256, hex.
fn hash_file(path: &Path) -> Result<(u64, String)> {
    let mut file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut hash = Sha256::new();
    let bytes = std::io::copy(&mut file, &mut hash).map_err(|e| Error::io("read", path, e))?;
    Ok((bytes, hex(&hash.finalize())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A document that cannot be taken whole.
fn too_long(path: &Path, at: u64, help: &str) -> Error {
    Error::format("corpus", path, format!("the document at byte {at} is longer than {} MiB", MAX_DOCUMENT_BYTES >> 20), help)
}
