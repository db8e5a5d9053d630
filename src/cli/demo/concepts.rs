//! The demo's concept recovery: labels of the held-out rows from the generator, features from the dictionary and from each control.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use candle_core::{Device, Tensor};
use lapidary::corpus::fable;
use lapidary::score::concepts::{
    best_token, latents, neurons, probe, word_alone, Known, ProbeOptions, Recovery, Task, CONCEPTS_FILE, MIN_POSITIVES, RECOVERED,
};
use lapidary::shard::{Shards, Split};
use lapidary::{artefact, Codes, Dictionary, Progress, Result};
use serde::Serialize;

use crate::cli::output::Output;

/// Held-out rows that are labelled, at most.
const ROWS: usize = 60_000;

/// Where the representations lie.
pub struct Sources<'a> {
    pub shards: &'a Path,
    pub hook: &'a str,
    pub mlp: &'a str,
    pub embed: &'a str,
    pub dictionary: &'a Path,
    pub on_embed: &'a Path,
    pub random_shards: &'a Path,
    pub on_random: &'a Path,
}

/// Recovery under each representation, and what the two splits were.
#[derive(Debug, Serialize)]
pub struct Table {
    /// Rows that chose latent and threshold.
    pub selection_rows: usize,
    /// Rows that were scored.
    pub test_rows: usize,
    /// By representation; the dictionary first.
    pub representations: Vec<Recovery>,
    /// Contextual concepts with probe F1 above 0.9.
    pub contextual_in_reach: usize,
    /// Those of them where the dictionary's best latent is above 0.7 and above every control.
    pub contextual_won: Vec<String>,
}

impl Table {
    /// Writes `concepts.json`.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let mut json = serde_json::to_vec_pretty(self).expect("plain data with string keys");
        json.push(b'\n');
        artefact::write(dir, CONCEPTS_FILE, &json)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Concept recovery: latent and threshold chosen on {} rows, F1 on {} other rows (mean over concepts; in brackets: how many above {RECOVERED})",
            self.selection_rows, self.test_rows
        )?;
        let Some(first) = self.representations.first() else { return Ok(()) };
        write!(f, "{:<34}", "")?;
        for class in &first.classes {
            write!(f, " {:>20}", format!("{} ({})", class.class, class.concepts))?;
        }
        writeln!(f)?;
        for r in &self.representations {
            write!(f, "{:<34}", r.features)?;
            for class in &r.classes {
                write!(f, " {:>20}", format!("{:.3} [{}]", class.mean_f1, class.recovered))?;
            }
            writeln!(f)?;
        }
        write!(
            f,
            "contextual concepts with probe F1 above 0.9: {}; of these the dictionary has a latent above {RECOVERED} and above every control for {}: {}",
            self.contextual_in_reach,
            self.contextual_won.len(),
            self.contextual_won.join(", ")
        )
    }
}

/// Rows of one column, `[n, width]`, with their places.
struct Column {
    width: usize,
    x: Vec<f32>,
    doc_id: Vec<u64>,
    position: Vec<u32>,
    token_id: Vec<u32>,
}

fn read(shards: &Shards, column: &str) -> Result<Column> {
    let mut all = Column { width: shards.width(column)?, x: Vec::new(), doc_id: Vec::new(), position: Vec::new(), token_id: Vec::new() };
    for batch in shards.scan(column, Some(Split::HeldOut))? {
        let batch = batch?;
        let n = batch.n.min(ROWS - all.doc_id.len());
        all.x.extend_from_slice(&batch.x[..n * all.width]);
        all.doc_id.extend_from_slice(&batch.doc_id[..n]);
        all.position.extend_from_slice(&batch.position[..n]);
        all.token_id.extend_from_slice(&batch.token_id[..n]);
        if all.doc_id.len() == ROWS {
            break;
        }
    }
    Ok(all)
}

fn codes(dictionary: &Path, column: &Column) -> Result<Codes> {
    let dictionary = Dictionary::load(dictionary)?;
    dictionary.encode(&Tensor::from_slice(&column.x, (column.doc_id.len(), column.width), &Device::Cpu)?)
}

/// Labels of rows, from the generator that made the corpus.
fn labels(column: &Column, seed: u64) -> Vec<u128> {
    let mut stories: HashMap<u64, Vec<fable::Labels>> = HashMap::new();
    let at = |(&doc, &position): (&u64, &u32)| stories.entry(doc).or_insert_with(|| fable::story(seed, doc).labels)[position as usize];
    column.doc_id.iter().zip(&column.position).map(at).collect()
}

/// Whole stories go to one split or the other.
fn halves(column: &Column) -> (Vec<u32>, Vec<u32>) {
    (0..column.doc_id.len() as u32).partition(|&r| (column.doc_id[r as usize] / 2).is_multiple_of(2))
}

/// All representations on the same held-out rows (the random host's on its own, of the same stories).
pub fn recover(sources: &Sources<'_>, output: &Output) -> Result<Table> {
    output.note("\nconcept recovery on held-out stories");
    let shards = Shards::open(sources.shards)?;
    let seed = shards.manifest().config["corpus"]["seed"].as_u64().unwrap_or(0);
    let resid = read(&shards, sources.hook)?;
    let concepts: Vec<Known> =
        fable::concepts().iter().map(|c| Known { name: c.name.to_string(), class: c.class.name().to_string() }).collect();
    let (selection, test) = halves(&resid);
    let known = labels(&resid, seed);
    let task = Task { concepts: &concepts, labels: &known, selection: &selection, test: &test, min_positives: MIN_POSITIVES };
    progress(output, 8);
    let step = |r: Result<Recovery>| {
        output.advance(1);
        r
    };
    let dictionary = step(latents("dictionary: best latent", &codes(sources.dictionary, &resid)?, &task))?;
    let probe = step(probe(
        "linear probe (combines all dims)",
        &resid.x,
        resid.width,
        &task,
        &ProbeOptions { max_rows: 15_000, ..Default::default() },
    ))?;
    let mut controls = vec![
        step(best_token("control: best single token", &resid.token_id, &task))?,
        step(word_alone("control: all the token tells", &resid.token_id, &task))?,
        step(neurons("control: best residual dimension", &resid.x, resid.width, &task))?,
    ];
    let mlp = read(&shards, sources.mlp)?;
    controls.push(step(neurons("control: best MLP neuron", &mlp.x, mlp.width, &task))?);
    drop(mlp);
    let embed = read(&shards, sources.embed)?;
    controls.push(step(latents("control: SAE on hook_embed", &codes(sources.on_embed, &embed)?, &task))?);
    drop(embed);
    let random = read(&Shards::open(sources.random_shards)?, sources.hook)?;
    let (selection_r, test_r) = halves(&random);
    let known_r = labels(&random, seed);
    let task_r = Task { concepts: &concepts, labels: &known_r, selection: &selection_r, test: &test_r, min_positives: MIN_POSITIVES };
    controls.push(step(latents("control: SAE on a random host", &codes(sources.on_random, &random)?, &task_r))?);
    output.end();

    let in_reach: Vec<String> =
        probe.concepts.iter().filter(|c| c.class == "contextual" && c.f1 > 0.9).map(|c| c.concept.clone()).collect();
    let f1 = |r: &Recovery, name: &str| r.concept(name).map_or(0.0, |c| c.f1);
    let won = in_reach
        .iter()
        .filter(|name| f1(&dictionary, name) > RECOVERED && controls.iter().all(|c| f1(&dictionary, name) > f1(c, name)))
        .cloned()
        .collect();
    let mut representations = vec![dictionary, probe];
    representations.extend(controls);
    Ok(Table {
        selection_rows: selection.len(),
        test_rows: test.len(),
        representations,
        contextual_in_reach: in_reach.len(),
        contextual_won: won,
    })
}

fn progress(output: &Output, n: u64) {
    output.begin("concepts", Some(n), "tables");
}
