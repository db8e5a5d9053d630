//! A row per latent: `latents.parquet`, `latents.npz` or `latents.csv`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use serde_json::json;

use super::Pick;
use crate::artefact;
use crate::dictionary::{Activation, Dictionary};
use crate::error::{Error, Result};
use crate::formats::container::{self, Array};

/// Columns that both kinds have.
struct Columns {
    latents: Vec<u32>,
    scales: Vec<f64>,
    norms: Vec<f32>,
    b_enc: Vec<f32>,
    thresholds: Option<Vec<f32>>,
    w_dec: Vec<f32>,
    width: usize,
}

fn columns(d: &Dictionary, picks: &[Pick]) -> Result<Columns> {
    let all: Vec<Pick> = (0..d.d_sae()).map(|latent| Pick { latent, scale: 1.0 }).collect();
    let picks = if picks.is_empty() { &all } else { picks };
    let width = d.d_out();
    let (norms, b_enc) = (d.atom_norms()?, d.coder.b_enc.to_vec1::<f32>()?);
    let atoms = d.coder.w_dec.flatten_all()?.to_vec1::<f32>()?;
    let thresholds: Option<Vec<f32>> = match &d.activation {
        Activation::Threshold { threshold } => Some(vec![*threshold; d.d_sae()]),
        _ => d.thresholds.as_ref().map(|t| t.to_vec1()).transpose()?,
    };
    let scaled =
        |p: &Pick| atoms[p.latent * width..(p.latent + 1) * width].iter().map(|v| (p.scale * f64::from(*v)) as f32).collect::<Vec<_>>();
    Ok(Columns {
        latents: picks.iter().map(|p| p.latent as u32).collect(),
        scales: picks.iter().map(|p| p.scale).collect(),
        norms: picks.iter().map(|p| norms[p.latent]).collect(),
        b_enc: picks.iter().map(|p| b_enc[p.latent]).collect(),
        thresholds: thresholds.map(|t| picks.iter().map(|p| t[p.latent]).collect()),
        w_dec: picks.iter().flat_map(scaled).collect(),
        width,
    })
}

fn notes(c: &Columns) -> Vec<String> {
    let scaled = c.scales.iter().any(|s| *s != 1.0);
    scaled.then(|| "w_dec is multiplied by the factors asked for".to_string()).into_iter().collect()
}

/// Encoder rows of the latents, one after the other.
fn encoder_rows(d: &Dictionary, latents: &[u32]) -> Result<Vec<f32>> {
    let (rows, width) = (d.coder.w_enc.flatten_all()?.to_vec1::<f32>()?, d.d_in());
    Ok(latents.iter().flat_map(|&l| rows[l as usize * width..(l as usize + 1) * width].iter().copied()).collect())
}

pub(super) fn parquet(d: &Dictionary, picks: &[Pick], out: &Path) -> Result<(PathBuf, Vec<String>)> {
    const FILE: &str = "latents.parquet";
    let c = columns(d, picks)?;
    let path = out.join(FILE);
    let bad = |e: &(dyn std::error::Error + 'static)| artefact::write_error(&path, e);
    let d_in = d.d_in();
    let w_enc = encoder_rows(d, &c.latents)?;
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let list = |values: Vec<f32>, width: usize| -> Result<ArrayRef> {
        let array =
            FixedSizeListArray::try_new(item.clone(), width as i32, Arc::new(Float32Array::from(values)), None).map_err(|e| bad(&e))?;
        Ok(Arc::new(array))
    };
    let float = |values: &[f32]| Arc::new(Float32Array::from(values.to_vec())) as ArrayRef;
    let mut named: Vec<(&str, ArrayRef)> =
        vec![("latent", Arc::new(UInt32Array::from(c.latents.clone()))), ("norm", float(&c.norms)), ("b_enc", float(&c.b_enc))];
    named.extend(c.thresholds.as_ref().map(|t| ("threshold", float(t))));
    named.push(("w_enc", list(w_enc, d_in)?));
    named.push(("w_dec", list(c.w_dec.clone(), c.width)?));
    let fields: Vec<Field> = named.iter().map(|(name, a)| Field::new(*name, a.data_type().clone(), false)).collect();
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), named.into_iter().map(|(_, a)| a).collect()).map_err(|e| bad(&e))?;
    let about = json!({
        "d_in": d_in, "d_out": c.width, "d_sae": d.d_sae(), "activation": d.activation, "centred": d.centred,
        "b_dec": d.coder.b_dec.to_vec1::<f32>()?, "hook": d.provenance.hook, "host": d.provenance.host["name"],
    });
    let properties = WriterProperties::builder()
        .set_created_by(format!("lapidary {}", env!("CARGO_PKG_VERSION")))
        .set_compression(parquet::basic::Compression::SNAPPY)
        .set_key_value_metadata(Some(vec![KeyValue::new("lapidary.dictionary".to_string(), about.to_string())]))
        .build();
    let temp = tempfile::NamedTempFile::new_in(out).map_err(|e| Error::io("create a file in", out, e))?;
    let mut writer = ArrowWriter::try_new(temp, schema, Some(properties)).map_err(|e| bad(&e))?;
    writer.write(&batch).map_err(|e| bad(&e))?;
    artefact::persist(writer.into_inner().map_err(|e| bad(&e))?, &path)?;
    let mut told = notes(&c);
    told.push("b_dec, the activation and the hook point are in the file's metadata, under `lapidary.dictionary`".into());
    Ok((path, told))
}

pub(super) fn npz(d: &Dictionary, picks: &[Pick], out: &Path) -> Result<(PathBuf, Vec<String>)> {
    const FILE: &str = "latents.npz";
    let c = columns(d, picks)?;
    let n = c.latents.len();
    let b_dec = d.coder.b_dec.to_vec1::<f32>()?;
    let latents: Vec<i64> = c.latents.iter().map(|&l| i64::from(l)).collect();
    let mut arrays = vec![
        ("latent", Array::from_i64(vec![n], &latents)?),
        ("norm", Array::from_f32(vec![n], &c.norms)?),
        ("b_enc", Array::from_f32(vec![n], &c.b_enc)?),
        ("w_enc", Array::from_f32(vec![n, d.d_in()], &encoder_rows(d, &c.latents)?)?),
        ("w_dec", Array::from_f32(vec![n, c.width], &c.w_dec)?),
        ("b_dec", Array::from_f32(vec![c.width], &b_dec)?),
    ];
    if let Some(thresholds) = &c.thresholds {
        arrays.push(("threshold", Array::from_f32(vec![n], thresholds)?));
    }
    let path = out.join(FILE);
    container::npz::save(&path, &arrays)?;
    let mut told = notes(&c);
    told.push("the activation and the hook point are not in it".into());
    Ok((path, told))
}

pub(super) fn csv(d: &Dictionary, picks: &[Pick], out: &Path) -> Result<(PathBuf, Vec<String>)> {
    const FILE: &str = "latents.csv";
    let c = columns(d, picks)?;
    let mut text = String::from("latent,norm,b_enc,threshold");
    (0..c.width).for_each(|i| {
        let _ = write!(text, ",w_dec_{i}");
    });
    text.push('\n');
    for (r, latent) in c.latents.iter().enumerate() {
        // Rust prints the shortest decimal that reads back as the same f32.
        let threshold = c.thresholds.as_ref().map(|t| t[r].to_string()).unwrap_or_default();
        let _ = write!(text, "{latent},{},{},{threshold}", c.norms[r], c.b_enc[r]);
        for v in &c.w_dec[r * c.width..(r + 1) * c.width] {
            let _ = write!(text, ",{v}");
        }
        text.push('\n');
    }
    artefact::write(out, FILE, text.as_bytes())?;
    let mut told = notes(&c);
    told.push("the encoder and b_dec are not in it: use parquet, or a dialect, to encode".into());
    Ok((out.join(FILE), told))
}
