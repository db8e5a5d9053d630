//! Known concepts of the built-in language, looked for in dictionaries of the built-in host: `lapidary bench concepts`.
//!
//! Per seed a dictionary is trained, with the two controls that are dictionaries too; `recovery` says what its latents find,
//! `causal` what they do in the host, `absorption` what they leave out, and `page` tells all three. The harvest is shared by the
//! seeds. Not for: other hosts, of which nobody knows the concepts.

mod absorption;
mod causal;
mod page;
mod recovery;
mod rows;

use std::path::Path;

use serde::Serialize;

use super::lab::{figure, Lab, Toy};
use crate::corpus::{Corpus, CorpusConfig, Tokenizer};
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::harvest::{harvest, HarvestConfig};
use crate::hook::HookPoint;
use crate::host::{self, HostModel, LoadOptions};
use crate::progress::{Progress, Silent};
use crate::sae::{SaeConfig, TopKConfig};
use crate::shard::{Batch, Shards, ShuffleConfig, Split};

pub use absorption::Absorption;
pub use causal::{Causal, Matched};
pub use page::ConceptsReport;
pub use recovery::{Ground, Recoveries, Sources};

/// The hook point that is looked into.
pub const HOOK: &str = "blocks.2.hook_resid_mid";
/// The MLP neurons that read it, a control.
pub const MLP: &str = "blocks.2.mlp.hook_post";
/// The embedding, a control.
pub const EMBED: &str = "hook_embed";

/// What to try.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConceptSettings {
    /// Of initialisation, row order and drawn controls.
    pub seeds: Vec<u64>,
    /// Latents of each dictionary.
    pub d_sae: usize,
    /// Active latents per row.
    pub k: usize,
    /// Rows that the dictionary is trained on, with repetition.
    pub n_tokens: u64,
    /// Rows that each control dictionary is trained on.
    pub control_tokens: u64,
    /// Rows harvested from the host; the random host gives half as many.
    pub harvest_tokens: u64,
    /// Share of tokens to run; below 1 nothing is shown.
    pub share: f64,
}

impl Default for ConceptSettings {
    fn default() -> Self {
        Self {
            seeds: vec![0, 1, 2],
            d_sae: 2048,
            k: 32,
            n_tokens: 2_000_000,
            control_tokens: 600_000,
            harvest_tokens: 1_000_000,
            share: 1.0,
        }
    }
}

/// One seed.
#[derive(Debug, Clone, Serialize)]
pub struct SeedRun {
    /// The seed.
    pub seed: u64,
    /// Fraction of variance unexplained, held-out rows.
    pub fvu: f64,
    /// Recovery under each representation.
    pub recoveries: Recoveries,
    /// Every recovered contextual concept's latent, silenced.
    pub causal: Vec<Causal>,
    /// The clearest case of absorption, if there is one.
    pub absorption: Option<Absorption>,
    /// How many cases (concept, word, latent) there are.
    pub absorptions: usize,
}

/// Harvests, trains, scores.
///
/// # Errors
/// No seed or one twice, an impossible share or size; what harvest and training may fail with; cancellation.
pub fn run(settings: &ConceptSettings, progress: &dyn Progress) -> Result<ConceptsReport> {
    let seeds = super::checked_seeds(&settings.seeds)?;
    super::check_share(settings.share)?;
    let dir = tempfile::tempdir().map_err(|e| Error::io("create a folder in", std::env::temp_dir(), e))?;
    let lab = Lab::new(&settings.seeds, settings.share, 3 + 3 * seeds, progress);
    let rows = |n: u64| ((n as f64 * settings.share) as u64).max(8_000);
    let host = host::load("fable", &LoadOptions::default())?;
    lab.status("harvest");
    let shards = stories(host.as_ref(), &[HOOK, MLP, EMBED], rows(settings.harvest_tokens), &dir.path().join("host"))?;
    let random = host::load("fable-random", &LoadOptions::default())?;
    let random = stories(random.as_ref(), &[HOOK], rows(settings.harvest_tokens / 2), &dir.path().join("random"))?;
    lab.finished("harvested", 1);
    let ground = Ground::new(&Sources { shards: &shards, hook: HOOK, mlp: MLP, embed: EMBED, random_shards: &random }, &Silent)?;
    lab.finished("probe and untrained controls", 2);
    let at: HookPoint = HOOK.parse()?;
    let corpus_seed = rows::corpus_seed(&shards);
    let (grammar, stories) = (causal::Grammar::read(), causal::Stories::of(&ground.resid, corpus_seed)?);
    let mut runs = Vec::new();
    for &seed in &settings.seeds {
        let trained = |shards: &Shards, column: &str, tokens: u64| -> Result<Dictionary> {
            let toy = Toy { lr: 2e-3, batch: 1024, steps: tokens / 1024, warmup: tokens / 1024 / 50, init_rows: 32_768, ..Toy::default() };
            let learner = SaeConfig::TopK(TopKConfig { d_sae: settings.d_sae, k: settings.k, ..TopKConfig::default() });
            let mut source = shards.shuffled(column, Some(Split::Train), &ShuffleConfig { seed, ..ShuffleConfig::default() })?;
            Ok(lab.train(&mut source, seed, &toy, &[learner])?.0.remove(0))
        };
        let dictionary = trained(&shards, HOOK, settings.n_tokens)?;
        let on_embed = trained(&shards, EMBED, settings.control_tokens)?;
        let on_random = trained(&random, HOOK, settings.control_tokens)?;
        lab.finished(&format!("seed {seed}: trained"), 1);
        let recoveries = ground.recover(&dictionary, &on_embed, &on_random)?;
        lab.finished(&format!("seed {seed}: {} of {} won", recoveries.contextual_won.len(), recoveries.contextual_in_reach), 1);
        let codes = ground.resid.codes(&dictionary)?;
        let setting = causal::Setting { host: host.as_ref(), at, grammar: &grammar, stories: &stories, seed };
        let mut silenced = Vec::new();
        for name in &recoveries.contextual_won {
            if progress.is_cancelled() {
                return Err(Error::Cancelled { doing: "the concepts" });
            }
            if let Some(found) = recoveries.own().concept(name) {
                silenced.extend(causal::causal(&setting, &dictionary, &codes, found)?);
            }
        }
        let mut cases = absorption::absorptions(&ground.resid, corpus_seed, &dictionary, &codes, &recoveries.own().concepts)?;
        let absorptions = cases.len();
        cases.truncate(1);
        let scores = lab.score(&[&dictionary], &batch(&ground), None)?;
        let fvu = scores.first().map_or(f64::NAN, |s| figure(s, "fvu"));
        runs.push(SeedRun { seed, fvu, recoveries, causal: silenced, absorption: cases.pop(), absorptions });
        lab.finished(&format!("seed {seed}: silenced"), 1);
    }
    lab.end();
    Ok(ConceptsReport { settings: settings.clone(), runs })
}

/// Stories through a host, to shards.
fn stories(host: &dyn HostModel, hooks: &[&str], n_tokens: u64, out: &Path) -> Result<Shards> {
    let corpus = Corpus::open(&CorpusConfig { source: "fable".into(), ..CorpusConfig::default() })?;
    let config = HarvestConfig {
        hooks: hooks.iter().map(|h| (*h).to_string()).collect(),
        n_tokens: Some(n_tokens),
        held_out: 0.2,
        ..HarvestConfig::default()
    };
    harvest(host, &corpus, Some(&Tokenizer::fable()?), &config, out, crate::artefact::Mode::Fresh, &Silent)?;
    Shards::open(out)
}

fn batch(ground: &Ground) -> Batch {
    let rows = &ground.resid;
    Batch {
        n: rows.doc_id.len(),
        x: rows.x.clone(),
        doc_id: rows.doc_id.clone(),
        position: rows.position.clone(),
        token_id: rows.token_id.clone(),
    }
}
