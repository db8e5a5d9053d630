//! A delphi cache: which latents fired where in which token sequence, for EleutherAI's automatic explanations. Written, never read.
//!
//! `OUT/latents/<module>/{first}_{last}.safetensors`, each for a range of latents (`last` inclusive; together they cover all):
//! `locations` `[N, 3]` (sequence, position, latent - first), `activations` `[N]` f16, and `tokens` `[sequences, context]` i64 in each.
//! A sequence is `context` positions of a document, from a multiple of `context`; tokens that shards do not hold (masked rows) are filled in.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;
use serde_json::json;

use super::names::module_of;
use super::tensors::write_json;
use crate::artefact;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::shard::{Shards, Split};

/// Files that the latents are spread over.
const SPLITS: usize = 5;
/// Codes up to this are none, as in delphi.
const LEAST: f32 = 1e-5;

/// How a cache is cut.
#[derive(Debug, Clone, Copy)]
pub struct DelphiConfig {
    /// Tokens per sequence.
    pub context: usize,
    /// Rows at most.
    pub rows: u64,
    /// Stands for tokens whose rows were masked.
    pub fill_token: u32,
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct DelphiReport {
    /// Folder of the module.
    pub path: PathBuf,
    /// Sequences.
    pub sequences: usize,
    /// Rows that were encoded.
    pub rows: u64,
    /// Codes that were kept.
    pub codes: u64,
    /// Tokens that were filled in.
    pub filled: u64,
}

/// Writes the cache of `column` (held-out rows where there are some) into `out`.
///
/// # Errors
/// Shards without token ids, another width; codes that f16 cannot hold; a context of 0 or above 65535; I/O errors.
pub fn write_delphi(
    d: &Dictionary,
    shards: &Shards,
    column: &str,
    split: Option<Split>,
    out: &Path,
    config: &DelphiConfig,
    progress: &dyn Progress,
) -> Result<DelphiReport> {
    if config.context == 0 || config.context > usize::from(u16::MAX) {
        return Err(Error::config("context", format!("{} tokens are no sequence", config.context), "use 1 to 65535, such as 256"));
    }
    let f = d.d_sae();
    let splits = SPLITS.min(f);
    let bounds: Vec<usize> = (0..=splits).map(|i| i * f / splits).collect();
    let mut entries: Vec<Vec<(u32, u32, u32, f32)>> = vec![Vec::new(); splits];
    let (mut windows, mut tokens): (HashMap<(u64, u32), u32>, Vec<i64>) = Default::default();
    let (mut rows, mut codes_kept, mut known) = (0u64, 0u64, 0u64);
    progress.begin("delphi", Some(shards.rows(split).min(config.rows)), "rows");
    for batch in shards.scan(column, split)? {
        let batch = batch?;
        if batch.token_id.is_empty() {
            return Err(Error::Unsupported {
                by: "a delphi cache".into(),
                what: "rows without token ids".into(),
                instead: "harvest them from a host and its corpus".into(),
            });
        }
        let n = batch.n.min((config.rows - rows) as usize);
        let x = candle_core::Tensor::from_slice(&batch.x[..n * d.d_in()], (n, d.d_in()), d.device())?;
        let codes = d.encode(&x)?;
        for r in 0..n {
            let position = batch.position[r];
            let context = config.context as u32;
            let next = windows.len() as u32;
            let sequence = *windows.entry((batch.doc_id[r], position / context)).or_insert(next);
            if sequence == next {
                tokens.resize(tokens.len() + config.context, i64::from(config.fill_token));
            }
            let at = position % context;
            tokens[sequence as usize * config.context + at as usize] = i64::from(batch.token_id[r]);
            known += 1;
            let (indices, values) = codes.row(r);
            for (&j, &v) in indices.iter().zip(values) {
                if v.abs() <= LEAST {
                    continue;
                }
                if v.abs() > f32::from(f16::MAX) {
                    return Err(Error::Unsupported {
                        by: "a delphi cache".into(),
                        what: format!("the code {v} of latent {j}: it keeps f16"),
                        instead: "divide the encoder's rows and multiply the decoder's, or export another format".into(),
                    });
                }
                let part = bounds.partition_point(|b| *b <= j as usize) - 1;
                entries[part].push((sequence, at, j - bounds[part] as u32, v));
                codes_kept += 1;
            }
        }
        rows += n as u64;
        progress.advance(n as u64);
        if rows >= config.rows {
            break;
        }
        if progress.is_cancelled() {
            return Err(Error::Cancelled { doing: "writing a delphi cache" });
        }
    }
    progress.end();
    let sequences = windows.len();
    let module = module_of(&d.provenance.hook).unwrap_or_else(|| d.provenance.hook.clone());
    if module.is_empty() || module.contains(['/', '\\', '\0']) || module.starts_with('.') {
        return Err(Error::request(format!("`{module}` can be no folder"), "name the hook point that the dictionary reads with --hook"));
    }
    let dir = out.join("latents").join(module);
    fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
    let token_bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    for (part, entries) in entries.iter().enumerate() {
        let (first, last) = (bounds[part], bounds[part + 1] - 1);
        let wide = entries.iter().any(|e| e.0 > u32::from(u16::MAX) || e.2 > u32::from(u16::MAX));
        let numbers = entries.iter().flat_map(|e| [e.0, e.1, e.2]);
        let locations: Vec<u8> = match wide {
            true => numbers.flat_map(u32::to_le_bytes).collect(),
            false => numbers.flat_map(|n| (n as u16).to_le_bytes()).collect(),
        };
        let activations: Vec<u8> = entries.iter().flat_map(|e| f16::from_f32(e.3).to_le_bytes()).collect();
        let n = entries.len();
        let name = format!("{first}_{last}.safetensors");
        let bad = |e: safetensors::SafeTensorError| {
            Error::format("delphi cache", dir.join(&name), e.to_string(), "report this: fresh tensors must serialise")
        };
        let views = [
            ("activations", TensorView::new(Dtype::F16, vec![n], &activations).map_err(bad)?),
            ("locations", TensorView::new(if wide { Dtype::U32 } else { Dtype::U16 }, vec![n, 3], &locations).map_err(bad)?),
            ("tokens", TensorView::new(Dtype::I64, vec![sequences, config.context], &token_bytes).map_err(bad)?),
        ];
        artefact::write(&dir, &name, &safetensors::serialize(views, None).map_err(bad)?)?;
    }
    let corpus = &shards.manifest().corpus;
    let about = json!({
        "dataset_repo": corpus["source"], "dataset_split": split.map_or("all", Split::name), "dataset_name": "", "dataset_column": "text",
        "batch_size": 1, "cache_ctx_len": config.context, "n_tokens": sequences * config.context, "n_splits": splits,
        "model_name": d.provenance.host["hub_id"].as_str().or(d.provenance.host["name"].as_str()),
    });
    write_json(&dir, "config.json", &about, true)?;
    Ok(DelphiReport { path: dir, sequences, rows, codes: codes_kept, filled: (sequences * config.context) as u64 - known })
}
