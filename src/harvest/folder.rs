//! The out folder: empty, to be replaced, or to be gone on with.

use std::path::{Path, PathBuf};

use super::state::{Identity, State, STATE_FILE};
use crate::artefact::Mode;
use crate::corpus::planted::TRUTH_FILE;
use crate::error::{Error, Result};
use crate::shard::{Manifest, MANIFEST_FILE};

/// How a run begins.
pub(super) enum Start {
    /// From nothing.
    Fresh,
    /// After the last sealed shard.
    Resume(Box<State>),
    /// There is nothing to do.
    Done(Box<Manifest>),
}

/// Makes the folder ready.
///
/// # Errors
/// As [`Mode`] says; when a harvest of another identity is to be resumed; when the folder cannot be read or changed.
pub(super) fn prepare(out: &Path, mode: Mode, identity: &Identity) -> Result<Start> {
    std::fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
    let entries = list(out)?;
    if entries.is_empty() {
        return Ok(Start::Fresh);
    }
    if mode == Mode::Fresh {
        return Err(Error::OutputNotEmpty { path: out.to_path_buf() });
    }
    if let Some(foreign) = entries.iter().find(|p| !is_ours(p)) {
        return Err(Error::request(
            format!("{} holds {}, which no harvest writes", out.display(), foreign.display()),
            "choose another folder, or move that file away",
        ));
    }
    if mode == Mode::Overwrite {
        clear(out)?;
        return Ok(Start::Fresh);
    }
    if out.join(STATE_FILE).exists() {
        let state = State::load(out)?;
        identity.check_same(&state.identity, out)?;
        // Sealed but not in the state, or not even sealed: the process died in between.
        let known: Vec<PathBuf> = state.writer.files().map(|f| out.join(f)).collect();
        for path in entries.iter().filter(|p| is_shard(p) && !known.contains(p)) {
            std::fs::remove_file(path).map_err(|e| Error::io("remove", path, e))?;
        }
        if let Some(missing) = known.iter().find(|p| !p.exists()) {
            let problem = "it was sealed before the interruption and is gone".to_string();
            return Err(Error::format("shard", missing, problem, "restore it, or begin the harvest again with overwrite"));
        }
        return Ok(Start::Resume(Box::new(state)));
    }
    if out.join(MANIFEST_FILE).exists() {
        let manifest = Manifest::load(out)?;
        let columns = manifest.columns.iter().map(|c| c.column.clone()).collect();
        let (host, tokenizer) = (manifest.host.clone(), manifest.tokenizer.clone());
        let began = Identity { columns, host, tokenizer, corpus: manifest.corpus.clone(), config: manifest.config.clone() };
        identity.check_same(&began, out)?;
        return Ok(Start::Done(Box::new(manifest)));
    }
    // Nothing was sealed before the interruption.
    clear(out)?;
    Ok(Start::Fresh)
}

/// Deletes what a harvest writes; the manifest first, so that nobody takes the rest for a whole.
///
/// # Errors
/// When a file cannot be deleted.
pub(super) fn clear(out: &Path) -> Result<()> {
    let mut entries = list(out)?;
    entries.retain(|p| is_ours(p) && name(p) != "config.toml");
    entries.sort_by_key(|p| (name(p) != MANIFEST_FILE, name(p) != STATE_FILE));
    for path in entries {
        std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(())
}

fn list(out: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(out).map_err(|e| Error::io("list", out, e))? {
        paths.push(entry.map_err(|e| Error::io("list", out, e))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// train-00000.parquet, held-out-00000.parquet, finished or not.
fn is_shard(path: &Path) -> bool {
    let name = name(path);
    let name = name.strip_suffix(".partial").unwrap_or(&name);
    let digits = name.strip_suffix(".parquet").and_then(|n| n.strip_prefix("train-").or_else(|| n.strip_prefix("held-out-")));
    digits.is_some_and(|d| d.len() >= 5 && d.bytes().all(|b| b.is_ascii_digit()))
}

fn is_ours(path: &Path) -> bool {
    let name = name(path);
    let name = name.strip_suffix(".partial").unwrap_or(&name);
    path.is_file() && (is_shard(path) || [MANIFEST_FILE, STATE_FILE, super::timing::TIMING_FILE, "config.toml", TRUTH_FILE].contains(&name))
}
