//! Atoms for those who look at them or steer with them, not for those who encode: tables, control vectors. Written, never read.

mod gguf;
mod table;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::dictionary::Dictionary;
use crate::error::{Error, Result};

/// What atoms can be written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VectorFormat {
    /// A row per latent: biases, threshold, encoder and decoder.
    Parquet,
    /// The same columns as arrays by name, and `b_dec`.
    Npz,
    /// Without the encoder, as text.
    Csv,
    /// A llama.cpp control vector: a sum of some atoms.
    Gguf,
}

impl VectorFormat {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Parquet, Self::Npz, Self::Csv, Self::Gguf];

    /// Name on the command line.
    pub fn id(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Npz => "npz",
            Self::Csv => "csv",
            Self::Gguf => "gguf",
        }
    }

    /// The one of that name.
    pub fn by_id(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.id() == id)
    }
}

/// A latent and how strongly: `12`, or `12=2.5`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pick {
    /// Which.
    pub latent: usize,
    /// Its atom's factor.
    pub scale: f64,
}

impl FromStr for Pick {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = || Error::request(format!("`{s}` is no latent"), "write its number, or number=factor: 12,40=2.5");
        let (latent, scale) = s.split_once('=').unwrap_or((s, "1"));
        let scale: f64 = scale.trim().parse().map_err(|_| bad())?;
        match (latent.trim().replace('_', "").parse(), scale.is_finite()) {
            (Ok(latent), true) => Ok(Self { latent, scale }),
            _ => Err(bad()),
        }
    }
}

/// Writes the atoms of `latents` (none: of all) into `out`, which exists: one file, whose path is returned, and what is to be known of it.
///
/// # Errors
/// A latent that is not there; a hook point that no control vector reaches; I/O errors.
pub fn write_vectors(d: &Dictionary, format: VectorFormat, latents: &[Pick], out: &Path) -> Result<(PathBuf, Vec<String>)> {
    if let Some(pick) = latents.iter().find(|p| p.latent >= d.d_sae()) {
        return Err(Error::request(
            format!("there is no latent {}", pick.latent),
            format!("this dictionary has {}, from 0 to {}", d.d_sae(), d.d_sae() - 1),
        ));
    }
    match format {
        VectorFormat::Parquet => table::parquet(d, latents, out),
        VectorFormat::Npz => table::npz(d, latents, out),
        VectorFormat::Csv => table::csv(d, latents, out),
        VectorFormat::Gguf => gguf::write(d, latents, out),
    }
}
