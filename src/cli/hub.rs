//! Models and corpora that may be folders or hub ids; the environment that says where the hub and its cache are is read here.

use std::env::var;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lapidary::corpus::{Corpus, CorpusConfig, Kind, Tokenizer};
use lapidary::host::{self, HostModel, LoadOptions, Origin};
use lapidary::hub::{is_commit, DatasetSpec, FolderSpec, Hub, HubOptions, ModelSpec};
use lapidary::{Error, Progress, Result};
use serde_json::Value;

use super::output::Output;

/// A host's files, found or fetched.
pub struct Model {
    name: String,
    origin: Option<Origin>,
}

impl Model {
    /// A built-in host, a folder, or a model of the hub, whose files are fetched now. `began`: what an earlier run recorded of its
    /// host; a branch or tag of the same model then means the commit it meant there.
    pub fn find(text: &str, began: Option<&Value>, output: &Output) -> Result<Self> {
        if ["fable", "fable-random"].contains(&text) || Path::new(text).is_dir() {
            return Ok(Self { name: text.to_string(), origin: None });
        }
        let mut spec = ModelSpec::parse(text)?;
        if !spec.revision.as_deref().is_some_and(is_commit) {
            let same = began.filter(|host| host["hub_id"] == spec.id.as_str());
            spec.revision = same.and_then(|host| host["revision"].as_str().map(str::to_string)).or(spec.revision);
        }
        let hub = open(output)?;
        let snapshot = hub.model(&spec).map_err(|e| not_here(text, e))?;
        // Before gigabytes are fetched.
        host::check_config(&snapshot.dir)?;
        hub.weights(&snapshot)?;
        let origin = Origin { hub_id: snapshot.id, revision: snapshot.commit };
        Ok(Self { name: snapshot.dir.to_string_lossy().into_owned(), origin: Some(origin) })
    }

    /// Loads it.
    pub fn load(&self, options: &LoadOptions) -> Result<Box<dyn HostModel>> {
        match &self.origin {
            Some(origin) => {
                let host = host::load_fetched(Path::new(&self.name), origin.clone(), options)?;
                self.check_hash(&host.info().weights_sha256)?;
                Ok(host)
            }
            None => host::load(&self.name, options),
        }
    }

    /// The hub calls a large file by its SHA-256, and loading computed that of the weights: a cache that decayed is noticed for nothing.
    fn check_hash(&self, found: &str) -> Result<()> {
        let Ok(blob) = Path::new(&self.name).join("model.safetensors").canonicalize() else { return Ok(()) };
        let said = blob.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if said.len() != 64 || !said.bytes().all(|b| b.is_ascii_hexdigit()) || said == found {
            return Ok(());
        }
        let problem = format!("its SHA-256 is {found}, and the hub calls it {said}");
        Err(Error::format("file of the hub", &blob, problem, "delete it and run the command again: it will be fetched again"))
    }

    /// The tokenizer beside it. Token ids do without one; text needs it.
    pub fn tokenizer(&self, kind: Kind) -> Result<Option<Tokenizer>> {
        if self.name == "fable" || self.name == "fable-random" {
            return Tokenizer::fable().map(Some);
        }
        match kind {
            Kind::Tokens if !Path::new(&self.name).join("tokenizer.json").is_file() => Ok(None),
            _ => Tokenizer::load(Path::new(&self.name)).map(Some),
        }
    }
}

/// A path of this machine, or a folder of a repository of the hub, whose weights are fetched now; and then what it is there.
pub fn dictionary(at: &Path, output: &Output) -> Result<(PathBuf, Option<Value>)> {
    if at.exists() {
        return Ok((at.to_path_buf(), None));
    }
    let spec = FolderSpec::parse(&at.to_string_lossy())?;
    let found = open(output)?.weights_folder(&spec)?;
    let origin = serde_json::json!({ "hub_id": found.id, "revision": found.commit, "path": spec.path });
    Ok((found.dir, Some(origin)))
}

/// A name that is no folder and that the hub does not know may have been meant as either.
fn not_here(text: &str, error: Error) -> Error {
    const FOLDER: &str = "or pass a folder with config.json and model.safetensors, or `fable`, the built-in host";
    match error {
        Error::Request { problem, help } => {
            Error::request(format!("there is no folder `{text}` here, and {problem}"), format!("{help}; {FOLDER}"))
        }
        Error::Download { url, problem, .. } if !text.contains(['/', ':']) => Error::request(
            format!("there is no folder `{text}` here, and the hub could not be asked for a model of that name ({url}: {problem})"),
            format!("check the network and HF_ENDPOINT, {FOLDER}"),
        ),
        other => other,
    }
}

/// Opens a corpus: files, or a dataset of the hub. `began`: the source that an earlier run recorded; a branch of the same dataset then
/// means the commit it meant there.
pub fn corpus(config: &CorpusConfig, began: Option<&str>, output: &Output) -> Result<Corpus> {
    if !config.source.starts_with("hf:") {
        return Corpus::open(config);
    }
    let typed = DatasetSpec::parse(&config.source)?;
    let mut config = config.clone();
    let began = began.filter(|b| b.starts_with("hf:")).map(DatasetSpec::parse).transpose()?;
    if let Some(began) = began.filter(|b| b.id == typed.id && !typed.revision.as_deref().is_some_and(is_commit)) {
        let split = typed.split.or(began.split).unwrap_or_else(|| "train".to_string());
        config.source = format!("hf:{}@{}:{split}", began.id, began.revision.unwrap_or_else(|| "main".to_string()));
    }
    Corpus::open_from(&config, &open(output)?)
}

/// The hub that the environment names; one for the process, so that model and corpus share connections.
fn open(output: &Output) -> Result<Hub> {
    static HUB: OnceLock<Hub> = OnceLock::new();
    if let Some(hub) = HUB.get() {
        return Ok(hub.clone());
    }
    let hub = Hub::new(options()?, output.aside())?;
    Ok(HUB.get_or_init(|| hub).clone())
}

/// The variables that `huggingface_hub` reads, with its precedence; and the usual ones of a proxy.
fn options() -> Result<HubOptions> {
    let text = |names: &[&str]| names.iter().find_map(|n| var(n).ok().map(|v| v.trim().to_string()).filter(|v| !v.is_empty()));
    let yes = |name: &str| text(&[name]).is_some_and(|v| ["1", "true", "yes", "on"].contains(&v.to_lowercase().as_str()));
    let path = |names: &[&str]| text(names).map(expand);
    let home = path(&["HF_HOME"]).or_else(|| path(&["XDG_CACHE_HOME"]).map(|c| c.join("huggingface")));
    let home = match home.or_else(|| std::env::home_dir().map(|h| h.join(".cache/huggingface"))) {
        Some(home) => home,
        None => return Err(Error::request("there is no home folder for the hub's cache", "set HF_HOME to a folder")),
    };
    let mut options = HubOptions::new(path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).unwrap_or_else(|| home.join("hub")));
    if let Some(endpoint) = text(&["HF_ENDPOINT"]) {
        options.endpoint = endpoint;
    }
    if !yes("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        options.token = text(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| {
            let file = path(&["HF_TOKEN_PATH"]).unwrap_or_else(|| home.join("token"));
            std::fs::read_to_string(file).ok().map(|t| t.trim().to_string()).filter(|t| !t.is_empty())
        });
    }
    options.offline = yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE");
    if let Some(seconds) = text(&["HF_HUB_DOWNLOAD_TIMEOUT"]) {
        let seconds: f64 = seconds.parse().ok().filter(|s| (0.001..1e6).contains(s)).ok_or_else(|| {
            Error::request(format!("HF_HUB_DOWNLOAD_TIMEOUT is `{seconds}`"), "give a number of seconds, such as 30, or unset it")
        })?;
        options.timeout = Duration::from_secs_f64(seconds);
    }
    if let Some(wait) = text(&["LAPIDARY_HUB_WAIT_MS"]) {
        let wait =
            wait.parse().map_err(|_| Error::request(format!("LAPIDARY_HUB_WAIT_MS is `{wait}`"), "give a number of milliseconds"))?;
        options.base_wait = Duration::from_millis(wait);
    }
    let secure = options.endpoint.starts_with("https://");
    let of_scheme: &[&str] = if secure { &["HTTPS_PROXY", "https_proxy"] } else { &["http_proxy"] };
    options.proxy = text(of_scheme).or_else(|| text(&["ALL_PROXY", "all_proxy"]));
    options.no_proxy =
        text(&["NO_PROXY", "no_proxy"]).map(|list| list.split(',').map(|rule| rule.trim().to_string()).collect()).unwrap_or_default();
    options.no_proxy.retain(|rule| !rule.is_empty());
    Ok(options)
}

fn expand(path: String) -> PathBuf {
    match path.strip_prefix("~/") {
        Some(rest) => std::env::home_dir().map_or_else(|| PathBuf::from(&path), |home| home.join(rest)),
        None => PathBuf::from(path),
    }
}

impl Output {
    /// A second listener for work that runs beside the first one's: its bars stand under the other's.
    fn aside(&self) -> Arc<dyn Progress + Send + Sync> {
        Arc::new(self.second())
    }
}
