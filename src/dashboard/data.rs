//! What the page knows: an index of all latents, which it holds, and chunks with the rest, which it reads when a latent is opened.
//!
//! Field names are short where they occur once per latent. `assets/data.js` is the other side.

use std::collections::HashMap;

use serde::Serialize;

use super::json::{digits, digits_width, maybe, nums, Num};
use super::vocabulary::{cut, Vocabulary};
use super::{overview, Extra};
use crate::features::{Example, Examples, Feature, FeatureTable, Group};

/// Latents per chunk.
pub(super) const CHUNK: usize = 64;
/// Distinct tokens at the peaks of the top examples that the search finds a latent by.
const PEAKS: usize = 6;
/// Characters before and after the peak that the list shows.
const SNIPPET: (usize, usize) = (32, 24);
/// Output tokens that the search finds a latent by.
const RAISED: usize = 5;

/// One entry per latent in each list.
#[derive(Debug, Serialize)]
pub(super) struct Index {
    title: String,
    n: usize,
    chunk: usize,
    /// Are the chunks files of their own?
    files: bool,
    density: Vec<Num>,
    fires: Vec<u64>,
    max: Vec<Num>,
    mean: Vec<Num>,
    cos: Vec<Num>,
    f1: Vec<Num>,
    /// 1 dead, 2 dense.
    flags: Vec<u8>,
    labels: Vec<Option<String>>,
    sources: Vec<i32>,
    source_names: Vec<String>,
    concepts: Vec<i32>,
    concept_names: Vec<String>,
    classes: Vec<i32>,
    class_names: Vec<String>,
    vocabulary: Vocabulary,
    peaks: Vec<Vec<usize>>,
    raised: Vec<Vec<usize>>,
    snippets: Vec<Option<[String; 3]>>,
    x: Vec<Num>,
    y: Vec<Num>,
    quantiles: Vec<Num>,
    rows: u64,
    coactive_rows: u64,
    concept_rows: u64,
    overview: overview::Overview,
}

/// Names by number, in the order in which they are met; -1 for none.
#[derive(Default)]
struct Names(Vec<String>, HashMap<String, i32>);

impl Names {
    fn of(&mut self, name: Option<&String>) -> i32 {
        let Some(name) = name else { return -1 };
        if let Some(&i) = self.1.get(name) {
            return i;
        }
        let i = self.0.len() as i32;
        self.0.push(cut(name));
        self.1.insert(name.clone(), i);
        i
    }
}

impl Index {
    pub fn new(table: &FeatureTable, examples: &Examples, extra: &Extra, title: String, files: bool) -> Self {
        let all = &table.features;
        let mut vocabulary = Vocabulary::default();
        let (mut sources, mut concepts, mut classes) = (Names::default(), Names::default(), Names::default());
        let mut index = Self {
            title,
            n: all.len(),
            chunk: CHUNK,
            files,
            density: all.iter().map(|f| Num(f.density)).collect(),
            fires: all.iter().map(|f| f.fires).collect(),
            max: all.iter().map(|f| maybe(f.max)).collect(),
            mean: all.iter().map(|f| maybe(f.mean_active)).collect(),
            cos: all.iter().map(|f| maybe(f.enc_dec_cos)).collect(),
            f1: all.iter().map(|f| maybe(f.concept_f1)).collect(),
            flags: all.iter().map(|f| u8::from(f.dead) + 2 * u8::from(f.dense)).collect(),
            labels: all.iter().map(|f| f.label.as_deref().map(cut)).collect(),
            sources: all.iter().map(|f| sources.of(f.label_source.as_ref())).collect(),
            source_names: Vec::new(),
            concepts: all.iter().map(|f| concepts.of(f.concept.as_ref())).collect(),
            concept_names: Vec::new(),
            classes: all.iter().map(|f| classes.of(f.concept_class.as_ref())).collect(),
            class_names: Vec::new(),
            peaks: all.iter().map(|f| peaks(examples.of(f.latent), &mut vocabulary)).collect(),
            raised: all.iter().map(|f| tokens(&f.top_tokens, &f.top_token_ids, RAISED, &mut vocabulary)).collect(),
            vocabulary: Vocabulary::default(),
            snippets: all.iter().map(|f| snippet(examples.of(f.latent))).collect(),
            x: all.iter().map(|f| f.atlas_x.into()).collect(),
            y: all.iter().map(|f| f.atlas_y.into()).collect(),
            quantiles: nums(&table.info.quantiles),
            rows: table.info.rows,
            coactive_rows: table.info.coactive_rows,
            concept_rows: table.info.concept_rows,
            overview: overview::Overview::new(table, extra),
        };
        index.vocabulary = vocabulary;
        (index.source_names, index.concept_names, index.class_names) = (sources.0, concepts.0, classes.0);
        index
    }
}

/// Distinct tokens at the peaks of the top examples, the largest values first.
fn peaks(examples: &[Example], vocabulary: &mut Vocabulary) -> Vec<usize> {
    let mut found = Vec::new();
    for e in examples.iter().filter(|e| e.group == Group::Top.name()) {
        let at = e.peak as usize;
        let Some(text) = e.tokens.get(at).filter(|t| !t.is_empty()) else { continue };
        let place = vocabulary.place(text, e.token_ids.get(at).copied());
        if !found.contains(&place) {
            found.push(place);
        }
        if found.len() == PEAKS {
            break;
        }
    }
    found
}

/// The strongest context, around its peak: text before, the peak's token, text after.
fn snippet(examples: &[Example]) -> Option<[String; 3]> {
    let e = examples.iter().find(|e| e.group == Group::Top.name())?;
    let at = (e.peak as usize).min(e.tokens.len());
    let before = e.tokens[..at].concat();
    let after = e.tokens.get(at + 1..).unwrap_or_default().concat();
    let start = before.char_indices().rev().nth(SNIPPET.0 - 1).map_or(0, |(i, _)| i);
    let start_of = |text: &str, n: usize| text.chars().take(n).collect::<String>();
    let peak = start_of(e.tokens.get(at)?, 2 * SNIPPET.1);
    (!peak.is_empty()).then(|| [before[start..].to_string(), peak, start_of(&after, SNIPPET.1)])
}

fn tokens(texts: &[String], ids: &[u32], most: usize, vocabulary: &mut Vocabulary) -> Vec<usize> {
    texts.iter().take(most).enumerate().map(|(i, text)| vocabulary.place(text, ids.get(i).copied())).collect()
}

/// The latents of a chunk, with a vocabulary of their own.
#[derive(Debug, Serialize)]
pub(super) struct Chunk {
    vocabulary: Vocabulary,
    /// Characters per token in [`Context::t`].
    width: usize,
    latents: Vec<Latent>,
}

#[derive(Debug, Serialize)]
struct Latent {
    quantiles: Vec<Num>,
    histogram: Vec<u32>,
    width: Num,
    top: Vec<(usize, Num)>,
    bottom: Vec<(usize, Num)>,
    logits: Vec<u32>,
    low: Num,
    high: Num,
    nearest: Vec<(u32, Num)>,
    coactive: Vec<(u32, Num, Num)>,
    precision: Num,
    recall: Num,
    contexts: Vec<Context>,
}

#[derive(Debug, Serialize)]
struct Context {
    /// First letter of the group.
    g: char,
    /// Band of a quantile.
    #[serde(skip_serializing_if = "Option::is_none")]
    b: Option<u32>,
    /// Document.
    d: u64,
    /// Index of the row that was chosen.
    k: u32,
    /// Position of the first row, or of each where rows are missing between.
    p: Positions,
    /// Places in the vocabulary.
    t: String,
    /// Index and value of each active row.
    v: Vec<Num>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Positions {
    From(u32),
    Each(Vec<u32>),
}

impl Chunk {
    /// Latents `i * CHUNK ..` of the table.
    pub fn new(i: usize, table: &FeatureTable, examples: &Examples) -> Self {
        let from = i * CHUNK;
        let to = (from + CHUNK).min(table.features.len());
        let mut vocabulary = Vocabulary::default();
        let features = &table.features[from..to];
        let places: Vec<Vec<Vec<usize>>> =
            features.iter().map(|f| examples.of(f.latent).iter().map(|e| row_tokens(e, &mut vocabulary)).collect()).collect();
        let sides: Vec<[Vec<(usize, Num)>; 2]> = features
            .iter()
            .map(|f| {
                let mut side = |texts: &[String], ids: &[u32], logits: &[f32]| {
                    tokens(texts, ids, texts.len(), &mut vocabulary).into_iter().zip(nums(logits)).collect()
                };
                [side(&f.top_tokens, &f.top_token_ids, &f.top_logits), side(&f.bottom_tokens, &f.bottom_token_ids, &f.bottom_logits)]
            })
            .collect();
        let width = digits_width(vocabulary.len());
        let latents = features
            .iter()
            .zip(places)
            .zip(sides)
            .map(|((f, places), sides)| {
                let contexts = examples.of(f.latent).iter().zip(places).map(|(e, t)| Context::new(e, &t, width)).collect();
                Latent::new(f, sides, contexts)
            })
            .collect();
        Self { vocabulary, width, latents }
    }
}

/// A row without a token (vectors made elsewhere) has an empty one.
fn row_tokens(e: &Example, vocabulary: &mut Vocabulary) -> Vec<usize> {
    (0..e.values.len()).map(|i| vocabulary.place(e.tokens.get(i).map_or("", String::as_str), e.token_ids.get(i).copied())).collect()
}

impl Latent {
    fn new(f: &Feature, [top, bottom]: [Vec<(usize, Num)>; 2], contexts: Vec<Context>) -> Self {
        Self {
            quantiles: nums(&f.quantiles),
            histogram: f.histogram.clone(),
            width: maybe(f.histogram_width),
            top,
            bottom,
            logits: f.logit_histogram.clone(),
            low: maybe(f.logit_min),
            high: maybe(f.logit_max),
            nearest: f.nearest.iter().copied().zip(nums(&f.nearest_cos)).collect(),
            coactive: f
                .coactive
                .iter()
                .zip(&f.coactive_jaccard)
                .zip(&f.coactive_pmi)
                .map(|((&l, &j), &p)| (l, j.into(), p.into()))
                .collect(),
            precision: maybe(f.concept_precision),
            recall: maybe(f.concept_recall),
            contexts,
        }
    }
}

impl Context {
    fn new(e: &Example, places: &[usize], width: usize) -> Self {
        let together = e.positions.windows(2).all(|p| p[0].checked_add(1) == Some(p[1]));
        let p = match e.positions.first() {
            Some(&first) if together => Positions::From(first),
            _ => Positions::Each(e.positions.clone()),
        };
        let active = e.values.iter().enumerate().filter(|(_, &v)| v != 0.0);
        Self {
            g: e.group.chars().next().unwrap_or('r'),
            b: e.quantile,
            d: e.doc_id,
            k: e.peak,
            p,
            t: digits(places, width),
            v: active.flat_map(|(i, &v)| [Num(i as f64), v.into()]).collect(),
        }
    }
}
