//! Splicing a dictionary into the host: CE and KL recovered, on the contexts that the shards were harvested from.
//!
//! Which positions are replaced is read from the shards themselves: exactly those whose rows the harvest wrote.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use lapidary::corpus::{Contexts, CorpusConfig, Place};
use lapidary::harvest::{passes, HarvestConfig};
use lapidary::host::{LoadOptions, Tokens};
use lapidary::score::loss_recovered::{loss_recovered_all, TokenBatch};
use lapidary::score::Metrics;
use lapidary::shard::{Shards, Split};
use lapidary::{Dictionary, Error, HookPoint, Progress, Result};

use super::host::dtype;
use super::hub::{self, Model};
use super::output::Output;
use super::settings::count;

/// Flags of the splice.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The host, to splice the reconstruction into it: a Hugging Face folder, a model of the hub, or `fable`.
    #[arg(long, value_name = "DIR|ID", help_heading = "With a host")]
    pub model: Option<String>,
    /// The corpus that was harvested [default: the path or dataset in the shards' manifest].
    #[arg(long, value_name = "PATH|hf:ID", requires = "model", help_heading = "With a host")]
    pub corpus: Option<PathBuf>,
    /// Tokens to splice at most.
    #[arg(long, value_name = "N", value_parser = count, default_value = "50_000", requires = "model", help_heading = "With a host")]
    pub splice_tokens: u64,
    /// Precision of the host's forward passes: f32 or bf16 [default: as harvested].
    #[arg(long, visible_alias = "host-dtype", value_name = "DTYPE", requires = "model", help_heading = "With a host")]
    pub dtype: Option<String>,
    /// Most tokens of one forward pass, padding included; contexts of like length share one [default: as harvested].
    #[arg(long, value_name = "N", value_parser = count, requires = "model", help_heading = "With a host")]
    pub batch_tokens: Option<u64>,
}

/// CE and KL figures of each dictionary.
pub fn recovered(
    args: &Args,
    shards: &Shards,
    column: &str,
    dictionaries: &[&Dictionary],
    split: Option<Split>,
    device: &Device,
    output: &Output,
) -> Result<Vec<Metrics>> {
    let model = args.model.as_deref().unwrap_or_default();
    let at: HookPoint = column.parse()?;
    let manifest = shards.manifest();
    let harvested = manifest.host["dtype"].as_str().unwrap_or("f32");
    let dtype = dtype(args.dtype.as_deref().unwrap_or(harvested))?;
    let files = Model::find(model, Some(&manifest.host), output)?;
    let host = files.load(&LoadOptions { dtype: Some(dtype), device: device.clone() })?;
    let harvested = manifest.host["weights_sha256"].as_str().unwrap_or_default();
    if host.info().weights_sha256 != harvested {
        return Err(Error::request(
            format!("{model} has other weights than the host of these shards ({})", manifest.host["name"]),
            "pass the host that the shards were harvested from",
        ));
    }
    let missing =
        |e| Error::request(format!("the shards' manifest holds no harvest settings ({e})"), "score shards that `lapidary harvest` made");
    let config: HarvestConfig = serde_json::from_value(manifest.config["harvest"].clone()).map_err(missing)?;
    let mut corpus_config: CorpusConfig = serde_json::from_value(manifest.config["corpus"].clone()).map_err(missing)?;
    let harvested = corpus_config.source.clone();
    if let Some(path) = &args.corpus {
        corpus_config.source = path.display().to_string();
    }
    let corpus = hub::corpus(&corpus_config, Some(&harvested), output)?;
    if corpus.provenance()? != manifest.corpus {
        return Err(Error::request(
            format!(
                "the corpus `{}` is not the one these shards were harvested from (its files have other names or contents)",
                corpus_config.source
            ),
            "pass the same files with --corpus, or harvest again",
        ));
    }
    let tokenizer = files.tokenizer(corpus.kind())?;
    if tokenizer.as_ref().is_some_and(|t| manifest.tokenizer["sha256"] != t.sha256()) {
        return Err(Error::request(
            format!("{model} has another tokenizer than these shards were harvested with"),
            "put the tokenizer.json of the harvest beside the model, or harvest again",
        ));
    }
    let written = written_positions(shards, column, split, args.splice_tokens)?;
    let contexts = Contexts::new(
        &corpus,
        tokenizer.as_ref(),
        config.check(host.as_ref())?.contexts(host.as_ref(), tokenizer.as_ref()),
        Place::default(),
    )?;
    let last = written.keys().next_back().copied().unwrap_or(0);
    let mut spliced: Vec<(Vec<u32>, Vec<u8>)> = Vec::new();
    for context in contexts {
        let context = context?;
        let all_read = context.end.first_document() > last;
        let was_written = |(document, position): &(u64, u32)| written.get(document).is_some_and(|p| p.binary_search(position).is_ok());
        let unmasked: Vec<u8> = context.places.iter().map(|place| u8::from(was_written(place))).collect();
        if unmasked.contains(&1) {
            spliced.push((context.ids, unmasked));
        }
        if all_read {
            break;
        }
    }
    let lengths: Vec<usize> = spliced.iter().map(|(ids, _)| ids.len()).collect();
    let most = match args.batch_tokens {
        Some(0) => return Err(Error::request("--batch-tokens 0 lets no token through", "2048 suits most machines")),
        Some(n) => n as usize,
        None => config.batch_tokens,
    };
    let batches: Vec<_> = passes(&lengths, most).into_iter().map(|pass| token_batch(&spliced, &pass, device)).collect();
    if batches.is_empty() {
        return Err(Error::request("none of the shards' documents is in this corpus", "pass the corpus that was harvested"));
    }
    let mean: Option<Vec<f32>> =
        manifest.columns.iter().find(|c| c.column.name == column).map(|c| c.mean.iter().map(|&m| m as f32).collect());
    output.note(&format!("splicing {} contexts into {model}, {} forward passes for each figure", spliced.len(), batches.len()));
    loss_recovered_all(host.as_ref(), &at, dictionaries, batches, mean.as_deref(), output)
}

/// Positions of the first `limit` rows that were written, by document, ascending.
fn written_positions(shards: &Shards, column: &str, split: Option<Split>, limit: u64) -> Result<BTreeMap<u64, Vec<u32>>> {
    let mut written: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    let mut rows = 0;
    for batch in shards.scan(column, split)? {
        let batch = batch?;
        for (&doc, &position) in batch.doc_id.iter().zip(&batch.position) {
            if rows >= limit {
                return Ok(written);
            }
            rows += 1;
            written.entry(doc).or_default().push(position);
        }
    }
    Ok(written)
}

fn token_batch(contexts: &[(Vec<u32>, Vec<u8>)], pass: &[usize], device: &Device) -> Result<TokenBatch> {
    let ids: Vec<Vec<u32>> = pass.iter().map(|&i| contexts[i].0.clone()).collect();
    let tokens = Tokens::padded(&ids, 0, device)?;
    let (b, t) = tokens.ids.dims2()?;
    let unmasked = pass.iter().map(|&i| &contexts[i].1);
    let flat: Vec<u8> = unmasked.flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0, t - row.len()))).collect();
    Ok(TokenBatch { tokens, unmasked: Tensor::from_vec(flat, (b, t), device)? })
}
