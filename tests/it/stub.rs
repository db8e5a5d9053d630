//! A hub on this machine that answers as the real one does, and misbehaves where a test says so.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

/// What was asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    pub headers: HashMap<String, String>,
}

impl Request {
    pub fn is(&self, method: &str, ending: &str) -> bool {
        self.method == method && self.path.ends_with(ending)
    }
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Only so many bytes of the body are sent before the connection is closed.
    pub cut: Option<usize>,
    /// Silence before the answer.
    pub pause: Duration,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(n, _)| n != name);
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

type Hook = Box<dyn FnMut(&Request, Reply) -> Reply + Send>;

/// What it serves.
pub struct State {
    /// "acme/tiny" or "datasets/acme/stories", then the commit: files.
    repos: HashMap<String, HashMap<String, BTreeMap<String, Vec<u8>>>>,
    /// Repository and branch: commit.
    branches: HashMap<(String, String), String>,
    pub log: Vec<Request>,
    hook: Option<Hook>,
    /// Are there /api pages?
    pub api: bool,
    /// Are Range requests honoured?
    pub ranges: bool,
    /// Entries per page of a tree.
    pub page: usize,
}

pub struct Stub {
    pub url: String,
    state: Arc<Mutex<State>>,
}

pub fn commit(n: u8) -> String {
    format!("{n:02x}").repeat(20)
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// As the hub does it: large files by their SHA-256, the others by 40 digits.
fn etag(name: &str, bytes: &[u8]) -> String {
    let full = sha256(bytes);
    if is_large(name) {
        full
    } else {
        full[..40].to_string()
    }
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".parquet") || name.ends_with(".bin")
}

impl Stub {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state =
            State { repos: HashMap::new(), branches: HashMap::new(), log: Vec::new(), hook: None, api: true, ranges: false, page: 1000 };
        let state = Arc::new(Mutex::new(state));
        let (shared, base) = (state.clone(), url.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, base) = (shared.clone(), base.clone());
                std::thread::spawn(move || serve(stream, &shared, &base));
            }
        });
        Self { url, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Puts files into a repository at commit `n` and lets a branch point to it.
    pub fn push(&self, repo: &str, branch: &str, n: u8, files: &[(&str, Vec<u8>)]) {
        let mut state = self.state();
        let files = files.iter().map(|(name, bytes)| ((*name).to_string(), bytes.clone())).collect();
        state.repos.entry(repo.into()).or_default().insert(commit(n), files);
        state.branches.insert((repo.into(), branch.into()), commit(n));
    }

    /// Every reply goes through it.
    pub fn hook(&self, hook: impl FnMut(&Request, Reply) -> Reply + Send + 'static) {
        self.state().hook = Some(Box::new(hook));
    }

    pub fn behave(&self) {
        self.state().hook = None;
    }

    /// What was asked since the last call, as "METHOD path".
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log).iter().map(|r| format!("{} {}", r.method, r.path)).collect()
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>, base: &str) {
    let mut input = BufReader::new(&stream);
    let mut line = String::new();
    if input.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or("").to_string(), words.next().unwrap_or("").to_string());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.trim().to_lowercase(), value.trim().to_string());
        }
    }
    let request = Request { method, path, headers };
    let reply = {
        let mut state = state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.log.push(request.clone());
        let reply = answer(&state, &request, base);
        match &mut state.hook {
            Some(hook) => hook(&request, reply),
            None => reply,
        }
    };
    std::thread::sleep(reply.pause);
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-length")) {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    let mut out = &stream;
    let _ = out.write_all(head.as_bytes());
    if request.method != "HEAD" {
        let n = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
        let _ = out.write_all(&reply.body[..n]);
    }
    let _ = out.flush();
}

fn answer(state: &State, request: &Request, base: &str) -> Reply {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let path = path.replace("%2F", "/");
    let path = path.trim_start_matches('/');
    let find = |repo: &str, revision: &str| {
        let key = (repo.to_string(), revision.to_string());
        let commit = state.branches.get(&key).cloned().unwrap_or_else(|| revision.to_string());
        state.repos.get(repo).and_then(|r| r.get(&commit)).map(|files| (commit, files))
    };
    if let Some(api) = path.strip_prefix("api/") {
        if !state.api {
            return Reply::status(404);
        }
        let api = api.strip_prefix("models/").unwrap_or(api);
        let missing = |repo: &str| {
            let code = if state.repos.contains_key(repo) { "RevisionNotFound" } else { "RepoNotFound" };
            Reply::status(404).with("X-Error-Code", code)
        };
        if let Some((repo, revision)) = api.split_once("/revision/") {
            return match find(repo, revision) {
                Some((commit, _)) => Reply::status(200).body(json!({ "sha": commit }).to_string()),
                None => missing(repo),
            };
        }
        if let Some((repo, revision)) = api.split_once("/tree/") {
            let Some((_, files)) = find(repo, revision) else { return missing(repo) };
            let from: usize = query.split("cursor=").nth(1).and_then(|c| c.parse().ok()).unwrap_or(0);
            let mut entries = Vec::new();
            for (name, bytes) in files.iter().skip(from).take(state.page) {
                let mut entry = json!({ "type": "file", "path": name, "size": bytes.len(), "oid": sha256(bytes)[..40] });
                if is_large(name) {
                    entry["lfs"] = json!({ "oid": sha256(bytes), "size": bytes.len() });
                }
                entries.push(entry);
            }
            let reply = Reply::status(200).body(serde_json::Value::Array(entries).to_string());
            if from + state.page < files.len() {
                let next = format!("<{base}/{path}?recursive=true&cursor={}>; rel=\"next\"", from + state.page);
                return reply.with("Link", &next);
            }
            return reply;
        }
        return Reply::status(404);
    }
    let Some((repo, rest)) = path.split_once("/resolve/") else { return Reply::status(404) };
    let found = rest.match_indices('/').find_map(|(i, _)| {
        let (commit, files) = find(repo, &rest[..i])?;
        Some((commit, files.get(&rest[i + 1..])?, rest[i + 1..].to_string()))
    });
    let Some((commit, bytes, name)) = found else { return Reply::status(404) };
    let tag = format!("\"{}\"", etag(&name, bytes));
    let mut reply = Reply::status(200).with("ETag", &tag).with("X-Repo-Commit", &commit);
    if request.headers.get("if-none-match") == Some(&tag) {
        reply.status = 304;
        return reply;
    }
    reply.body = bytes.clone();
    if state.ranges {
        reply = reply.with("Accept-Ranges", "bytes");
        let from = request.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        if let Some(from) = from.filter(|&f| f < bytes.len()) {
            reply.status = 206;
            reply.body = bytes[from..].to_vec();
            return reply.with("Content-Range", &format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()));
        }
    }
    reply
}
