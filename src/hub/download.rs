//! One file at a commit: found in the cache, or fetched under a lock into a part file that gets its name when it is checked.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::cache::{blob_name, Lock, Repo};
use super::enabled::Hub;
use super::http::{check_status, Failure, Kind, Patience};
use super::listing::Entry;
use super::verify;
use crate::error::{Error, Result};

/// Files from this size on are announced.
const ANNOUNCED: u64 = 1 << 20;

/// A file as HEAD describes it.
struct Announced {
    etag: Option<String>,
    size: Option<u64>,
}

/// Why a body was not taken.
enum Trouble {
    /// It broke off; what came may be good.
    Broken(String),
    /// It is not what was announced.
    Bad(String),
    /// No reply, or not the right one.
    Failed(Failure),
    /// The disk.
    Disk(Error),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Hub {
    /// A file of a commit, on this machine; `None` where the repository has none of that name. `known`: what the list says of it.
    pub(super) fn file(&self, repo: &Repo, commit: &str, name: &str, known: Option<&Entry>) -> Result<Option<PathBuf>> {
        let pointer = repo.pointer(commit, name);
        if pointer.is_file() {
            match self.trouble_with(repo, commit, name, &pointer, known) {
                None => return Ok(Some(pointer)),
                Some(problem) if self.http().options().offline => {
                    let help = "unset HF_HUB_OFFLINE to fetch it again";
                    return Err(Error::format("file of the hub", pointer, problem, help));
                }
                Some(problem) => {
                    self.http().progress().warn(&format!("{} in the cache is damaged ({problem}): fetching it again", pointer.display()));
                    repo.remove(&pointer)?;
                }
            }
        }
        if self.http().options().offline {
            return Err(self.not_cached(repo, commit, Some(name)));
        }
        let what = format!("{name} of {}", repo.label());
        let url = self.file_url(repo, commit, name);
        let Some(announced) = self.announced(&url).map_err(|f| f.into_error(&what))? else { return Ok(None) };
        self.fetch(repo, commit, name, &url, &announced, &what).map(Some)
    }

    /// What is wrong with a cached file, if anything can be told without reading all of it.
    fn trouble_with(&self, repo: &Repo, commit: &str, name: &str, pointer: &Path, known: Option<&Entry>) -> Option<String> {
        let length = match fs::metadata(pointer) {
            Ok(metadata) => metadata.len(),
            Err(e) => return Some(e.to_string()),
        };
        let mut size = known.and_then(|k| k.size);
        if size.is_none() && !verify::has_form(name) && !self.http().options().offline {
            // Nothing but the size tells whether a text is whole.
            size = self.announced(&self.file_url(repo, commit, name)).ok().flatten().and_then(|a| a.size);
        }
        if let Some(size) = size.filter(|&s| s != length) {
            return Some(format!("it has {length} bytes of {size}"));
        }
        verify::form(name, pointer).err()
    }

    fn announced(&self, url: &str) -> Result<Option<Announced>, Failure> {
        let reply = self.http().head(url, Patience::Full)?;
        if reply.status == 404 {
            let code = reply.header("x-error-code").unwrap_or_default();
            if matches!(code, "" | "EntryNotFound") {
                return Ok(None);
            }
        }
        let reply = check_status(reply, 200)?;
        let size = reply.header("x-linked-size").or(reply.last("content-length")).and_then(|s| s.parse().ok());
        let etag = reply.header("x-linked-etag").or(reply.last("etag")).map(blob_name);
        Ok(Some(Announced { etag, size }))
    }

    fn fetch(&self, repo: &Repo, commit: &str, name: &str, url: &str, announced: &Announced, what: &str) -> Result<PathBuf> {
        let pointer = repo.pointer(commit, name);
        // A server without ETags: the file is called by its address until its bytes are known.
        let etag = announced.etag.clone().unwrap_or_else(|| blob_name(&format!("\0{url}")));
        let progress = self.http().progress();
        let mut told = false;
        let lock = repo.lock(&etag, &pointer, || {
            if !std::mem::replace(&mut told, true) {
                progress.note(&format!("another process is fetching {what}: waiting for it"));
            }
            if progress.is_cancelled() {
                return Err(Error::Cancelled { doing: "a download" });
            }
            Ok(())
        })?;
        let blob = repo.blob(&etag);
        if blob.is_file() {
            // Of another commit, or of a process that was faster.
            let length = blob.metadata().map_err(|e| Error::io("read", &blob, e))?.len();
            if announced.size.is_none_or(|s| s == length) && verify::form(name, &blob).is_ok() && announced.etag.is_some() {
                repo.link(&etag, &pointer)?;
                return Ok(pointer);
            }
            fs::remove_file(&blob).map_err(|e| Error::io("remove", &blob, e))?;
        }
        if announced.size.is_some_and(|s| s >= ANNOUNCED) {
            let size = announced.size.unwrap_or_default() as f64 / 1e6;
            progress.note(&format!("fetching {what} ({size:.1} MB) from {}", super::http::origin(url)));
        }
        match self.attempts(name, url, &etag, announced, &lock) {
            Ok(()) => {}
            Err(Trouble::Failed(f)) if f.kind == Kind::Missing => {
                let problem = format!("HEAD found it, GET did not: {}", f.problem);
                return Err(Failure::new(Kind::Wrong, url, problem).into_error(what));
            }
            Err(Trouble::Failed(f)) => return Err(f.into_error(what)),
            Err(Trouble::Disk(e)) => return Err(e),
            Err(Trouble::Broken(p) | Trouble::Bad(p)) => return Err(Failure::new(Kind::Wrong, url, p).into_error(what)),
        }
        fs::rename(&lock.part, &blob).map_err(|e| Error::io("rename into", &blob, e))?;
        repo.link(&etag, &pointer)?;
        Ok(pointer)
    }

    /// A body that is bad is thrown away and asked for once more; one that broke off is continued, where the server can.
    fn attempts(&self, name: &str, url: &str, etag: &str, announced: &Announced, lock: &Lock) -> Result<(), Trouble> {
        let mut attempt = 0;
        loop {
            let before = part_length(&lock.part);
            let mut ranges = false;
            let outcome = self.body(name, url, etag, announced, lock, &mut ranges);
            let trouble = match outcome {
                Ok(()) => return Ok(()),
                Err(trouble) => trouble,
            };
            let (problem, most) = match &trouble {
                Trouble::Broken(problem) if ranges && part_length(&lock.part) > before => (problem, self.http().options().retries.max(1)),
                Trouble::Broken(problem) => (problem, 1),
                Trouble::Bad(problem) => {
                    remove_part(&lock.part)?;
                    (problem, 1)
                }
                Trouble::Failed(_) | Trouble::Disk(_) => return Err(trouble),
            };
            if attempt >= most {
                return Err(trouble);
            }
            self.http().wait(url, attempt, None, problem)?;
            attempt += 1;
        }
    }

    /// One GET into the part file.
    fn body(&self, name: &str, url: &str, etag: &str, announced: &Announced, lock: &Lock, ranges: &mut bool) -> Result<(), Trouble> {
        let disk = |doing, e| Trouble::Disk(Error::io(doing, &lock.part, e));
        let mut have = part_length(&lock.part);
        if announced.size.is_none_or(|size| have > size) {
            remove_part(&lock.part)?;
            have = 0;
        }
        if announced.size != Some(have) || have == 0 {
            let reply = self.http().get(url, have, Patience::Full)?;
            let reply = match reply.status {
                206 if have > 0 => {
                    let range = reply.last("content-range").unwrap_or_default();
                    let (span, total) = range.trim_start_matches("bytes").trim().split_once('/').unwrap_or_default();
                    let from = span.split('-').next().and_then(|f| f.parse::<u64>().ok());
                    if from != Some(have) || (total != "*" && total.parse().ok() != announced.size) {
                        return Err(Trouble::Bad(format!("the server continued with `{range}` where byte {have} was asked for")));
                    }
                    *ranges = true;
                    reply
                }
                416 => return Err(Trouble::Bad("the server has no such range of it".into())),
                _ => check_status(reply, 200)?,
            };
            if reply.status == 200 {
                have = 0;
                *ranges = reply.last("accept-ranges").is_some_and(|r| r.contains("bytes"));
                let length = reply.last("content-length").and_then(|l| l.parse::<u64>().ok());
                if let (Some(length), Some(size)) = (length, announced.size) {
                    if length != size {
                        return Err(Trouble::Bad(format!("{size} bytes were announced, the reply has {length}")));
                    }
                }
                if reply.last("content-type").is_some_and(|t| t.starts_with("text/html")) && !name.ends_with(".html") {
                    return Err(Trouble::Bad("the reply is an HTML page, not the file".into()));
                }
            }
            let out = File::options().create(true).write(true).truncate(have == 0).append(have > 0).open(&lock.part);
            let mut out = out.map_err(|e| disk("open", e))?;
            self.http().progress().begin(name.rsplit('/').next().unwrap_or(name), announced.size, "bytes");
            let copied = self.copy(reply.body, &mut out, url, announced, lock, &mut have);
            self.http().progress().end();
            copied?;
            if let Some(size) = announced.size.filter(|&s| s > have) {
                return Err(Trouble::Broken(broke_off(have, Some(size), "the connection ended")));
            }
            out.sync_all().map_err(|e| disk("sync", e))?;
        }
        if etag.len() == 64 && announced.etag.is_some() && etag.bytes().all(|b| b.is_ascii_hexdigit()) {
            let found = sha256(&lock.part).map_err(|e| disk("read", e))?;
            if !found.eq_ignore_ascii_case(etag) {
                return Err(Trouble::Bad(format!("its SHA-256 is {found}, the hub says {etag}")));
            }
        }
        verify::form(name, &lock.part).map_err(Trouble::Bad)
    }

    /// The bytes of a reply to the end of the part file; `have` counts.
    fn copy(&self, body: ureq::Body, out: &mut File, url: &str, announced: &Announced, lock: &Lock, have: &mut u64) -> Result<(), Trouble> {
        let progress = self.http().progress();
        progress.advance(*have);
        let mut input = body.into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0u8; 256 << 10];
        loop {
            if progress.is_cancelled() {
                return Err(Failure::new(Kind::Cancelled, url, "interrupted").into());
            }
            let n = match input.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) => return Err(Trouble::Broken(broke_off(*have, announced.size, &e.to_string()))),
            };
            *have += n as u64;
            if let Some(size) = announced.size.filter(|&size| *have > size) {
                return Err(Trouble::Bad(format!("it is longer than the {size} bytes announced")));
            }
            out.write_all(&buffer[..n]).map_err(|e| Trouble::Disk(Error::io("write", &lock.part, e)))?;
            progress.advance(n as u64);
        }
    }
}

fn broke_off(have: u64, size: Option<u64>, why: &str) -> String {
    match size {
        Some(size) => format!("the reply broke off after {have} of {size} bytes ({why})"),
        None => format!("the reply broke off after {have} bytes ({why})"),
    }
}

fn part_length(part: &Path) -> u64 {
    part.metadata().map_or(0, |m| m.len())
}

fn remove_part(part: &Path) -> Result<(), Trouble> {
    match fs::remove_file(part) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Trouble::Disk(Error::io("remove", part, e))),
        _ => Ok(()),
    }
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    std::io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
