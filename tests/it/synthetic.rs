//! Feature tables that no run made: any size, quick to write, and with the token strings that a page must survive.

use lapidary::features::{Example, Examples, Feature, FeatureTable, FeaturesConfig, FeaturesInfo, Group, Source, KIND, VERSION};
use lapidary::rng::Rng;

/// What a corpus of strangers may hold; the page must show it and run none of it.
pub const HOSTILE: &[&str] = &[
    "<script>window.pwned=1;alert(1)</script>",
    "</script><script>window.pwned=2</script>",
    "<img src=x onerror=\"window.pwned=3;alert(3)\">",
    "<!--<script>",
    "]]>",
    "\" onmouseover=\"window.pwned=4\" x=\"",
    "javascript:alert(5)",
    "&lt;b&gt;&amp;",
    "\u{202e}desrever\u{202c}",
    "\u{2067}שלום עולם",
    "مرحبا",
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈🇫🇷",
    "a\0b",
    "\n",
    "\r\n",
    "\t",
    "\u{2028}\u{2029}",
    "\u{feff}\u{200b}",
    "e\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}",
    "__proto__",
    "constructor",
    "\u{fffd}",
    "日本語のトークン",
    "\\u003c\\\\\"'",
    "{{7*7}}${7*7}`",
    "",
];

const WORDS: &[&str] = &[
    " the", " a", " little", " girl", " boy", " dog", " cat", " ran", " saw", " big", " red", " ball", ".", ",", "\n", " She", " He",
    " was", " happy", " sad", " to", " and", " they", " mom", " park", " play", "ing", "ed", " it", "!",
];

const CLASSES: &[&str] = &["lexical", "hierarchical", "contextual"];

/// `n` latents of width 64, the same for the same seed; `hostile` mixes in [`HOSTILE`] and a token of 10,000 characters.
pub fn table(n: usize, seed: u64, hostile: bool) -> (FeatureTable, Examples) {
    let mut words: Vec<String> = WORDS.iter().map(|w| w.to_string()).collect();
    if hostile {
        words.extend(HOSTILE.iter().map(|w| w.to_string()));
        words.push("long".repeat(2500));
    } else {
        words.extend((0..2000).map(|i| format!(" word{i}")));
    }
    let config = FeaturesConfig::default();
    let rows = 1_000_000u64;
    let mut features = Vec::new();
    let mut examples = Vec::new();
    for latent in 0..n as u32 {
        let mut rng = Rng::stream(seed, "synthetic", u64::from(latent));
        let feature = feature(latent, n, rows, &words, hostile, &mut rng);
        if !feature.dead {
            contexts(&feature, &config, &words, &mut rng, &mut examples);
        }
        features.push(feature);
    }
    let name = if hostile { "<b>hostile</b>" } else { "synthetic" };
    let info = FeaturesInfo {
        kind: KIND.into(),
        version: VERSION,
        lapidary: "0.1.0".into(),
        dictionary: Source {
            name: name.into(),
            hook: "blocks.2.hook_resid_post".into(),
            made_by: "topk".into(),
            d_in: 64,
            d_sae: n,
            activation: "TopK { k: 32 }".into(),
        },
        host: serde_json::json!({"name": name, "weights_sha256": "407a7c581bdd66972383ce9ad24857713fb98786d06ea564a2fe9b34ebe77dfd"}),
        corpus: serde_json::json!({"kind": "text", "files": [{"name": if hostile { "</script><script>window.pwned=6</script>" } else { "a.txt" }}]}),
        split: "train".into(),
        rows,
        l0: 32.0,
        coactive_rows: rows,
        concept_rows: 60_000,
        quantiles: vec![0.05, 0.25, 0.5, 0.75, 0.95],
        config,
    };
    (FeatureTable { info, features }, Examples(examples))
}

fn feature(latent: u32, n: usize, rows: u64, words: &[String], hostile: bool, rng: &mut Rng) -> Feature {
    let pick = |rng: &mut Rng| rng.below(words.len() as u64) as usize;
    let density = if rng.below(25) == 0 { 0.0 } else { 10f64.powf(-4.5 + 3.8 * rng.uniform()) };
    let dead = density == 0.0;
    let max = 2.0 + 8.0 * rng.uniform() as f32;
    let with_concept = !dead && rng.below(3) == 0;
    let label = pick(rng);
    let (top, bottom): (Vec<usize>, Vec<usize>) = (0..10).map(|_| (pick(rng), pick(rng))).unzip();
    let text = |places: &[usize]| places.iter().map(|&i| words[i].clone()).collect::<Vec<_>>();
    let ids = |places: &[usize]| places.iter().map(|&i| i as u32).collect::<Vec<_>>();
    let others: Vec<u32> = (0..10).map(|_| rng.below(n as u64) as u32).collect();
    let falling = |from: f32| (0..10).map(|i| from * 0.85f32.powi(i)).collect::<Vec<f32>>();
    let angle = rng.uniform() * std::f64::consts::TAU;
    let (cluster, radius) = (f64::from(latent % 7), 0.13 * rng.uniform().sqrt());
    Feature {
        latent,
        fires: (density * rows as f64) as u64,
        density,
        max: (!dead).then_some(max),
        mean_active: (!dead).then_some(f64::from(max) * 0.4),
        quantiles: if dead { vec![] } else { [0.1, 0.2, 0.35, 0.5, 0.8].iter().map(|q| q * max).collect() },
        histogram: if dead {
            vec![]
        } else {
            (0..40).map(|i| (density * 1e5 * (-f64::from(i) / 8.0).exp()) as u32 + u32::from(i < 38)).collect()
        },
        histogram_width: (!dead).then_some(0.25),
        dead,
        dense: density > 0.1,
        enc_dec_cos: Some(0.5 + 0.5 * rng.uniform() as f32),
        top_tokens: text(&top),
        top_token_ids: ids(&top),
        top_logits: falling(2.5),
        bottom_tokens: text(&bottom),
        bottom_token_ids: ids(&bottom),
        bottom_logits: falling(-1.75),
        logit_histogram: (0..40).map(|i| (400.0 * (-((f64::from(i) - 18.0) / 5.0).powi(2)).exp()) as u32).collect(),
        logit_min: Some(-1.75),
        logit_max: Some(2.5),
        nearest: others.clone(),
        nearest_cos: falling(0.8),
        coactive: if dead { vec![] } else { others.iter().rev().copied().collect() },
        coactive_jaccard: if dead { vec![] } else { falling(0.5) },
        coactive_pmi: if dead { vec![] } else { falling(4.0) },
        concept: with_concept.then(|| format!("concept {}", rng.below(40))),
        concept_class: with_concept.then(|| CLASSES[rng.below(3) as usize].into()),
        concept_f1: with_concept.then(|| rng.uniform()),
        concept_precision: with_concept.then_some(0.8),
        concept_recall: with_concept.then_some(0.7),
        label: (!dead && (hostile || rng.below(4) != 0)).then(|| words[label].trim_matches(' ').to_string()),
        label_source: (!dead).then(|| "tokens".into()),
        atlas_x: (0.5 + 0.35 * (cluster * 0.9).cos() + radius * angle.cos()) as f32,
        atlas_y: (0.5 + 0.35 * (cluster * 0.9).sin() + radius * angle.sin()) as f32,
    }
}

fn contexts(feature: &Feature, config: &FeaturesConfig, words: &[String], rng: &mut Rng, out: &mut Vec<Example>) {
    let max = feature.max.unwrap_or(1.0);
    let bands = (0..config.bands).flat_map(|b| (0..config.per_band).map(move |r| (Group::Quantile, r, Some(b as u32))));
    let groups = (0..config.top).map(|r| (Group::Top, r, None)).chain(bands).chain((0..config.random).map(|r| (Group::Random, r, None)));
    for (group, rank, quantile) in groups {
        let n = config.before + config.after + 1;
        let peak = config.before;
        let value = match (group, quantile) {
            (Group::Top, _) => max * 0.97f32.powi(rank as i32),
            (_, Some(band)) => max * (band as f32 + 0.5) / config.bands as f32,
            _ => 0.0,
        };
        let places: Vec<usize> = (0..n).map(|_| rng.below(words.len() as u64) as usize).collect();
        let mut values: Vec<f32> =
            (0..n).map(|_| if value > 0.0 && rng.below(8) == 0 { value * rng.uniform() as f32 } else { 0.0 }).collect();
        values[peak] = value;
        let start = rng.below(300) as u32;
        // Here and there a masked row is missing.
        let gap = u32::from(rng.below(5) == 0);
        let positions: Vec<u32> = (0..n as u32).map(|i| start + i + if i > 7 { gap } else { 0 }).collect();
        out.push(Example {
            latent: feature.latent,
            group: group.name().into(),
            rank: rank as u32,
            quantile,
            doc_id: rng.below(4000),
            position: positions[peak],
            value,
            peak: peak as u32,
            tokens: places.iter().map(|&i| words[i].clone()).collect(),
            token_ids: places.iter().map(|&i| i as u32).collect(),
            positions,
            values,
        });
    }
}
