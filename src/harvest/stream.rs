//! The rows of a harvest without its shards: the same contexts, forward passes, masks and split, handed over in memory.
//!
//! ```text
//! place in the corpus -> blocks.rs -> forward.rs -> rows.rs -> training rows, in corpus order
//! ```
//!
//! Stateless: a [`Spot`] says where to read on and what was counted up to there, so that reading again from a spot gives the same rows
//! to the bit, and the rows are those that `harvest` with this configuration would write. Not for: mixing them, or for epochs.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use super::blocks::Blocks;
use super::config::{HarvestConfig, Plan, Thresholds};
use super::forward;
use super::rows::Chooser;
use super::state::Identity;
use super::timing::Timing;
use crate::corpus::{ContextConfig, Corpus, Place, Tokenizer};
use crate::error::{Error, Result};
use crate::host::HostModel;
use crate::progress::Progress;
use crate::shard::{Batch, Column, Counts, Dtype};

/// A place between two blocks of the corpus, with what was counted and decided up to there. The default is the beginning.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spot {
    /// Context that comes next.
    place: Place,
    /// Since the beginning of the corpus.
    counts: Counts,
    /// Of the outlier rule, once decided.
    thresholds: Option<Thresholds>,
}

impl Spot {
    /// Documents, tokens, rows and masked rows since the beginning of the corpus.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The beginning of the corpus for a further pass: what was decided in the first one stays.
    pub fn rewound(&self) -> Self {
        Self { thresholds: self.thresholds.clone(), ..Self::default() }
    }
}

/// Rows of one hook point, as they come out of the host.
pub struct Stream<'a> {
    host: &'a dyn HostModel,
    corpus: Corpus,
    tokenizer: Option<&'a Tokenizer>,
    plan: Plan,
    contexts: ContextConfig,
    identity: Identity,
    timing: Timing,
}

impl<'a> Stream<'a> {
    /// Prepares to read. `config` is that of a harvest with one hook point; how shards would be written does not matter. A number of
    /// rows in it ends the corpus there, as it would end the harvest.
    ///
    /// # Errors
    /// When the configuration does not fit the host or names several hook points, or the corpus cannot be read.
    pub fn new(host: &'a dyn HostModel, corpus: &Corpus, tokenizer: Option<&'a Tokenizer>, config: &HarvestConfig) -> Result<Self> {
        // Rows stay as the host computes them, and there are no files.
        let in_memory = HarvestConfig { dtype: Dtype::F32, shard_rows: None, row_group_rows: None, ..config.clone() };
        let mut plan = in_memory.check(host)?;
        if plan.columns.len() > 1 {
            let help = "a stream reads one hook point: name it with `--hook`, or harvest them into shards";
            return Err(Error::config("harvest.hooks", format!("names {} hook points", plan.columns.len()), help));
        }
        (plan.config.shard_rows, plan.config.row_group_rows) = (None, None);
        let corpus = corpus.clone().with_default_block(plan.config.context);
        let identity = Identity::of(host, &corpus, tokenizer, &plan)?;
        let contexts = plan.contexts(host, tokenizer);
        Ok(Self { host, corpus, tokenizer, plan, contexts, identity, timing: Timing::default() })
    }

    /// The configuration as checked.
    pub fn config(&self) -> &HarvestConfig {
        &self.plan.config
    }

    /// Name and width of the hook point.
    pub fn column(&self) -> &Column {
        &self.plan.columns[0]
    }

    /// Identifies host, corpus, tokenizer and configuration, hex.
    ///
    /// # Errors
    /// Never in practice: as an identity that is no JSON.
    pub fn id(&self) -> Result<String> {
        self.identity.id()
    }

    /// The host, as a manifest records it.
    pub fn host(&self) -> &Value {
        &self.identity.host
    }

    /// What a manifest would record of the rows up to a spot.
    ///
    /// # Errors
    /// As [`Stream::id`].
    pub fn provenance(&self, upto: &Spot) -> Result<Value> {
        Ok(json!({
            "id": self.id()?,
            "corpus": self.identity.corpus,
            "tokenizer": self.identity.tokenizer,
            "masking": self.plan.masking(upto.thresholds.as_ref()),
            "counts": super::to_value(&upto.counts)?,
            "config": self.identity.config,
        }))
    }

    /// The forward passes so far: wall-clock seconds, tokens that went through, and the share of the passes that was padding.
    pub fn forwarded(&self) -> (f64, u64, f64) {
        (self.timing.forward_seconds, self.timing.forward_tokens, self.timing.padding_share().unwrap_or(0.0))
    }

    /// Tokens of a block: a read may pass `least` by as many rows, and by [`HarvestConfig::outlier_rows`] before the thresholds are known.
    pub fn block_tokens(&self) -> usize {
        self.plan.block_tokens()
    }

    /// Appends whole blocks' training rows to `into` until it holds `least` rows or the corpus ends. Returns where to read on, and
    /// whether the corpus has ended. `progress` hears of rows, held-out ones included.
    ///
    /// # Errors
    /// When the corpus cannot be read, the host fails, a row holds NaN or infinity, or the work is cancelled.
    pub fn read(&mut self, from: &Spot, least: usize, into: &mut Batch, progress: &dyn Progress) -> Result<(Spot, bool)> {
        let mut chooser = Chooser::new(&self.plan, Some((from.counts.clone(), from.thresholds.clone())));
        let (plan, timing) = (&self.plan, &mut self.timing);
        let mut place = from.place;
        let ended = std::thread::scope(|scope| -> Result<bool> {
            let mut blocks = Blocks::start(scope, &self.corpus, self.tokenizer, self.contexts.clone(), from.place, plan)?;
            loop {
                let block = blocks.next().transpose()?;
                let last = block.is_none();
                match block {
                    Some(block) => {
                        let at = Instant::now();
                        let rows = forward::run(self.host, &block, plan, progress)?;
                        timing.forward_seconds += at.elapsed().as_secs_f64();
                        timing.forward_tokens += rows.tokens.len() as u64;
                        timing.padding += rows.padding;
                        chooser.push(rows, timing);
                    }
                    None => chooser.end(),
                }
                while let Some(chosen) = chooser.pop() {
                    place = chosen.end;
                    let [train, _] = chosen.rows;
                    into.n += train.doc_id.len();
                    into.x.extend_from_slice(&train.columns[0]);
                    into.doc_id.extend(train.doc_id);
                    into.position.extend(train.position);
                    into.token_id.extend(train.token_id.into_iter().flatten());
                }
                if last || chooser.is_full() {
                    return Ok(true);
                }
                if into.n >= least {
                    // One block further is read ahead anyway, and tells whether this was the last. Its error comes when it is its turn.
                    return Ok(blocks.next().is_none());
                }
            }
        })?;
        Ok((Spot { place, counts: chooser.counts().clone(), thresholds: chooser.thresholds().cloned() }, ended))
    }
}
