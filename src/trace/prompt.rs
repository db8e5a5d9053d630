//! A text as a host reads it: token ids, and the positions that are masked as a harvest masks them.

use crate::corpus::{Bos, Tokenizer};
use crate::error::{Error, Result};
use crate::host::HostInfo;

/// How a text becomes tokens, and which of them are masked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Does the text begin with BOS?
    pub bos: Bos,
    /// Are special tokens (BOS, end, unknown, ...) encoded and changed like others?
    pub keep_special: bool,
    /// Is the first token, where it is not special, encoded and changed like others?
    pub keep_first: bool,
}

/// Token ids of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// What was read.
    pub text: String,
    /// Token ids, `[t]`, at least one.
    pub ids: Vec<u32>,
    /// Each token as the vocabulary spells it, `[t]`.
    pub tokens: Vec<String>,
    /// The rule that masks a position, `[t]`: `special` or `first`; `None` where a harvest would write the row.
    pub masked: Vec<Option<&'static str>>,
    /// How it was read: what is written after it is masked likewise.
    pub reading: Reading,
}

impl Prompt {
    /// Reads a text.
    ///
    /// # Errors
    /// A text without tokens, one that is longer than the host's context, ids that the host does not know.
    pub fn new(text: &str, host: &HostInfo, tokenizer: &Tokenizer, reading: Reading) -> Result<Self> {
        let ids = tokenizer.encode(text, reading.bos)?;
        if ids.is_empty() {
            return Err(Error::request("the text holds no token", "pass a text of at least one word"));
        }
        if ids.len() > host.n_context {
            let problem = format!("the text has {} tokens, and {} sees {} at once", ids.len(), host.name, host.n_context);
            return Err(Error::request(problem, "pass shorter texts, one by one"));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= host.vocab_size) {
            let problem = format!("the tokenizer says {id}, and {} knows ids below {}", host.name, host.vocab_size);
            return Err(Error::request(problem, "use the tokenizer that belongs to the model"));
        }
        let masked = (0..).zip(&ids).map(|(at, &id)| mask(at, id, tokenizer, reading)).collect();
        Ok(Self { text: text.to_string(), tokens: ids.iter().map(|&id| spelled(tokenizer, id)).collect(), ids, masked, reading })
    }
}

/// The rule that masks a token at a position of its context, if one does.
pub(crate) fn mask(at: usize, id: u32, tokenizer: &Tokenizer, reading: Reading) -> Option<&'static str> {
    match tokenizer.is_special(id) {
        true => (!reading.keep_special).then_some("special"),
        false => (at == 0 && !reading.keep_first).then_some("first"),
    }
}

/// A token as the vocabulary spells it; `#id` for one without a spelling.
pub(crate) fn spelled(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.token(id).unwrap_or_else(|| format!("#{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{self, LoadOptions};

    #[test]
    fn masks_are_those_of_a_harvest() {
        let host = host::load("fable", &LoadOptions::default()).unwrap();
        let (info, tokenizer) = (host.info(), Tokenizer::fable().unwrap());
        let p = Prompt::new("tom xyzzy met", info, &tokenizer, Reading::default()).unwrap();
        assert_eq!((p.ids.len(), p.tokens[0].as_str(), p.tokens[1].as_str()), (4, "<bos>", "tom"));
        assert_eq!(p.masked, [Some("special"), None, Some("special"), None]);
        let bare = Reading { bos: Bos::Never, ..Reading::default() };
        assert_eq!(Prompt::new("tom met", info, &tokenizer, bare).unwrap().masked, [Some("first"), None]);
        let all = Reading { keep_special: true, keep_first: true, ..bare };
        assert_eq!(Prompt::new("tom xyzzy", info, &tokenizer, all).unwrap().masked, [None, None]);
        assert!(Prompt::new("", info, &tokenizer, bare).is_err());
        let long = "tom ".repeat(info.n_context + 1);
        assert!(Prompt::new(&long, info, &tokenizer, bare).unwrap_err().to_string().contains("at once"));
    }
}
