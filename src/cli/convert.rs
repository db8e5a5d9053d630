//! `lapidary import`, `export` and `convert`: dictionaries from and to other tools.

use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use lapidary::artefact;
use lapidary::dictionary::InputTransform;
use lapidary::features::{Examples, FeatureTable};
use lapidary::formats::delphi::{write_delphi, DelphiConfig, DelphiReport};
use lapidary::formats::pages::{write_pages, FeatureFormat, PageNames, PagesReport};
use lapidary::formats::tensors::Tensors;
use lapidary::formats::vectors::{write_vectors, Pick, VectorFormat};
use lapidary::formats::{self, Exported, Foreign, Format, ReadOptions, WriteOptions};
use lapidary::shard::{Shards, Split};
use lapidary::{Activation, Dictionary, Error, HookPoint, Progress, Result};
use serde::Serialize;

use super::output::Output;
use super::settings::count;

/// Codes of token sequences, not a dictionary.
const DELPHI: &str = "delphi";
/// Rows that an export is proved on, where shards have more.
const PROOF_ROWS: u64 = 16_384;
/// Rows made where there are no shards.
const MADE_ROWS: usize = 512;

/// How to read a foreign dictionary.
#[derive(Debug, clap::Args)]
pub struct Reading {
    /// Folder or file of the dictionary, or HUB_ID[@revision][/folder].
    #[arg(long, value_name = "DIR|FILE|HUB_ID")]
    pub from: PathBuf,
    /// Latents per row, where the files do not say.
    #[arg(long, value_name = "N")]
    pub k: Option<usize>,
    /// Threshold of all latents, where the files do not say.
    #[arg(long, value_name = "X")]
    pub threshold: Option<f32>,
    /// The hook point that it reads, where the files do not say (or say wrongly).
    #[arg(long, value_name = "POINT")]
    pub hook: Option<String>,
    /// The host model's name, where the files do not say.
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// Mean of the rows it was trained on, where its training subtracted one that its files do not hold: FILE.safetensors:TENSOR.
    #[arg(long, value_name = "FILE:TENSOR")]
    pub input_mean: Option<String>,
    /// Make atoms of unit norm; codes become as much larger. Refused where other latents would fire.
    #[arg(long)]
    pub fold_norms: bool,
}

impl Reading {
    fn read(&self, format: Option<&'static dyn Format>, output: &Output) -> Result<(Foreign, &'static str)> {
        let options = {
            let mut options = ReadOptions::default();
            options.k = self.k;
            options.threshold = self.threshold;
            options
        };
        let (mut foreign, id) = if self.from.join("dictionary.json").is_file() && format.is_none() {
            (Foreign { dictionary: Dictionary::load(&self.from)?, notes: Vec::new() }, "lapidary")
        } else {
            let (at, origin) = super::hub::dictionary(&self.from, output)?;
            let found = formats::find_one(&at, format)?;
            let mut foreign = found.format.read(&found.path, &options)?;
            if let Some(origin) = origin {
                foreign.dictionary.provenance.notes["imported"]["from"] = origin;
            }
            (foreign, found.format.id())
        };
        let d = &mut foreign.dictionary;
        name(d, self.hook.as_deref(), self.host.as_deref());
        if let Some(mean) = &self.input_mean {
            if d.input_transform.is_some() {
                return Err(Error::request("this dictionary has an input transform already", "leave out --input-mean"));
            }
            d.input_transform = Some(InputTransform { shift: vector(mean, d.d_in())?, scale: 1.0 });
            d.provenance.notes["input_mean"] = mean.rsplit('/').next().unwrap_or(mean).into();
        }
        if self.fold_norms {
            *d = d.with_unit_atoms()?;
            foreign.notes.push("atoms were folded to unit norm: codes are as many times larger".into());
        }
        Ok((foreign, id))
    }
}

/// What a person says of a dictionary's origin.
fn name(d: &mut Dictionary, hook: Option<&str>, host: Option<&str>) {
    if let Some(hook) = hook {
        d.provenance.hook = hook.parse::<HookPoint>().map_or(hook.to_string(), |p| p.to_string());
    }
    if let Some(host) = host {
        if !d.provenance.host.is_object() {
            d.provenance.host = serde_json::json!({});
        }
        d.provenance.host["name"] = host.into();
    }
}

/// FILE.safetensors:TENSOR, of `width` values.
fn vector(at: &str, width: usize) -> Result<Tensor> {
    let (file, name) = at.rsplit_once(':').ok_or_else(|| {
        Error::request(format!("`{at}` names no tensor"), "write FILE.safetensors:TENSOR; `lapidary inspect FILE` lists its tensors")
    })?;
    let mut all = Tensors::safetensors("safetensors file", Path::new(file))?;
    let vector = all.vector(name)?;
    if vector.dims1()? != width {
        let help = "name the mean of the rows that the dictionary reads".to_string();
        return Err(Error::Width { what: format!("`{name}` of {file}"), expected: width, got: vector.dims1()?, help });
    }
    Ok(vector)
}

/// `auto` is none.
fn dialect(id: &str) -> Result<Option<&'static dyn Format>> {
    if id == "auto" {
        return Ok(None);
    }
    formats::by_id(id).map(Some)
}

/// Read a dictionary of another tool and keep it as ours. The function never changes: norms, input transforms, skip paths stay.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary import --from saes/blocks.5.hook_resid_post --out imported
  lapidary import --from EleutherAI/sae-llama-3-8b-32x/layers.10 --out imported
  lapidary import --from ae.safetensors --input-mean acts.safetensors:act_mean --hook blocks.0.hook_resid_post --out imported
docs/formats.md says what each format holds.")]
pub struct ImportArgs {
    #[command(flatten)]
    pub reading: Reading,
    /// Its format: auto looks at the files.
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    pub format: String,
    /// Folder of the dictionary.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace what is in --out.
    #[arg(long)]
    pub overwrite: bool,
}

/// What was read.
#[derive(Debug, Serialize)]
pub struct Imported {
    out: PathBuf,
    format: &'static str,
    d_in: usize,
    d_out: usize,
    d_sae: usize,
    activation: Activation,
    centred: bool,
    atom_norms: (f32, f32),
    hook: String,
    notes: Vec<String>,
}

impl fmt::Display for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, d_in, d_out, d_sae, activation, atom_norms: (lo, hi), .. } = self;
        writeln!(f, "{format} dictionary: {d_sae} latents over {d_in} dimensions, {activation:?}")?;
        if d_in != d_out {
            writeln!(f, "writes {d_out} dimensions")?;
        }
        let subtracts = if self.centred { "subtracts b_dec" } else { "does not subtract b_dec" };
        let hook = if self.hook.is_empty() { "no hook point told: name it with --hook" } else { &self.hook };
        writeln!(f, "reads {hook}; the encoder {subtracts}; atom norms {lo:.6} to {hi:.6}")?;
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        write!(f, "{}", self.out.display())
    }
}

/// Imports.
pub fn import(args: &ImportArgs, output: &Output) -> Result<Imported> {
    let format = dialect(&args.format)?;
    fresh(&args.out, args.overwrite)?;
    let (foreign, id) = args.reading.read(format, output)?;
    let d = &foreign.dictionary;
    d.save(&args.out)?;
    let norms = d.atom_norms()?;
    Ok(Imported {
        out: args.out.clone(),
        format: id,
        d_in: d.d_in(),
        d_out: d.d_out(),
        d_sae: d.d_sae(),
        activation: d.activation.clone(),
        centred: d.centred,
        atom_norms: norms.iter().fold((f32::INFINITY, 0f32), |(lo, hi), &n| (lo.min(n), hi.max(n))),
        hook: d.provenance.hook.clone(),
        notes: foreign.notes,
    })
}

fn fresh(out: &Path, overwrite: bool) -> Result<()> {
    if !overwrite && !artefact::is_empty(out)? {
        return Err(Error::OutputNotEmpty { path: out.to_path_buf() });
    }
    Ok(())
}

/// Rows to prove an export on.
#[derive(Debug, clap::Args)]
pub struct Proof {
    /// Shards whose held-out rows prove the export [default: rows made of the dictionary's own atoms].
    #[arg(long, value_name = "DIR")]
    pub shards: Option<PathBuf>,
    /// Rows of them, at most.
    #[arg(long, value_name = "N", value_parser = count, default_value_t = PROOF_ROWS)]
    pub rows: u64,
    /// Seed of rows that are made.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Largest difference allowed, relative to the largest value where that is above 1.
    #[arg(long, value_name = "X", default_value_t = formats::TOLERANCE)]
    pub tolerance: f64,
}

impl Proof {
    /// Blocks of rows, and what they are.
    fn rows(&self, d: &Dictionary) -> Result<(Vec<Tensor>, &'static str)> {
        match &self.shards {
            Some(dir) => held_out_rows(d, dir, self.rows),
            None => Ok((vec![formats::made_rows(d, MADE_ROWS, self.seed)?], "rows made of its own atoms")),
        }
    }

    /// How often each latent fires on them.
    fn density(&self, d: &Dictionary, rows: &[Tensor]) -> Result<Option<Vec<f64>>> {
        if self.shards.is_none() {
            return Ok(None);
        }
        let (mut counts, mut n) = (vec![0u64; d.d_sae()], 0);
        for x in rows {
            let codes = d.encode(x)?;
            n += codes.n_rows();
            codes.indices.iter().for_each(|&j| counts[j as usize] += 1);
        }
        Ok(Some(counts.iter().map(|&c| c as f64 / n.max(1) as f64).collect()))
    }
}

/// The column that a dictionary reads, the split to look at, and what that is.
fn column_of(d: &Dictionary, shards: &Shards) -> Result<(String, Split, &'static str)> {
    let own = d.provenance.hook.as_str();
    let known = shards.columns().any(|c| c.name == own);
    let column = shards.column(known.then_some(own))?;
    if column.width != d.d_in() {
        let help = format!("this dictionary reads `{own}`: name shards of it");
        return Err(Error::Width { what: format!("column `{}` of the shards", column.name), expected: d.d_in(), got: column.width, help });
    }
    let (split, what) = match shards.rows(Some(Split::HeldOut)) {
        0 => (Split::Train, "training rows, for none are held out"),
        _ => (Split::HeldOut, "held-out rows"),
    };
    Ok((column.name.clone(), split, what))
}

/// Up to `most` held-out rows of the column that a dictionary reads, in blocks, and what they are.
pub fn held_out_rows(d: &Dictionary, dir: &Path, most: u64) -> Result<(Vec<Tensor>, &'static str)> {
    let shards = Shards::open(dir)?;
    let (column, split, what) = column_of(d, &shards)?;
    let (mut blocks, mut left) = (Vec::new(), most as usize);
    for batch in shards.scan(&column, Some(split))? {
        let batch = batch?;
        let n = batch.n.min(left);
        blocks.push(Tensor::from_slice(&batch.x[..n * d.d_in()], (n, d.d_in()), &Device::Cpu)?);
        left -= n;
        if left == 0 {
            break;
        }
    }
    Ok((blocks, what))
}

/// Write a dictionary for another tool, read it back, and compare both.
///
/// Exit code 1 when they differ by more than rounding.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary export --dictionary runs/k32 --format saelens --shards shards --out for-saelens
  lapidary export --dictionary runs/matryoshka --prefix 256 --format saelens --out first-256
  lapidary export --dictionary runs/k32 --format sparsify --out layers.5
  lapidary export --dictionary runs/k32 --format saelens --card --out repository
  lapidary export --dictionary runs/k32 --format gguf --latents 12,40=-1 --scale 8 --out steering
  lapidary export --dictionary runs/k32 --format parquet --out table
  lapidary export --dictionary runs/k32 --format delphi --shards shards --rows 1_000_000 --context 128 --out results/k32
  lapidary export --dictionary runs/k32 --format neuronpedia --features k32-features --model-id gpt2-small --set res-topk --out pages
Dialects, and what each can hold: docs/formats.md. parquet, npz, csv and gguf (a llama.cpp control vector) hold atoms, not a dictionary;
neuronpedia and saedashboard hold a feature table.")]
pub struct ExportArgs {
    /// Folder of the dictionary.
    #[arg(long, value_name = "DIR")]
    pub dictionary: PathBuf,
    /// Format to write.
    #[arg(long, value_name = "FORMAT")]
    pub format: String,
    /// The dictionary of the first N latents (a prefix that a Matryoshka SAE was trained with).
    #[arg(long, value_name = "N")]
    pub prefix: Option<usize>,
    /// Another inference rule for the same atoms, as `encode` takes it: its codes are others.
    #[arg(long, value_name = "RULE")]
    pub activation: Option<Activation>,
    /// Make atoms of unit norm first; codes become as much larger. Refused where other latents would fire.
    #[arg(long)]
    pub fold_norms: bool,
    /// The hook point that it reads, where the dictionary does not say.
    #[arg(long, value_name = "POINT")]
    pub hook: Option<String>,
    /// The host model's name, where the dictionary does not say.
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// A folder to upload: --out gets a model card (README.md), and the dictionary a folder in it named after its hook point.
    #[arg(long)]
    pub card: bool,
    /// parquet, npz, csv, gguf: these latents alone, NUMBER or NUMBER=FACTOR, by commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub latents: Vec<Pick>,
    /// parquet, npz, csv, gguf: a factor of all of them.
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub scale: Option<f64>,
    /// delphi: tokens per sequence.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub context: usize,
    /// delphi: the token that stands for those whose rows were masked.
    #[arg(long, value_name = "ID", default_value_t = 0)]
    pub fill_token: u32,
    /// neuronpedia, saedashboard: the folder that `features` wrote.
    #[arg(long, value_name = "DIR")]
    pub features: Option<PathBuf>,
    /// neuronpedia, saedashboard: the host's name there, as in gpt2-small.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub model_id: String,
    /// neuronpedia, saedashboard: name of the set of dictionaries there, as in res-topk-24k.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub set: String,
    /// saedashboard: what tells this dictionary apart within the set.
    #[arg(long, value_name = "NAME")]
    pub suffix: Option<String>,
    #[command(flatten)]
    pub proof: Proof,
    /// Folder to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace files in --out.
    #[arg(long)]
    pub overwrite: bool,
}

/// Atoms that were written.
#[derive(Debug, Serialize)]
pub struct Vectors {
    format: &'static str,
    path: PathBuf,
    notes: Vec<String>,
}

/// What `export` wrote.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Wrote {
    /// A dictionary, proved.
    Dictionary(Box<Report>),
    /// Atoms.
    Vectors(Vectors),
    /// Codes of token sequences.
    Delphi(DelphiReport),
    /// A feature table.
    Pages(PagesReport),
}

impl fmt::Display for Wrote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dictionary(report) => report.fmt(f),
            Self::Vectors(v) => {
                write!(f, "{}", v.path.display())?;
                v.notes.iter().try_for_each(|note| write!(f, "\nnote: {note}"))
            }
            Self::Delphi(r) => {
                writeln!(f, "{} sequences, {} codes of {} rows; {} tokens filled in", r.sequences, r.codes, r.rows, r.filled)?;
                write!(f, "{}", r.path.display())
            }
            Self::Pages(r) => {
                writeln!(f, "{} features in {} files, {} dead latents left out", r.features, r.files, r.dead)?;
                write!(f, "{}", r.path.display())?;
                r.notes.iter().try_for_each(|note| write!(f, "\nnote: {note}"))
            }
        }
    }
}

/// What was written, and the proof.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    exported: Exported,
    /// What rows the proof used.
    proved_on: &'static str,
    /// Was it within tolerance?
    equal: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} dictionary: {}", self.exported.format, self.exported.path.display())?;
        for note in &self.exported.notes {
            writeln!(f, "note: {note}")?;
        }
        write!(f, "read back and compared on {}: {}", self.proved_on, self.exported.proof)
    }
}

fn write(d: &Dictionary, format: &'static dyn Format, out: &Path, overwrite: bool, proof: &Proof) -> Result<(Report, Result<()>)> {
    fresh(out, overwrite)?;
    let (rows, proved_on) = proof.rows(d)?;
    let mut options = WriteOptions::default();
    options.density = proof.density(d, &rows)?;
    let exported = formats::export(d, format, out, &options, &rows, proof.tolerance)?;
    let equal = exported.proof.holds();
    let problem = || Error::Requirement(format!("{} does not give the dictionary's codes: do not use it", exported.path.display()));
    let met = if equal { Ok(()) } else { Err(problem()) };
    Ok((Report { exported, proved_on, equal }, met))
}

/// Exports; the second value says whether the export is the same dictionary (it is returned after the report is printed).
pub fn export(args: &ExportArgs, output: &Output) -> Result<(Wrote, Result<()>)> {
    let vectors = VectorFormat::by_id(&args.format);
    if let Some(format) = FeatureFormat::by_id(&args.format) {
        return Ok((Wrote::Pages(pages(args, format)?), Ok(())));
    }
    let format = (vectors.is_none() && args.format != DELPHI).then(|| formats::by_id(&args.format)).transpose().map_err(|e| match e {
        Error::Request { problem, help } => Error::request(
            problem,
            format!("{help}; or, of atoms: parquet, npz, csv, gguf; of codes: delphi; of a feature table: neuronpedia, saedashboard"),
        ),
        other => other,
    })?;
    let mut d = Dictionary::load(&args.dictionary)?;
    name(&mut d, args.hook.as_deref(), args.host.as_deref());
    if let Some(m) = args.prefix {
        let trained = d.prefixes();
        if m != d.d_sae() && !trained.contains(&m) {
            let known = if trained.is_empty() { "none".into() } else { format!("{trained:?}") };
            return Err(Error::request(
                format!("the first {m} latents are no dictionary of their own"),
                format!("prefixes that this one was trained with: {known}"),
            ));
        }
        d = d.prefix(m)?;
    }
    if let Some(activation) = &args.activation {
        d = d.with_activation(activation.clone())?;
    }
    if args.fold_norms {
        d = d.with_unit_atoms()?;
    }
    if args.format == DELPHI {
        return Ok((Wrote::Delphi(delphi(args, &d, output)?), Ok(())));
    }
    let (Some(format), None) = (format, vectors) else {
        return Ok((Wrote::Vectors(atoms(args, &d, vectors)?), Ok(())));
    };
    if !args.latents.is_empty() || args.scale.is_some() {
        return Err(Error::request("--latents and --scale are for atoms", "leave them out, or write --format parquet, npz, csv or gguf"));
    }
    if !args.card {
        let (report, met) = write(&d, format, &args.out, args.overwrite, &args.proof)?;
        return Ok((Wrote::Dictionary(Box::new(report)), met));
    }
    let folder = formats::card::folder_of(&d, format.id())?;
    fresh(&args.out, args.overwrite)?;
    let (report, met) = write(&d, format, &args.out.join(&folder), args.overwrite, &args.proof)?;
    formats::card::write_card(&d, &report.exported, &args.out, &folder)?;
    Ok((Wrote::Dictionary(Box::new(report)), met))
}

fn pages(args: &ExportArgs, format: FeatureFormat) -> Result<PagesReport> {
    let Some(features) = &args.features else {
        return Err(Error::request(
            format!("{} holds a feature table", format.id()),
            "make one with `lapidary features`, and name its folder with --features DIR",
        ));
    };
    let d = Dictionary::load(&args.dictionary)?;
    let mut table = FeatureTable::load(features)?;
    if let Some(hook) = &args.hook {
        table.info.dictionary.hook.clone_from(hook);
    }
    let examples = Examples::load(features)?;
    let names = PageNames { model_id: args.model_id.clone(), set: args.set.clone(), suffix: args.suffix.clone() };
    fresh(&args.out, args.overwrite)?;
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io("create", &args.out, e))?;
    write_pages(&d, &table, &examples, format, &names, &args.out)
}

fn delphi(args: &ExportArgs, d: &Dictionary, output: &Output) -> Result<DelphiReport> {
    let Some(dir) = &args.proof.shards else {
        return Err(Error::request("a delphi cache holds codes of rows", "name them: --shards DIR, and how many with --rows"));
    };
    let shards = Shards::open(dir)?;
    let (column, split, _) = column_of(d, &shards)?;
    fresh(&args.out, args.overwrite)?;
    let config = DelphiConfig { context: args.context, rows: args.proof.rows, fill_token: args.fill_token };
    write_delphi(d, &shards, &column, Some(split), &args.out, &config, output)
}

fn atoms(args: &ExportArgs, d: &Dictionary, format: Option<VectorFormat>) -> Result<Vectors> {
    let format = format.unwrap_or(VectorFormat::Parquet);
    if args.card {
        return Err(Error::request("--card is for dictionaries", "leave it out, or choose a dialect"));
    }
    let mut latents = args.latents.clone();
    if let Some(scale) = args.scale {
        if latents.is_empty() {
            latents = (0..d.d_sae()).map(|latent| Pick { latent, scale: 1.0 }).collect();
        }
        latents.iter_mut().for_each(|p| p.scale *= scale);
    }
    if format == VectorFormat::Gguf && args.latents.is_empty() {
        latents.clear();
    }
    fresh(&args.out, args.overwrite)?;
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io("create", &args.out, e))?;
    let (path, notes) = write_vectors(d, format, &latents, &args.out)?;
    Ok(Vectors { format: format.id(), path, notes })
}

/// Rewrite a dictionary of one tool for another: import and export in one go, compared.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  lapidary convert --from layers.5 --format saelens --out blocks.5.hook_resid_post")]
pub struct ConvertArgs {
    #[command(flatten)]
    pub reading: Reading,
    /// Format of --from: auto looks at the files.
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    pub from_format: String,
    /// Format to write.
    #[arg(long, value_name = "FORMAT")]
    pub format: String,
    #[command(flatten)]
    pub proof: Proof,
    /// Folder to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace files in --out.
    #[arg(long)]
    pub overwrite: bool,
}

/// Converts.
pub fn convert(args: &ConvertArgs, output: &Output) -> Result<(Report, Result<()>)> {
    let format = formats::by_id(&args.format)?;
    let (foreign, id) = args.reading.read(dialect(&args.from_format)?, output)?;
    for note in &foreign.notes {
        output.note(&format!("{id}: {note}"));
    }
    write(&foreign.dictionary, format, &args.out, args.overwrite, &args.proof)
}
