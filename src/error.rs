//! The one error type: every message says what was being done, what was found, and what to do next (`help:`).
//!
//! Not for: printing or exit codes' meaning to a shell, which is `main.rs`. There is no `From<std::io::Error>` on purpose: an I/O
//! error cannot lack its path.

use std::path::{Path, PathBuf};

/// `Result` with the crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, as sentences with a way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // === the request is wrong (exit code 2) ===
    /// A configuration key with an impossible or unknown value.
    #[error("config `{key}`: {problem}\n  help: {help}")]
    Config {
        /// Dotted key, as in `train.lr`.
        key: String,
        /// What is wrong with it.
        problem: String,
        /// What to write instead.
        help: String,
    },
    /// A request that cannot be met as given, and that is no single configuration key.
    #[error("{problem}\n  help: {help}")]
    Request {
        /// What was asked and why it cannot be.
        problem: String,
        /// What to ask instead.
        help: String,
    },
    /// A hook point the host does not have.
    #[error("no hook point `{given}` in {host}\n  help: it has {available}")]
    UnknownHookPoint {
        /// As typed.
        given: String,
        /// The host's name.
        host: String,
        /// The ones that exist.
        available: String,
    },
    /// A width that does not match.
    #[error("{what} is {got} wide, {expected} expected\n  help: {help}")]
    Width {
        /// What has the wrong width.
        what: String,
        /// The width that was needed.
        expected: usize,
        /// The width that was found.
        got: usize,
        /// The way out.
        help: String,
    },
    /// Something that is not supported, with what to do instead.
    #[error("{by} cannot hold {what}\n  help: {instead}")]
    Unsupported {
        /// Who cannot.
        by: String,
        /// What it cannot hold or do.
        what: String,
        /// What to do instead.
        instead: String,
    },
    /// An output folder with something in it.
    #[error("{path} is not empty\n  help: pass another --out, --overwrite to replace it, or --resume (harvest, train) to go on with it", path = path.display())]
    OutputNotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The CUDA backend cannot be used, or failed.
    #[error("CUDA: {reason}\n  help: {help}")]
    Cuda {
        /// Why.
        reason: String,
        /// The way out.
        help: String,
    },

    // === the input or the run failed (exit code 3) ===
    /// A file that is not what it says it is.
    #[error("{path}: not a readable {format}: {problem}\n  help: {help}", path = path.display())]
    Format {
        /// What was expected, in the user's words ("shard", "dictionary", "tokenizer").
        format: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The way out.
        help: String,
    },
    /// Something that could not be fetched, or is not what the server announced.
    #[error("{url}: {problem}\n  help: {help}")]
    Download {
        /// The address.
        url: String,
        /// What went wrong.
        problem: String,
        /// The way out.
        help: String,
    },
    /// NaN or infinity in data that must be finite.
    #[error("{what} holds {count} values that are NaN or infinite (first at {place})\n  help: {help}")]
    NotFinite {
        /// What holds them.
        what: String,
        /// How many.
        count: usize,
        /// Where the first one is.
        place: String,
        /// The way out.
        help: String,
    },
    /// Training blew up.
    #[error("loss became {loss} at step {step}\n  help: lower `train.lr` (now {lr:e}) or raise `train.warmup_fraction`; the last checkpoint is intact")]
    Diverged {
        /// Optimiser step, from 1.
        step: u64,
        /// The loss or gradient norm seen.
        loss: f64,
        /// Learning rate at that step.
        lr: f64,
    },
    /// Ctrl-C, at a safe point.
    #[error("interrupted {doing}; what was finished so far is kept\n  help: run the same command with --resume to go on")]
    Interrupted {
        /// What was interrupted.
        doing: &'static str,
    },
    /// Ctrl-C during work that writes nothing until it is done.
    #[error("interrupted {doing}; nothing was written\n  help: run the same command again")]
    Cancelled {
        /// What was interrupted.
        doing: &'static str,
    },
    /// An I/O error, with its path.
    #[error("cannot {doing} {path}: {source}\n  help: {help}", path = path.display(), help = io_help(source))]
    Io {
        /// A verb: "read", "create", "rename".
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A stated requirement did not hold (exit code 1).
    #[error("requirement not met: {0}")]
    Requirement(String),
}

impl Error {
    /// The only way in for I/O errors.
    pub fn io(doing: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { doing, path: path.as_ref().to_path_buf(), source }
    }

    /// A wrong configuration value.
    pub fn config(key: impl Into<String>, problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Config { key: key.into(), problem: problem.into(), help: help.into() }
    }

    /// A request that cannot be met.
    pub fn request(problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Request { problem: problem.into(), help: help.into() }
    }

    /// A file that is not a readable `format`.
    pub fn format(format: &'static str, path: impl AsRef<Path>, problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Format { format, path: path.as_ref().to_path_buf(), problem: problem.into(), help: help.into() }
    }

    /// The process's exit code: 1 a stated requirement failed, 2 the request is wrong, 3 the run failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Requirement(_) => 1,
            Self::Config { .. }
            | Self::Request { .. }
            | Self::UnknownHookPoint { .. }
            | Self::Width { .. }
            | Self::Unsupported { .. }
            | Self::OutputNotEmpty { .. }
            | Self::Cuda { .. } => 2,
            // A path that is not there is a wrong request, not a failed run.
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 2,
            _ => 3,
        }
    }
}

/// What to do about an I/O error, by its kind.
fn io_help(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => "check the path: there is no such file or folder",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "check who may read and write there, or choose another folder",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "free some disk space, or choose another --out; harvest and train go on with --resume"
        }
        _ => "check the disk and the path, then run the command again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_errors_carry_path_remedy_and_code() {
        let missing = Error::io("read", "a/b", std::io::Error::from(std::io::ErrorKind::NotFound));
        assert!(missing.to_string().contains("cannot read a/b") && missing.to_string().contains("help: check the path"));
        assert_eq!(missing.exit_code(), 2);
        assert_eq!(Error::io("write", "a", std::io::Error::from(std::io::ErrorKind::StorageFull)).exit_code(), 3);
        assert_eq!(Error::Requirement("fvu".into()).exit_code(), 1);
    }
}
