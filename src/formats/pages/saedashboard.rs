//! SAEDashboard's `batch-N.json`, `skipped_indexes.json` and `run_settings.json`.

use serde_json::{json, Value};

use super::{short, shown, Pages, PagesReport};
use crate::error::Result;
use crate::features::{Example, Feature};
use crate::formats::tensors::write_json;

/// log10 of the density below which latents are left out: only dead ones are.
const NEVER: i32 = -100;
/// Entries of an atom that are listed.
const ALIGNED: usize = 3;

pub(super) fn write(pages: &Pages<'_>) -> Result<PagesReport> {
    let names = pages.names;
    let width = pages.d.d_out();
    let atoms = pages.d.coder.w_dec.flatten_all()?.to_vec1::<f32>()?;
    let (mut files, mut n) = (0, 0);
    for batch in pages.batches() {
        let features: Vec<Value> =
            batch.iter().map(|f| feature(pages, f, &atoms[f.latent as usize * width..(f.latent as usize + 1) * width])).collect();
        n += features.len();
        let body = json!({
            "model_id": names.model_id,
            "layer": pages.layer,
            "sae_set": names.set,
            "sae_id_suffix": names.suffix,
            "features": features,
        });
        write_json(pages.out, &format!("batch-{files}.json"), &body, false)?;
        files += 1;
    }
    let skipped = json!({
        "model_id": names.model_id,
        "layer": pages.layer.to_string(),
        "sae_set": names.set,
        "log_sparsity": NEVER,
        "skipped_indexes": pages.dead(),
    });
    write_json(pages.out, "skipped_indexes.json", &skipped, false)?;
    let info = &pages.table.info;
    let settings = json!({
        "sae_set": names.set,
        "sae_path": info.dictionary.name,
        "model_id": names.model_id,
        "n_tokens_total": info.rows,
        "n_features_at_a_time": super::BATCH,
        "lapidary": { "features": info.config, "dictionary": info.dictionary, "host": info.host, "corpus": info.corpus },
    });
    write_json(pages.out, "run_settings.json", &settings, true)?;
    let notes = vec!["correlated neurons and features are left empty: their Pearson correlations are not measured".into()];
    Ok(pages.report(files, n, notes))
}

fn feature(pages: &Pages<'_>, f: &Feature, atom: &[f32]) -> Value {
    let rounded = |values: &[f32]| values.iter().map(|&v| short(f64::from(v))).collect::<Vec<f64>>();
    let mut order: Vec<usize> = (0..atom.len()).collect();
    order.sort_by(|&a, &b| atom[b].abs().total_cmp(&atom[a].abs()).then(a.cmp(&b)));
    order.truncate(ALIGNED);
    let sum: f64 = atom.iter().map(|v| f64::from(v.abs())).sum();
    let aligned = |of: &dyn Fn(f32) -> f64| order.iter().map(|&i| short(of(atom[i]))).collect::<Vec<f64>>();
    let (fires, fires_at) = bars(&f.histogram, 0.0, f64::from(f.histogram_width.unwrap_or(1.0)));
    let (low, high) = (f64::from(f.logit_min.unwrap_or(0.0)), f64::from(f.logit_max.unwrap_or(0.0)));
    let (logits, logits_at) = bars(&f.logit_histogram, low, (high - low) / f.logit_histogram.len().max(1) as f64);
    let context = pages.table.info.config.before + pages.table.info.config.after + 1;
    let activations: Vec<Value> = pages
        .examples(f)
        .into_iter()
        .map(|(e, band)| match band {
            None => activation(e, -1.0, f64::from(f.max.unwrap_or(0.0)), -1.0),
            Some(b) => activation(e, f64::from(b.low), f64::from(b.high), b.share),
        })
        .collect();
    json!({
        "feature_index": f.latent,
        "neuron_alignment_indices": order,
        "neuron_alignment_values": aligned(&f64::from),
        "neuron_alignment_l1": aligned(&|v| f64::from(v.abs()) / sum.max(f64::MIN_POSITIVE)),
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": [],
        "correlated_features_l1": [],
        "correlated_features_pearson": [],
        "neg_str": shown(&f.bottom_tokens),
        "neg_values": rounded(&f.bottom_logits),
        "pos_str": shown(&f.top_tokens),
        "pos_values": rounded(&f.top_logits),
        "frac_nonzero": f.density,
        "freq_hist_data_bar_values": fires_at,
        "freq_hist_data_bar_heights": fires,
        "logits_hist_data_bar_heights": logits,
        "logits_hist_data_bar_values": logits_at,
        "n_prompts_total": pages.table.info.rows.div_ceil(context as u64),
        "n_tokens_in_prompt": context,
        "dataset": pages.table.info.corpus["source"].as_str().unwrap_or_default(),
        "decoder_weights_dist": [],
        "activations": activations,
        "vector": rounded(atom),
    })
}

fn activation(e: &Example, low: f64, high: f64, share: f64) -> Value {
    json!({
        "bin_min": short(low),
        "bin_max": short(high),
        "bin_contains": share,
        "tokens": shown(&e.tokens),
        "values": e.values.iter().map(|&v| short(f64::from(v))).collect::<Vec<f64>>(),
        "qualifying_token_index": e.peak,
    })
}

/// Heights of bars, and where their middles stand.
fn bars(counts: &[u32], from: f64, width: f64) -> (Vec<u32>, Vec<f64>) {
    (counts.to_vec(), (0..counts.len()).map(|i| short(from + (i as f64 + 0.5) * width)).collect())
}
