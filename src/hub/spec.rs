//! How people write a model or a dataset of the hub: `gpt2`, `org/name@revision`, `hf:org/name@revision:split`.

use crate::error::{Error, Result};

/// `name`, `org/name` or either with `@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// Hub id.
    pub id: String,
    /// Branch, tag or commit; `None`: `main`.
    pub revision: Option<String>,
}

/// `org/name/folder/file`, with `@revision` after the name where it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderSpec {
    /// Hub id, of two parts.
    pub id: String,
    /// Branch, tag or commit without a slash; `None`: `main`.
    pub revision: Option<String>,
    /// Folder or file in it, without slashes at its ends; may be empty.
    pub path: String,
}

/// `hf:org/name`, with `@revision` and `:split` where they matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetSpec {
    /// Hub id.
    pub id: String,
    /// Branch, tag or commit; `None`: the hub's own Parquet conversion where there is one, else `main`.
    pub revision: Option<String>,
    /// Split; `None`: `train`.
    pub split: Option<String>,
}

const MODEL_HELP: &str = "write name, org/name or org/name@revision; or name a folder with config.json and model.safetensors, or `fable`";
const DATASET_HELP: &str = "write hf:org/name, hf:org/name:split or hf:org/name@revision:split";

impl ModelSpec {
    /// Reads it; a leading `hf:` may say that no folder is meant.
    ///
    /// # Errors
    /// What can be no hub id.
    pub fn parse(text: &str) -> Result<Self> {
        let bare = text.strip_prefix("hf:").unwrap_or(text);
        let (id, revision) = split_revision(bare);
        match (is_id(id), revision.is_none_or(is_revision)) {
            (true, true) => Ok(Self { id: id.to_string(), revision: revision.map(str::to_string) }),
            (false, _) => Err(Error::request(format!("there is no model folder `{text}`, and that is no hub id"), MODEL_HELP)),
            (_, false) => Err(Error::request(format!("`{text}`: that is no revision"), MODEL_HELP)),
        }
    }
}

impl FolderSpec {
    /// Reads it; a leading `hf:` may say that no folder of this machine is meant.
    ///
    /// # Errors
    /// What can be no hub id with a path.
    pub fn parse(text: &str) -> Result<Self> {
        const HELP: &str = "write org/name, org/name/folder or org/name@revision/folder";
        let bare = text.strip_prefix("hf:").unwrap_or(text).trim_end_matches('/');
        let mut parts = bare.splitn(3, '/');
        let (org, name, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (name, revision) = split_revision(name);
        let id = format!("{org}/{name}");
        let safe = path.is_empty() || path.split('/').all(|p| !p.is_empty() && p != "." && p != ".." && !p.contains(['\\', '\0']));
        if !is_id(&id) || !safe || !revision.is_none_or(is_revision) {
            return Err(Error::request(format!("there is no file or folder `{text}`, and that is no folder of the hub"), HELP));
        }
        Ok(Self { id, revision: revision.map(str::to_string), path: path.to_string() })
    }
}

impl DatasetSpec {
    /// Reads it, `hf:` included.
    ///
    /// # Errors
    /// What can be no dataset.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |problem: String| Err(Error::config("corpus.source", format!("`{text}` {problem}"), DATASET_HELP));
        let Some(bare) = text.strip_prefix("hf:") else { return bad("does not begin with `hf:`".into()) };
        let (head, split) = match bare.rsplit_once(':') {
            Some((head, split)) => (head, Some(split)),
            None => (bare, None),
        };
        let (id, revision) = split_revision(head);
        if !is_id(id) {
            return bad(format!("names no dataset: `{id}` is no hub id"));
        }
        if !revision.is_none_or(is_revision) {
            return bad("names no revision after the @".into());
        }
        if !split.is_none_or(|s| !s.is_empty() && s.chars().all(|c| c.is_alphanumeric() || "._-".contains(c))) {
            return bad("names no split after the colon (slices of splits are not read: use --n-tokens)".into());
        }
        Ok(Self { id: id.to_string(), revision: revision.map(str::to_string), split: split.map(str::to_string) })
    }
}

fn split_revision(text: &str) -> (&str, Option<&str>) {
    match text.split_once('@') {
        Some((id, revision)) => (id, Some(revision)),
        None => (text, None),
    }
}

/// As the hub allows: one or two parts of letters, digits, `-`, `_`, `.`.
fn is_id(id: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && !p.starts_with(['-', '.'])
            && !p.ends_with(['-', '.'])
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    id.len() <= 96 && id.split('/').count() <= 2 && id.split('/').all(part) && !id.contains("--") && !id.contains("..")
}

/// Git's rules, as far as they keep a revision from being anything but a path below `refs`.
fn is_revision(revision: &str) -> bool {
    let part = |p: &str| !p.is_empty() && !p.starts_with('.') && !p.contains("..");
    revision.split('/').all(part) && !revision.contains(|c: char| c.is_control() || c.is_whitespace() || "\\~^:?*[@".contains(c))
}

/// A full commit hash, which needs no looking up.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_datasets_as_people_write_them() {
        let model = |t: &str| ModelSpec::parse(t).map(|m| (m.id, m.revision)).ok();
        assert_eq!(model("gpt2"), Some(("gpt2".into(), None)));
        assert_eq!(model("hf:acme/tiny@v1.0"), Some(("acme/tiny".into(), Some("v1.0".into()))));
        assert_eq!(model("a/b@refs/pr/3").unwrap().1.as_deref(), Some("refs/pr/3"));
        for wrong in ["", "a/b/c", "./x", "../x", "/abs", "a//b", "a b", "a/b@", "a@../x", "a/-b", "x\\y", "a/b@x..y"] {
            assert!(ModelSpec::parse(wrong).is_err(), "{wrong}");
        }
        let folder = |t: &str| FolderSpec::parse(t).map(|f| (f.id, f.revision, f.path)).ok();
        assert_eq!(folder("acme/saes@v1/blocks.5/x"), Some(("acme/saes".into(), Some("v1".into()), "blocks.5/x".into())));
        assert_eq!(folder("hf:acme/saes/"), Some(("acme/saes".into(), None, String::new())));
        for wrong in ["acme", "./x", "../x/y", "acme/saes/../y", "acme/saes//y", "/abs/x", "acme/saes@/y"] {
            assert!(FolderSpec::parse(wrong).is_err(), "{wrong}");
        }
        let data = |t: &str| DatasetSpec::parse(t).map(|d| (d.id, d.revision, d.split)).ok();
        assert_eq!(data("hf:org/name"), Some(("org/name".into(), None, None)));
        assert_eq!(data("hf:name:test"), Some(("name".into(), None, Some("test".into()))));
        assert_eq!(
            data("hf:o/n@refs/convert/parquet:validation"),
            Some(("o/n".into(), Some("refs/convert/parquet".into()), Some("validation".into())))
        );
        for wrong in ["org/name", "hf:", "hf:a/b:", "hf:a/b:train[:10%]", "hf:a/b@:x", "hf:../b", "hf:a/b/c"] {
            assert!(DatasetSpec::parse(wrong).is_err(), "{wrong}");
        }
        assert!(is_commit(&"a1".repeat(20)) && !is_commit("main") && !is_commit(&"G".repeat(40)));
    }
}
