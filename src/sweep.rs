//! A sweep over shards in one call: every setting trains from the same pass over the rows.
//!
//! For programs and notebooks; the command line's `train` also resolves flags, starts from dictionaries and streams from hosts.
//! Not for: the loop itself (`train`).

use std::path::Path;

use candle_core::Device;
use serde::Serialize;

use crate::artefact::Mode;
use crate::config::{to_toml, ShardsConfig};
use crate::dictionary::Provenance;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::sae::SaeConfig;
use crate::shard::{Shards, ShuffleConfig, Split};
use crate::train::{self, Beginning, Member, TrainConfig, TrainReport};

/// The run file beside each dictionary.
#[derive(Serialize)]
struct RunFile {
    shards: ShardsConfig,
    sae: SaeConfig,
    train: TrainConfig,
}

/// Trains a dictionary for each of `settings` on the training rows of a column of `shards`, on the CPU. One goes into `out` itself,
/// several into folders of `out` named by size, sparsity and seed (`k8-d512-s0`, `mp-k8-d512-s0`). They share rows, batches and length;
/// the row order is that of the first one's seed. The files are those of `lapidary train`, which takes each `config.toml` as it is; with
/// [`Mode::Resume`] a run goes on where it stopped, and does nothing where it is complete.
///
/// # Errors
/// No setting, two that would share a folder, impossible settings, an unknown column, and all that [`train::train`] says.
pub fn sweep(
    shards: &Shards,
    column: &str,
    settings: &[(SaeConfig, TrainConfig)],
    out: &Path,
    mode: Mode,
    progress: &dyn Progress,
) -> Result<TrainReport> {
    let Some((_, first)) = settings.first() else {
        return Err(Error::request("no dictionary is to be trained", "give at least one pair of learner and training settings"));
    };
    let column = shards.column(Some(column))?;
    let manifest = shards.manifest();
    let rows = shards.rows(Some(Split::Train));
    let data_seed = Some(first.data_seed.unwrap_or(first.seed));
    let table = ShardsConfig { dir: shards.dir().display().to_string(), hook: column.name.clone(), id: manifest.id.clone() };
    let from = serde_json::json!({ "corpus": manifest.corpus, "rows": rows, "id": manifest.id });
    let provenance = Provenance { hook: column.name.clone(), host: manifest.host.clone(), shards: from, ..Default::default() };
    let mut members: Vec<Member> = Vec::with_capacity(settings.len());
    for (sae, train) in settings {
        let n_tokens = if train.n_tokens == 0 { rows } else { train.n_tokens };
        let sae = sae.resolve(column.width, n_tokens)?;
        let train = TrainConfig { data_seed, ..train.clone() }.resolve(sae.d_sae(), rows)?;
        let name = format!("{}-s{}", sae.label(), train.seed);
        if members.iter().any(|m| m.name == name) {
            return Err(Error::request(
                format!("two dictionaries of the sweep would be called `{name}`"),
                "let them differ in learner, size, sparsity or seed, or train them into folders of their own",
            ));
        }
        members.push(Member {
            dir: if settings.len() > 1 { out.join(&name) } else { out.to_path_buf() },
            config_toml: to_toml(&RunFile { shards: table.clone(), sae: sae.clone(), train: train.clone() })?,
            name,
            sae,
            train,
            provenance: provenance.clone(),
            beginning: Beginning::default(),
            device: Device::Cpu,
        });
    }
    let config =
        ShuffleConfig { seed: members[0].train.data_seed.unwrap_or_default(), buffer_bytes: members[0].train.shuffle_bytes as usize };
    let mut source = shards.shuffled(&column.name, Some(Split::Train), &config)?;
    train::train(members, &mut source, out, mode, progress)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::{Corpus, CorpusConfig};
    use crate::harvest::{harvest, HarvestConfig};
    use crate::host;
    use crate::progress::Silent;
    use crate::sae::TopKConfig;
    use crate::score;
    use crate::Dictionary;

    #[test]
    fn a_sweep_is_trained_scored_and_found_complete() {
        let dir = tempfile::tempdir().unwrap();
        let host = host::load("fable", &host::LoadOptions::default()).unwrap();
        let corpus = Corpus::open(&CorpusConfig::new("fable")).unwrap();
        let hooks = vec!["blocks.1.hook_resid_post".to_string()];
        let config = HarvestConfig { hooks, n_tokens: Some(3000), held_out: 0.3, ..Default::default() };
        let at = dir.path().join("shards");
        harvest(host.as_ref(), &corpus, None, &config, &at, Mode::Fresh, &Silent).unwrap();
        let shards = Shards::open(&at).unwrap();
        let column = "blocks.1.hook_resid_post";

        let topk = |k| SaeConfig::TopK(TopKConfig { k, d_sae: 64, ..Default::default() });
        let train = TrainConfig { n_tokens: 4096, batch: 256, lr: 2e-3, ..Default::default() };
        let settings = [(topk(2), train.clone()), (topk(4), train.clone())];
        let out = dir.path().join("sweep");
        let report = sweep(&shards, column, &settings, &out, Mode::Fresh, &Silent).unwrap();
        let names: Vec<&str> = report.members.iter().map(|m| m.name.as_str()).collect();
        assert_eq!((names, report.was_complete), (vec!["k2-d64-s0", "k4-d64-s0"], false));
        assert!(sweep(&shards, column, &settings, &out, Mode::Resume, &Silent).unwrap().was_complete);
        let twice = [(topk(2), train.clone()), (topk(2), train)];
        assert!(sweep(&shards, column, &twice, &out, Mode::Resume, &Silent).unwrap_err().to_string().contains("k2-d64-s0"));
        assert!(sweep(&shards, column, &[], &out, Mode::Resume, &Silent).is_err());

        let dictionary = Dictionary::load(&out.join("k4-d64-s0")).unwrap();
        let report = score::compare(&dictionary, &shards, column, Some(Split::HeldOut), Some(0), &Silent).unwrap().report;
        assert_eq!((report.split.as_str(), report.rows), ("held-out", shards.rows(Some(Split::HeldOut))));
        assert_eq!(report.baselines.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["random", "pca", "kmeans", "rows"]);
        assert_eq!(report.metrics.get("l0"), Some(&4.0));
    }
}
