//! Bodies of Neuronpedia's `POST /api/feature/upload-batch`, one file each.

use serde_json::{json, Value};

use super::{short, shown, Pages, PagesReport};
use crate::error::Result;
use crate::features::Feature;
use crate::formats::tensors::write_json;

/// Most characters of an explanation, most tokens of a list.
const EXPLANATION: usize = 512;
const LOGITS: usize = 20;

pub(super) fn write(pages: &Pages<'_>) -> Result<PagesReport> {
    let source = format!("{}-{}", pages.layer, pages.names.set);
    let (mut files, mut n) = (0, 0);
    for batch in pages.batches() {
        let features: Vec<Value> = batch.iter().map(|f| feature(pages, f)).collect();
        n += features.len();
        let body = json!({ "modelId": pages.names.model_id, "source": source, "features": features });
        write_json(pages.out, &format!("upload-batch-{files}.json"), &body, false)?;
        files += 1;
    }
    let notes = vec![
        format!(
            "create model `{}` and source set `{}` first (POST /api/model/new, /api/source-set/new)",
            pages.names.model_id, pages.names.set
        ),
        "then send each file: curl -H \"X-Api-Key: $KEY\" -H 'content-type: application/json' -d @upload-batch-0.json \
         https://neuronpedia.org/api/feature/upload-batch"
            .into(),
    ];
    Ok(pages.report(files, n, notes))
}

fn feature(pages: &Pages<'_>, f: &Feature) -> Value {
    let logits = |tokens: &[String], values: &[f32]| -> Vec<Value> {
        let pairs = shown(tokens).into_iter().zip(values.iter()).take(LOGITS);
        pairs.map(|(token, &value)| json!({ "token": token, "value": short(f64::from(value)) })).collect()
    };
    let activations: Vec<Value> = pages
        .examples(f)
        .into_iter()
        .map(|(e, band)| {
            let values: Vec<f64> = e.values.iter().map(|&v| short(f64::from(v))).collect();
            let mut activation = json!({ "tokens": shown(&e.tokens), "values": values });
            if let Some(band) = band {
                activation["quantileMin"] = short(f64::from(band.low)).into();
                activation["quantileMax"] = short(f64::from(band.high)).into();
                activation["quantileFraction"] = band.share.into();
            }
            activation
        })
        .collect();
    // Tokens at the peaks are on the page already; what a person, a model or the language's grammar says is not.
    let explanations: Vec<Value> = match (&f.label, f.label_source.as_deref()) {
        (Some(label), Some(source @ ("file" | "concept"))) if !label.is_empty() => {
            let text: String = label.chars().take(EXPLANATION).collect();
            vec![json!({ "text": text, "methodName": format!("lapidary-{source}"), "modelName": "none" })]
        }
        _ => Vec::new(),
    };
    json!({
        "index": f.latent,
        "density": f.density,
        "topLogits": logits(&f.top_tokens, &f.top_logits),
        "bottomLogits": logits(&f.bottom_tokens, &f.bottom_logits),
        "explanations": explanations,
        "activations": activations,
    })
}
