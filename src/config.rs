//! Settings as written, merged: defaults < TOML file < `--set key=value` < flags. One table per stage; each stage owns and checks its
//! own (`resolve`), this file composes. The library reads no environment.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::corpus::CorpusConfig;
use crate::error::{Error, Result};
use crate::features::FeaturesConfig;
use crate::harvest::HarvestConfig;
use crate::kernels::KernelsConfig;
use crate::sae::SaeConfig;
use crate::train::TrainConfig;

/// A run file: what any verb can be told. Unknown tables and keys are refused, with the nearest known one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// What the host reads.
    pub corpus: CorpusConfig,
    /// Which host.
    pub host: HostConfig,
    /// Corpus and host to shards.
    pub harvest: HarvestConfig,
    /// Which shards a later stage reads.
    pub shards: ShardsConfig,
    /// Which learner.
    pub sae: SaeConfig,
    /// The training loop.
    pub train: TrainConfig,
    /// How much a feature table holds.
    pub features: FeaturesConfig,
    /// How things are computed; any verb, no effect on results.
    pub kernels: KernelsConfig,
}

/// The `[host]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// A Hugging Face folder, or `fable` for the built-in host.
    pub model: String,
    /// Precision of the forward pass: `f32` or `bf16`.
    pub dtype: String,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self { model: String::new(), dtype: "f32".into() }
    }
}

/// The `[shards]` table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShardsConfig {
    /// Folder of shards.
    pub dir: String,
    /// Column to read; empty when there is only one.
    pub hook: String,
    /// Identity of the harvest (`id` of its manifest); a run fills it in, and a run file that has it runs on that harvest only.
    pub id: String,
}

/// Settings being merged; later layers win.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    table: toml::Table,
}

impl Layers {
    /// Starts from a TOML file, or from nothing.
    ///
    /// # Errors
    /// A file that cannot be read, or is no TOML.
    pub fn new(file: Option<&Path>) -> Result<Self> {
        let Some(path) = file else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let table = text.parse().map_err(|e: toml::de::Error| {
            Error::request(format!("{}: not a readable run file: {}", path.display(), e.message()), format!("{e}"))
        })?;
        Ok(Self { table })
    }

    /// One `key=value`, the key dotted; the value is TOML where it parses, else a string.
    ///
    /// # Errors
    /// No `=`, or a key that runs through a value.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let Some((key, value)) = assignment.split_once('=') else {
            return Err(Error::request(
                format!("`--set {assignment}` assigns nothing"),
                "write --set key=value, as in --set train.lr=3e-4",
            ));
        };
        let (key, value) = (key.trim(), value.trim());
        let parsed = format!("v = {value}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("v"));
        self.put(key, parsed.unwrap_or_else(|| toml::Value::String(value.to_string())))
    }

    /// Puts a value at a dotted key.
    ///
    /// # Errors
    /// A key that runs through a value.
    pub fn put(&mut self, key: &str, value: impl Into<toml::Value>) -> Result<()> {
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().unwrap_or_default();
        let mut table = &mut self.table;
        for part in parts {
            let entry = table.entry(part.to_string()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            table = entry
                .as_table_mut()
                .ok_or_else(|| Error::config(key, format!("`{part}` is a value, not a table"), "see `lapidary config` for the keys"))?;
        }
        table.insert(last.to_string(), value.into());
        Ok(())
    }

    /// [`put`](Self::put) when there is a value: the usual case for a flag.
    ///
    /// # Errors
    /// As `put`.
    pub fn put_some<V: Into<toml::Value>>(&mut self, key: &str, value: Option<V>) -> Result<()> {
        value.map_or(Ok(()), |v| self.put(key, v))
    }

    /// Puts a table below everything that was put so far: its keys count where no layer says otherwise.
    ///
    /// # Errors
    /// A value that TOML cannot hold, a `key` that is a value.
    pub fn put_below(&mut self, key: &str, table: impl Serialize) -> Result<()> {
        let below = toml::Table::try_from(table)
            .map_err(|e| Error::config(key, format!("the settings below it cannot be read: {e}"), "give them all by --set"))?;
        let entry = self.table.entry(key.to_string()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        let above =
            entry.as_table_mut().ok_or_else(|| Error::config(key, "is a value, not a table", "see `lapidary config` for the keys"))?;
        for (name, value) in below {
            above.entry(name).or_insert(value);
        }
        Ok(())
    }

    /// Has any layer said something about a dotted key?
    pub fn has(&self, key: &str) -> bool {
        let mut parts = key.split('.');
        let first = parts.next().and_then(|part| self.table.get(part));
        parts.fold(first, |value, part| value.and_then(|v| v.get(part))).is_some()
    }

    /// The merged `[kernels]` table alone: it can be read before the flags that complete the others are known.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve), for this table.
    pub fn kernels(&self) -> Result<KernelsConfig> {
        let only = self.table.get("kernels").map(|table| ("kernels".to_string(), table.clone()));
        Ok(from_table::<RunConfig>(only.into_iter().collect())?.kernels)
    }

    /// The merged run file.
    ///
    /// # Errors
    /// Unknown keys (the nearest known one is named) and values of another type.
    pub fn resolve(&self) -> Result<RunConfig> {
        let mut table = self.table.clone();
        if let Some(toml::Value::Table(sae)) = table.get_mut("sae") {
            // The learner is a tagged table: without a tag it is the default one.
            sae.entry("arch").or_insert_with(|| SaeConfig::default().arch().into());
        }
        from_table(table)
    }
}

fn from_table<T: DeserializeOwned>(table: toml::Table) -> Result<T> {
    serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|e| {
        let path = e.path().to_string();
        let message = e.into_inner().message().to_string();
        let mut quoted = message.split('`').skip(1).step_by(2);
        let unknown = message.starts_with("unknown").then(|| quoted.next().unwrap_or_default().to_string());
        let known: Vec<&str> = if unknown.is_some() { quoted.collect() } else { Vec::new() };
        let help = match unknown.as_deref().and_then(|u| nearest(u, &known)) {
            Some(near) => format!("did you mean `{near}`? `lapidary config` shows every key with its default"),
            None => "`lapidary config` shows every key with its default".into(),
        };
        Error::config(if path == "." { "(top level)".to_string() } else { path }, message, help)
    })
}

/// The candidate most like `word`, if any is alike at all.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let scored = candidates.iter().map(|c| (strsim::damerau_levenshtein(word, c), *c));
    scored.min().filter(|(distance, c)| *distance <= c.len().max(word.len()) / 2).map(|(_, c)| c)
}

/// As TOML, every default shown.
///
/// # Errors
/// Never for plain settings; kept for values TOML cannot hold.
pub fn to_toml<T: Serialize>(value: &T) -> Result<String> {
    toml::to_string(value).map_err(|e| Error::request(format!("the settings cannot be written as TOML: {e}"), "report this"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layered(sets: &[&str]) -> Result<RunConfig> {
        let mut layers = Layers::default();
        for s in sets {
            layers.set(s)?;
        }
        layers.resolve()
    }

    #[test]
    fn later_layers_win_and_strings_need_no_quotes() {
        let c = layered(&["train.lr=1e-3", "train.batch=512", "train.lr = 2e-3", "host.model=some/where", "sae.k=7"]).unwrap();
        assert_eq!((c.train.lr, c.train.batch, c.host.model.as_str()), (2e-3, 512, "some/where"));
        assert!(matches!(c.sae, SaeConfig::TopK(sae) if sae.k == 7));
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let error = layered(&["train.bacth=1"]).unwrap_err().to_string();
        assert!(error.contains("bacth") && error.contains("did you mean `batch`"), "{error}");
        let error = layered(&["sae.kk=1"]).unwrap_err().to_string();
        assert!(error.contains("sae") && error.contains("did you mean `k`"), "{error}");
        let error = layered(&["trian.lr=1"]).unwrap_err().to_string();
        assert!(error.contains("did you mean `train`"), "{error}");
        assert!(layered(&["train.lr=fast"]).unwrap_err().to_string().contains("train.lr"));
        assert!(layered(&["nothing"]).is_err());
    }

    #[test]
    fn the_kernels_table_is_read_alone() {
        let mut layers = Layers::default();
        layers.set("sae.no_such_key=1").unwrap();
        assert_eq!(layers.kernels().unwrap().screen, crate::kernels::Screen::Auto);
        layers.set("kernels.screen=int8").unwrap();
        assert_eq!(layers.kernels().unwrap().screen, crate::kernels::Screen::Int8);
        layers.set("kernels.screen=int9").unwrap();
        let error = layers.kernels().unwrap_err().to_string();
        assert!(error.contains("kernels.screen") && error.contains("did you mean `int8`"), "{error}");
    }

    #[test]
    fn the_written_file_reads_back() {
        let text = to_toml(&RunConfig::default()).unwrap();
        let back: RunConfig = from_table(text.parse().unwrap()).unwrap();
        assert_eq!(back, RunConfig::default());
    }
}
