//! The table of latents: what each one did on the scored rows. Feeds the density metrics and becomes `latents.parquet`.
//!
//! Not for: examples of where a latent fires (the feature table).

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float32Array, Float64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::decoder::{encoder_cosines, max_cosines};
use crate::artefact;
use crate::codes::Codes;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};

/// A latent that fires on more than this share of the rows is dense.
pub const DENSE_ABOVE: f64 = 0.1;

/// File that [`LatentStats::save`] writes.
pub const LATENTS_FILE: &str = "latents.parquet";

/// One entry per latent, all of length `d_sae`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LatentStats {
    /// Number of rows seen.
    pub rows: u64,
    /// Rows on which the latent fires.
    pub fires: Vec<u64>,
    /// Sum of its values.
    pub sum: Vec<f64>,
    /// Largest value; minus infinity for a latent that never fires.
    pub max: Vec<f32>,
    /// Largest |cosine| of its atom to another atom.
    pub max_cos: Vec<f32>,
    /// Cosine of its encoder row with its atom; NaN where the widths differ.
    pub enc_dec_cos: Vec<f64>,
}

impl LatentStats {
    /// No rows yet; the cosines, which need none, are computed here.
    ///
    /// # Errors
    /// When the weights cannot be read.
    pub fn new(dictionary: &Dictionary) -> Result<Self> {
        let d_sae = dictionary.d_sae();
        Ok(Self {
            rows: 0,
            fires: vec![0; d_sae],
            sum: vec![0.0; d_sae],
            max: vec![f32::NEG_INFINITY; d_sae],
            max_cos: max_cosines(&dictionary.coder.w_dec)?,
            enc_dec_cos: encoder_cosines(dictionary)?,
        })
    }

    /// Takes in the codes of more rows.
    pub fn update(&mut self, codes: &Codes) {
        self.rows += codes.n_rows() as u64;
        for (&j, &v) in codes.indices.iter().zip(&codes.values) {
            let j = j as usize;
            self.fires[j] += 1;
            self.sum[j] += f64::from(v);
            self.max[j] = self.max[j].max(v);
        }
    }

    /// Number of latents.
    pub fn len(&self) -> usize {
        self.fires.len()
    }

    /// Is there no latent at all?
    pub fn is_empty(&self) -> bool {
        self.fires.is_empty()
    }

    /// Share of the rows on which latent `j` fires.
    pub fn density(&self, j: usize) -> f64 {
        self.fires[j] as f64 / self.rows as f64
    }

    /// Did latent `j` never fire?
    pub fn is_dead(&self, j: usize) -> bool {
        self.fires[j] == 0
    }

    /// Does latent `j` fire on more than [`DENSE_ABOVE`] of the rows?
    pub fn is_dense(&self, j: usize) -> bool {
        self.density(j) > DENSE_ABOVE
    }

    /// As a table: `latent` u32, `density` f64 (share of rows), `mean_active` f64 and `max` f32 (over the rows on which it fires; null
    /// for a dead latent), `dead` bool, `dense` bool, `max_cos` f32.
    ///
    /// # Errors
    /// Never in practice: the columns have one length.
    pub fn to_record_batch(&self) -> Result<RecordBatch> {
        let all = 0..self.len();
        let alive = |j: usize| !self.is_dead(j);
        let columns: Vec<(&str, DataType, bool, ArrayRef)> = vec![
            ("latent", DataType::UInt32, false, Arc::new(UInt32Array::from_iter_values(0..self.len() as u32))),
            ("density", DataType::Float64, false, Arc::new(Float64Array::from_iter_values(all.clone().map(|j| self.density(j))))),
            (
                "mean_active",
                DataType::Float64,
                true,
                Arc::new(Float64Array::from_iter(all.clone().map(|j| alive(j).then(|| self.sum[j] / self.fires[j] as f64)))),
            ),
            ("max", DataType::Float32, true, Arc::new(Float32Array::from_iter(all.clone().map(|j| alive(j).then(|| self.max[j]))))),
            ("dead", DataType::Boolean, false, Arc::new(BooleanArray::from_iter(all.clone().map(|j| Some(self.is_dead(j)))))),
            ("dense", DataType::Boolean, false, Arc::new(BooleanArray::from_iter(all.map(|j| Some(self.is_dense(j)))))),
            ("max_cos", DataType::Float32, false, Arc::new(Float32Array::from_iter_values(self.max_cos.iter().copied()))),
        ];
        let fields: Vec<Field> = columns.iter().map(|(name, dtype, nullable, _)| Field::new(*name, dtype.clone(), *nullable)).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|c| c.3).collect())
            .map_err(|e| Error::request(format!("the table of latents cannot be built: {e}"), "report this: its columns have one length"))
    }

    /// Writes `latents.parquet` into `dir`, which is made if it is not there. The number of rows behind the densities and the threshold
    /// of `dense` are in the file's key-value metadata (`rows`, `dense_above`).
    ///
    /// # Errors
    /// I/O errors.
    pub fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let path = dir.join(LATENTS_FILE);
        let table = self.to_record_batch()?;
        let entry = |key: &str, value: String| KeyValue::new(key.to_string(), value);
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_key_value_metadata(Some(vec![entry("rows", self.rows.to_string()), entry("dense_above", DENSE_ABOVE.to_string())]))
            .build();
        let failed = |e: parquet::errors::ParquetError| artefact::write_error(&path, &e);
        let mut temp = tempfile::NamedTempFile::new_in(dir).map_err(|e| Error::io("create a file in", dir, e))?;
        let mut writer = ArrowWriter::try_new(temp.as_file_mut(), table.schema(), Some(properties)).map_err(failed)?;
        writer.write(&table).map_err(failed)?;
        writer.close().map_err(failed)?;
        artefact::persist(temp, &path)
    }
}
