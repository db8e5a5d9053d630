//! Flags shared by verbs: the run file with its overrides, output folders, comma lists, numbers with underscores.

use std::path::PathBuf;
use std::str::FromStr;

use candle_core::Device;
use clap::Args;
use lapidary::artefact::Mode;
use lapidary::config::Layers;
use lapidary::dictionary::Activation;
use lapidary::shard::{Shards, Split};
use lapidary::{Dictionary, Error, Result};

/// `--config` and `--set`.
#[derive(Debug, Clone, Default, Args)]
pub struct Settings {
    /// A TOML run file; flags win over it.
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    pub config: Option<PathBuf>,
    /// One setting, as in --set train.clip_norm=0; may be repeated. `lapidary config` shows all keys.
    #[arg(long = "set", value_name = "KEY=VALUE", help_heading = "Settings")]
    pub sets: Vec<String>,
}

impl Settings {
    /// File and `--set`; the verb puts its flags on top. What they say of `[kernels]` holds from here on.
    pub fn layers(&self) -> Result<Layers> {
        let mut layers = Layers::new(self.config.as_deref())?;
        for assignment in &self.sets {
            layers.set(assignment)?;
        }
        layers.kernels()?.apply();
        Ok(layers)
    }
}

/// What to do with an output folder in use.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct OutMode {
    /// Go on with what is in --out; the result is the same bytes as without the interruption.
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Replace what is in --out.
    #[arg(long)]
    pub overwrite: bool,
}

impl OutMode {
    /// As the library names it.
    pub fn mode(self) -> Mode {
        match (self.resume, self.overwrite) {
            (true, _) => Mode::Resume,
            (_, true) => Mode::Overwrite,
            _ => Mode::Fresh,
        }
    }
}

/// A whole number that may carry underscores: `1_000_000`.
pub fn count(s: &str) -> Result<u64, String> {
    s.replace('_', "").parse().map_err(|_| format!("`{s}` is no whole number (underscores are fine: 1_000_000)"))
}

/// A comma list: `16,32,64`.
#[derive(Debug, Clone)]
pub struct List<T>(pub Vec<T>);

impl<T: FromStr> FromStr for List<T> {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let parse = |item: &str| item.trim().replace('_', "").parse::<T>().map_err(|_| format!("`{item}` is no number"));
        s.split(',').map(parse).collect::<Result<_, _>>().map(Self)
    }
}

/// `--split`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SplitChoice {
    /// Rows that training never sees.
    HeldOut,
    /// Rows that training sees.
    Train,
    /// Both.
    All,
}

impl SplitChoice {
    /// As the library names it; `None` means both.
    pub fn split(self) -> Option<Split> {
        match self {
            Self::HeldOut => Some(Split::HeldOut),
            Self::Train => Some(Split::Train),
            Self::All => None,
        }
    }
}

/// `--dictionary`, `--shards` and `--hook`: a dictionary and the column that it reads.
#[derive(Debug, Clone, Args)]
pub struct Reading {
    /// Folder of the dictionary.
    #[arg(long, value_name = "DIR")]
    pub dictionary: PathBuf,
    /// Folder of shards.
    #[arg(long, value_name = "DIR")]
    pub shards: PathBuf,
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
}

impl Reading {
    /// Opens both, under the run file's `[kernels]`; the dictionary encodes on `device`. The column is the one asked for, else the hook the dictionary was trained on if the shards have it, else their only one.
    pub fn open(&self, device: &Device) -> Result<(Dictionary, Shards, String)> {
        self.settings.layers()?.resolve()?;
        let mut dictionary = Dictionary::load(&self.dictionary)?;
        if let Some(activation) = &self.activation {
            dictionary = dictionary.with_activation(activation.clone())?;
        }
        let shards = Shards::open(&self.shards)?;
        let own = &dictionary.provenance.hook;
        let known = shards.columns().any(|c| c.name == *own);
        let column = shards.column(self.hook.as_deref().or(known.then_some(own.as_str())))?;
        if column.width != dictionary.d_in() {
            return Err(Error::Width {
                what: format!("column `{}` of the shards", column.name),
                expected: dictionary.d_in(),
                got: column.width,
                help: format!("this dictionary reads `{own}`; name the column with --hook"),
            });
        }
        let name = column.name.clone();
        Ok((dictionary.on(device)?, shards, name))
    }
}
