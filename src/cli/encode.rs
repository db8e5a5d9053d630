//! `lapidary encode`: a dictionary over shards or vectors, as sparse Parquet codes.

use std::path::PathBuf;

use candle_core::Device;
use lapidary::encode::{encode, EncodeReport, VectorEncoder};
use lapidary::harvest::scan_vectors;
use lapidary::{Activation, Dictionary, Error, Progress, Result};

use super::output::Output;
use super::settings::{Reading, Settings, SplitChoice};

/// Encode rows with a dictionary: which latents fire on each, and how strongly.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary encode --dictionary runs/k32 --shards shards --split held-out --out codes
  lapidary encode --dictionary runs/k32 --from acts.safetensors --tensor acts --reconstruct --out codes
  duckdb -c \"select doc_id, position, len(indices) as l0 from 'codes/codes.parquet' limit 5\"")]
pub struct Args {
    /// Folder of the dictionary.
    #[arg(long, value_name = "DIR")]
    pub dictionary: PathBuf,
    /// Folder of shards.
    #[arg(long, value_name = "DIR", required_unless_present = "from")]
    pub shards: Option<PathBuf>,
    /// Vectors instead: .npy, .safetensors or .parquet.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shards", "split"])]
    pub from: Option<PathBuf>,
    /// Tensor of a .safetensors, list column of a .parquet; may be left out when there is only one.
    #[arg(long, value_name = "NAME", requires = "from")]
    pub tensor: Option<String>,
    /// Also write what the codes decode to: reconstruction.npy, f32, a row for a row.
    #[arg(long, requires = "from")]
    pub reconstruct: bool,
    /// Column of the shards [default: the one the dictionary was trained on].
    #[arg(long, value_name = "POINT")]
    pub hook: Option<String>,
    /// Another inference rule for the same atoms: relu, topk:K, threshold:X, mp:STEPS or omp:STEPS [default: the dictionary's own].
    ///
    /// mp and omp (matching pursuit, and its orthogonal form) take ,key=value: mp:8,selection=signed,tolerance=0.05,relative=true.
    #[arg(long, value_name = "RULE")]
    pub activation: Option<Activation>,
    #[command(flatten)]
    pub settings: Settings,
    /// Which rows.
    #[arg(long, value_enum, default_value_t = SplitChoice::All)]
    pub split: SplitChoice,
    /// Folder for codes.parquet and codes.json.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace what is in --out.
    #[arg(long)]
    pub overwrite: bool,
}

/// Encodes.
pub fn run(args: &Args, device: &Device, output: &Output) -> Result<EncodeReport> {
    match (&args.from, &args.shards) {
        (Some(from), _) => vectors(args, from, device, output),
        (None, Some(shards)) => {
            let reading = Reading {
                dictionary: args.dictionary.clone(),
                shards: shards.clone(),
                hook: args.hook.clone(),
                activation: args.activation.clone(),
                settings: args.settings.clone(),
            };
            let (dictionary, shards, column) = reading.open(device)?;
            encode(&dictionary, &shards, &column, args.split.split(), &args.out, args.overwrite, output)
        }
        (None, None) => Err(Error::request("there is nothing to encode", "pass --shards DIR or --from FILE")),
    }
}

fn vectors(args: &Args, from: &std::path::Path, device: &Device, output: &Output) -> Result<EncodeReport> {
    args.settings.layers()?.resolve()?;
    let mut dictionary = Dictionary::load(&args.dictionary)?;
    if let Some(activation) = &args.activation {
        dictionary = dictionary.with_activation(activation.clone())?;
    }
    let dictionary = dictionary.on(device)?;
    let mut encoder: Option<VectorEncoder<'_>> = None;
    let mut trouble = None;
    let mut step = |block: lapidary::harvest::VectorBlock<'_>| -> Result<()> {
        if output.is_cancelled() {
            return Err(Error::Cancelled { doing: "encoding" });
        }
        if block.width != dictionary.d_in() {
            let help = "name another tensor with --tensor, or another dictionary".to_string();
            return Err(Error::Width { what: from.display().to_string(), expected: dictionary.d_in(), got: block.width, help });
        }
        if encoder.is_none() {
            output.begin("encode", Some(block.total), "rows");
            encoder = Some(VectorEncoder::create(&dictionary, block.total, args.reconstruct, &args.out, args.overwrite)?);
        }
        if let Some(bad) = block.x.iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite {
                what: from.display().to_string(),
                count: block.x.iter().filter(|v| !v.is_finite()).count(),
                place: format!("row {}", block.first + (bad / block.width) as u64),
                help: "drop those rows".into(),
            });
        }
        output.advance((block.x.len() / block.width) as u64);
        encoder.as_mut().map_or(Ok(()), |e| e.push(block.x, block.width))
    };
    scan_vectors(from, args.tensor.as_deref(), &mut |block| match step(block) {
        Ok(()) => true,
        Err(e) => {
            trouble = Some(e);
            false
        }
    })?;
    output.end();
    match (trouble, encoder) {
        (Some(error), _) => Err(error),
        (None, Some(encoder)) => encoder.finish(&from.file_name().unwrap_or_default().to_string_lossy()),
        (None, None) => Err(Error::request(format!("{} has no rows", from.display()), "check the file")),
    }
}
