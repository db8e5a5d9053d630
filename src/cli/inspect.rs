//! `lapidary inspect`: what is this file or folder? Hosts list their hook points in both spellings.

use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::Device;
use lapidary::host::{HostInfo, LoadOptions};
use lapidary::shard::Shards;
use lapidary::{Dictionary, Error, Result};
use serde::Serialize;

use super::hub::Model;
use super::output::Output;

/// Say what a file or folder is: a host and its hook points, shards and their columns, a dictionary and its shapes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary inspect fable                 the built-in host: its hook points, in both spellings
  lapidary inspect path/to/hf-folder
  lapidary inspect shards
  lapidary inspect runs/k32 --json")]
pub struct Args {
    /// A host folder (or a hub id, or `fable`), a folder of shards, a dictionary, or a safetensors file.
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Shards: also read every file and compare its hash with the manifest's.
    #[arg(long)]
    pub verify: bool,
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
        /// Smallest and largest atom norm.
        atom_norms: (f32, f32),
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
            Self::Dictionary { d_in, d_sae, activation, atom_norms, provenance } => {
                writeln!(f, "dictionary: {d_sae} latents over {d_in} dimensions, {activation:?}, made by {}", provenance.made_by)?;
                writeln!(f, "reads {} of {}", provenance.hook, provenance.host["name"].as_str().unwrap_or("(unknown)"))?;
                write!(f, "atom norms {:.6} to {:.6}", atom_norms.0, atom_norms.1)
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
        return dictionary(path);
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

fn dictionary(path: &Path) -> Result<Report> {
    let d = Dictionary::load(path)?;
    let norms = d.atom_norms()?;
    let atom_norms = norms.iter().fold((f32::INFINITY, 0f32), |(lo, hi), &n| (lo.min(n), hi.max(n)));
    Ok(Report::Dictionary {
        d_in: d.d_in(),
        d_sae: d.d_sae(),
        activation: d.activation.clone(),
        atom_norms,
        provenance: Box::new(d.provenance.clone()),
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
