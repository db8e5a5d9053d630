//! `lapidary inspect`: what is this file or folder? Hosts list their hook points in both spellings.

use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::Device;
use lapidary::formats;
use lapidary::host::{HostInfo, LoadOptions};
use lapidary::shard::Shards;
use lapidary::{Dictionary, Error, Result};
use serde::Serialize;

use super::convert::held_out_rows;
use super::hub::Model;
use super::output::Output;

/// Rows that a dictionary is looked at on.
const LINT_ROWS: u64 = 16_384;

/// Say what a file or folder is: a host and its hook points, shards and their columns, a dictionary and what looks wrong about it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary inspect fable                 the built-in host: its hook points, in both spellings
  lapidary inspect path/to/hf-folder
  lapidary inspect shards
  lapidary inspect runs/k32 --shards shards        a dictionary, ours or another tool's: what looks wrong about it
  lapidary inspect runs/k32 --json")]
pub struct Args {
    /// A host folder (or a hub id, or `fable`), a folder of shards, a dictionary (ours or another tool's), or a safetensors file.
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Shards: also read every file and compare its hash with the manifest's.
    #[arg(long)]
    pub verify: bool,
    /// A dictionary: also look at what it makes of held-out rows of these shards.
    #[arg(long, value_name = "DIR")]
    pub shards: Option<PathBuf>,
}

/// What was found.
#[derive(Debug, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Report {
    /// A host model.
    Host {
        /// Shapes and provenance.
        host: Box<HostInfo>,
        /// Where it can be read.
        hook_points: Vec<Point>,
    },
    /// A folder of shards.
    Shards {
        /// Its columns: name, width, dtype, mean squared norm.
        columns: Vec<Column>,
        /// Training rows.
        train_rows: u64,
        /// Held-out rows.
        held_out_rows: u64,
        /// Number of files.
        files: usize,
        /// The whole manifest's host entry.
        host: serde_json::Value,
        /// Were the hashes compared?
        verified: bool,
    },
    /// A dictionary.
    Dictionary {
        /// Width of what it reads.
        d_in: usize,
        /// Number of latents.
        d_sae: usize,
        /// Its rule.
        activation: lapidary::Activation,
        /// Whose files: `lapidary`, or a dialect.
        format: &'static str,
        /// What looks wrong, and what is worth knowing.
        lint: Box<lapidary::dictionary::Lint>,
        /// Where it comes from.
        provenance: Box<lapidary::dictionary::Provenance>,
    },
    /// A file of tensors.
    Tensors {
        /// Name, dtype, shape.
        tensors: Vec<(String, String, Vec<usize>)>,
    },
}

/// A hook point.
#[derive(Debug, Serialize)]
pub struct Point {
    /// TransformerLens spelling, which every artefact uses.
    pub name: String,
    /// Hugging Face module path, where there is one.
    pub hugging_face: Option<String>,
    /// Width of the activation.
    pub width: usize,
}

/// A column of shards.
#[derive(Debug, Serialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its width.
    pub width: usize,
    /// How values are stored.
    pub dtype: &'static str,
    /// Over training rows.
    pub mean_sq_norm: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host, hook_points } => {
                writeln!(
                    f,
                    "host `{}` ({}): {} blocks, d_model {}, {} heads, d_mlp {}, vocabulary {}, context {}",
                    host.name, host.family, host.n_layers, host.d_model, host.n_heads, host.d_mlp, host.vocab_size, host.n_context
                )?;
                writeln!(f, "{} parameters, sha256 {}", host.n_params, host.weights_sha256)?;
                if let Some(origin) = &host.origin {
                    writeln!(f, "from the hub: {} at commit {}", origin.hub_id, origin.revision)?;
                }
                writeln!(f, "{:<32} {:>6}  Hugging Face path", "hook point", "width")?;
                let lines: Vec<String> = hook_points
                    .iter()
                    .map(|p| format!("{:<32} {:>6}  {}", p.name, p.width, p.hugging_face.as_deref().unwrap_or("-")))
                    .collect();
                f.write_str(&lines.join("\n"))
            }
            Self::Shards { columns, train_rows, held_out_rows, files, host, verified } => {
                writeln!(
                    f,
                    "shards: {train_rows} training rows, {held_out_rows} held-out rows, {files} files{}",
                    if *verified { ", all hashes right" } else { "" }
                )?;
                writeln!(f, "host: {}", host["name"].as_str().unwrap_or("none (vectors)"))?;
                write!(f, "{:<32} {:>6}  {:>5}  mean |x|^2", "column", "width", "dtype")?;
                for c in columns {
                    write!(f, "\n{:<32} {:>6}  {:>5}  {:.4}", c.name, c.width, c.dtype, c.mean_sq_norm)?;
                }
                Ok(())
            }
            Self::Dictionary { d_in, d_sae, activation, format, lint, provenance } => {
                writeln!(
                    f,
                    "dictionary ({format}): {d_sae} latents over {d_in} dimensions, {activation:?}, made by {}",
                    provenance.made_by
                )?;
                writeln!(f, "reads {} of {}", provenance.hook, provenance.host["name"].as_str().unwrap_or("(unknown)"))?;
                write!(f, "atom norms {:.6} to {:.6}, median {:.6}", lint.atom_norms[0], lint.atom_norms[2], lint.atom_norms[1])?;
                if let Some(m) = &lint.measured {
                    write!(f, "\non {} rows: L0 {:.2}", m.rows, m.l0)?;
                    if let Some(k) = m.expected_l0 {
                        write!(f, " ({k:.2} meant)")?;
                    }
                    if let Some(ev) = m.explained_variance {
                        write!(f, ", explained variance {ev:.4}")?;
                    }
                }
                lint.notes.iter().try_for_each(|note| write!(f, "\nnote: {note}"))?;
                lint.warnings.iter().try_for_each(|warning| write!(f, "\nWARNING: {warning}"))
            }
            Self::Tensors { tensors } => {
                let lines: Vec<String> = tensors.iter().map(|(name, dtype, shape)| format!("{name}  {dtype}  {shape:?}")).collect();
                f.write_str(&lines.join("\n"))
            }
        }
    }
}

/// Looks.
pub fn run(args: &Args, device: &Device, output: &Output) -> Result<Report> {
    let path = &args.path;
    if path.join("manifest.json").is_file() {
        return shards(path, args.verify);
    }
    if path.join("dictionary.json").is_file() {
        return dictionary(Dictionary::load(path)?, "lapidary", args);
    }
    // Another tool's, before a folder with a config.json is taken for a host.
    if let Some((d, format)) = foreign(path)? {
        return dictionary(d, format, args);
    }
    if path.extension().is_some_and(|e| e == "safetensors") {
        return tensors(path);
    }
    let is_model = path.join("config.json").is_file() || path.as_os_str() == "fable";
    // What is not here may be a model of the hub.
    let may_be_id = || !path.exists() && lapidary::hub::ModelSpec::parse(&path.to_string_lossy()).is_ok();
    if is_model || may_be_id() {
        return host(path, device, output);
    }
    Err(Error::request(
        format!("{} is nothing that Lapidary knows", path.display()),
        "point to a Hugging Face folder (config.json), shards (manifest.json), a dictionary (dictionary.json) or a .safetensors file",
    ))
}

fn host(path: &Path, device: &Device, output: &Output) -> Result<Report> {
    let host = Model::find(&path.to_string_lossy(), None, output)?.load(&LoadOptions { dtype: None, device: device.clone() })?;
    let hook_points = host
        .hook_points()
        .iter()
        .map(|at| Ok(Point { name: at.to_string(), hugging_face: host.hf_path(at), width: host.width(at)? }))
        .collect::<Result<_>>()?;
    Ok(Report::Host { host: Box::new(host.info().clone()), hook_points })
}

fn shards(path: &Path, verify: bool) -> Result<Report> {
    let shards = Shards::open(path)?;
    if verify {
        shards.verify()?;
    }
    let manifest = shards.manifest();
    let column = |c: &lapidary::shard::ColumnEntry| Column {
        name: c.column.name.clone(),
        width: c.column.width,
        dtype: c.column.dtype.name(),
        mean_sq_norm: c.mean_sq_norm,
    };
    Ok(Report::Shards {
        columns: manifest.columns.iter().map(column).collect(),
        train_rows: manifest.counts.rows.train,
        held_out_rows: manifest.counts.rows.held_out,
        files: manifest.shards.len(),
        host: manifest.host.clone(),
        verified: verify,
    })
}

/// A dictionary of another tool at `path` itself: the only one there.
fn foreign(path: &Path) -> Result<Option<(Dictionary, &'static str)>> {
    let mut found = formats::ALL.iter().flat_map(|f| f.find(path).into_iter().map(move |at| (*f, at)));
    let (Some((format, at)), None) = (found.next(), found.next()) else { return Ok(None) };
    match format.read(&at, &Default::default()) {
        Ok(foreign) => Ok(Some((foreign.dictionary, format.id()))),
        // A file can still be listed.
        Err(_) if path.is_file() => Ok(None),
        Err(error) => Err(error),
    }
}

fn dictionary(d: Dictionary, format: &'static str, args: &Args) -> Result<Report> {
    let rows = match &args.shards {
        Some(dir) => held_out_rows(&d, dir, LINT_ROWS)?.0,
        None => Vec::new(),
    };
    Ok(Report::Dictionary {
        d_in: d.d_in(),
        d_sae: d.d_sae(),
        activation: d.activation.clone(),
        format,
        lint: Box::new(d.lint(&rows)?),
        provenance: Box::new(d.provenance),
    })
}

fn tensors(path: &Path) -> Result<Report> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let damaged = |e: safetensors::SafeTensorError| Error::format("safetensors file", path, e.to_string(), "download or export it again");
    let file = safetensors::SafeTensors::deserialize(&bytes).map_err(damaged)?;
    let mut tensors: Vec<_> =
        file.tensors().iter().map(|(name, t)| (name.clone(), format!("{:?}", t.dtype()), t.shape().to_vec())).collect();
    tensors.sort();
    Ok(Report::Tensors { tensors })
}
