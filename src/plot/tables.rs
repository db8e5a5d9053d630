//! Reads the columns that charts show of the tables that other stages wrote.

use std::fs::File;
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{ArrowPrimitiveType, Float32Type, Float64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::ProjectionMask;

use crate::error::{Error, Result};
use crate::score::concepts::Recovery;

/// Firing density of each latent, and how close its atom comes to others.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Densities {
    /// Rows they were counted over, if the file says.
    pub rows: Option<u64>,
    /// Share of rows on which each latent fires.
    pub values: Vec<f64>,
    /// Largest |cosine| of each atom to another; empty in files without it.
    pub max_cos: Vec<f64>,
}

/// Recovery of concepts under each representation (`concepts.json`).
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
pub struct Concepts {
    /// Rows that chose feature and threshold.
    #[serde(default)]
    pub selection_rows: u64,
    /// Rows that were scored.
    #[serde(default)]
    pub test_rows: u64,
    /// By representation.
    pub representations: Vec<Recovery>,
}

/// The 2-D map of atoms of a feature table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Atlas {
    /// By latent.
    pub atoms: Vec<Atom>,
}

/// A point of the map.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Atom {
    /// Where it stands, each from 0 to 1.
    pub at: (f64, f64),
    /// Share of rows on which it fires.
    pub density: f64,
    /// Did it never fire?
    pub dead: bool,
    /// What it means, where something is known.
    pub label: Option<String>,
    /// F1 of the concept it finds best, where concepts are known.
    pub f1: Option<f64>,
}

/// Batches of a Parquet file with only the columns of `names` that it has, and what its metadata says of `rows`.
fn open(path: &Path, what: &'static str, remedy: &'static str, names: &[&str]) -> Result<(Vec<RecordBatch>, Option<u64>)> {
    let wrong = |problem: String| Error::format(what, path, problem, remedy);
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| wrong(e.to_string()))?;
    let metadata = reader.metadata().file_metadata().key_value_metadata();
    let rows = metadata.and_then(|all| all.iter().find(|e| e.key == "rows")).and_then(|e| e.value.as_ref()?.parse().ok());
    let mask = ProjectionMask::columns(reader.parquet_schema(), names.iter().copied());
    let batches = reader.with_projection(mask).build().map_err(|e| wrong(e.to_string()))?;
    Ok((batches.collect::<std::result::Result<_, _>>().map_err(|e| wrong(e.to_string()))?, rows))
}

/// Numbers of a column; `None` where they are null.
fn numbers<T: ArrowPrimitiveType>(column: &ArrayRef) -> Option<Vec<Option<f64>>>
where
    T::Native: Into<f64>,
{
    Some(column.as_primitive_opt::<T>()?.iter().map(|v| v.map(Into::into)).collect())
}

/// A column of either float type.
fn floats(batch: &RecordBatch, name: &str) -> std::result::Result<Vec<Option<f64>>, String> {
    let column = batch.column_by_name(name).ok_or_else(|| format!("it has no column `{name}`"))?;
    numbers::<Float64Type>(column).or_else(|| numbers::<Float32Type>(column)).ok_or_else(|| format!("its column `{name}` is no float"))
}

/// The same, where a null is damage.
fn all_floats(batch: &RecordBatch, name: &str) -> std::result::Result<Vec<f64>, String> {
    floats(batch, name)?.into_iter().collect::<Option<_>>().ok_or_else(|| format!("its column `{name}` has nulls"))
}

/// Reads `latents.parquet`.
pub fn densities(path: &Path) -> Result<Densities> {
    let remedy = "run `score` again";
    let wrong = |problem: String| Error::format("table of latents", path, problem, remedy);
    let (batches, rows) = open(path, "table of latents", remedy, &["density", "max_cos"])?;
    let mut found = Densities { rows, ..Densities::default() };
    for batch in &batches {
        found.values.extend(all_floats(batch, "density").map_err(wrong)?);
        if batch.column_by_name("max_cos").is_some() {
            found.max_cos.extend(all_floats(batch, "max_cos").map_err(wrong)?);
        }
    }
    Ok(found)
}

/// Reads `concepts.json`.
pub fn concepts(path: &Path) -> Result<Concepts> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::format("table of concepts", path, e.to_string(), "make it again"))
}

/// Reads the map of `features.parquet`; the other columns are left alone.
pub fn atlas(path: &Path) -> Result<Atlas> {
    let remedy = "run `features` again";
    let wrong = |problem: String| Error::format("feature table", path, problem, remedy);
    let names = ["atlas_x", "atlas_y", "density", "dead", "label", "concept_f1"];
    let (batches, _) = open(path, "feature table", remedy, &names)?;
    let mut atoms = Vec::new();
    for batch in &batches {
        let (x, y) = (all_floats(batch, "atlas_x").map_err(wrong)?, all_floats(batch, "atlas_y").map_err(wrong)?);
        let density = all_floats(batch, "density").map_err(wrong)?;
        let dead = batch.column_by_name("dead").and_then(|c| c.as_boolean_opt()).filter(|c| c.null_count() == 0);
        let dead = dead.ok_or_else(|| wrong("it has no column `dead` of booleans".into()))?;
        let labels = batch.column_by_name("label").and_then(|c| c.as_string_opt::<i32>());
        let f1 = batch.column_by_name("concept_f1").map(|_| floats(batch, "concept_f1")).transpose().map_err(wrong)?;
        for j in 0..batch.num_rows() {
            atoms.push(Atom {
                at: (x[j], y[j]),
                density: density[j],
                dead: dead.value(j),
                label: labels.filter(|l| l.is_valid(j)).map(|l| l.value(j).to_string()),
                f1: f1.as_ref().and_then(|f1| f1[j]),
            });
        }
    }
    Ok(Atlas { atoms })
}
