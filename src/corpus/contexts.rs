//! Documents to contexts: what a host sees at once, with the tokens whose rows are not to be written marked by rule.
//!
//! A context holds tokens of one document; long documents are cut, and documents never attend to each other. Not for: packing several
//! documents into one context, which no attention mask here supports yet.

use std::collections::BTreeSet;

use super::{Bos, Content, Corpus, Documents, Tokenizer};
use crate::error::{Error, Result};

/// Why a token's row is not written, as far as the tokens alone tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mask {
    /// It is written.
    Keep,
    /// First token of a token-id document, dropped on request.
    DropBos,
    /// A special token: BOS, end, unknown, ...
    Special,
    /// First token of a context that does not begin with a special token: hosts park attention there.
    First,
}

/// The token ids that count as special.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Specials(BTreeSet<u32>);

impl Specials {
    /// Those that the tokenizer knows.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        Self(tokenizer.special_ids().collect())
    }

    /// These.
    pub fn ids(ids: impl IntoIterator<Item = u32>) -> Self {
        Self(ids.into_iter().collect())
    }

    /// Is it one?
    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }
}

/// How to make contexts.
#[derive(Debug, Clone)]
pub struct ContextConfig {
    /// Most tokens of a context, BOS included.
    pub context: usize,
    /// BOS of text documents. Token ids get nothing added.
    pub bos: Bos,
    /// Mask the first token of token-id documents.
    pub drop_bos: bool,
    /// Leave special tokens unmasked.
    pub keep_special: bool,
    /// Leave first tokens without BOS unmasked.
    pub keep_first: bool,
    /// Ids the host knows: 0..this.
    pub vocab_size: usize,
    /// What counts as special.
    pub specials: Specials,
}

/// A place between two contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// Document that comes next.
    pub document: u64,
    /// Its first token that was not read, from 0.
    pub token: u32,
}

/// Some tokens of one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Ordinal of the document.
    pub doc_id: u64,
    /// Position of `ids[0]` in the document.
    pub start: u32,
    /// Token ids, `[n]`, at least one.
    pub ids: Vec<u32>,
    /// Rule per token, `[n]`.
    pub masked: Vec<Mask>,
    /// Where the next context begins.
    pub end: Place,
}

/// The contexts of a corpus, in order.
pub struct Contexts<'a> {
    documents: Documents,
    tokenizer: Option<&'a Tokenizer>,
    config: ContextConfig,
    /// The document being cut: ordinal, ids, next token, were they given as ids?
    current: Option<(u64, Vec<u32>, usize, bool)>,
    /// Tokens to pass over in the first document.
    skip: u32,
    failed: bool,
}

impl<'a> Contexts<'a> {
    /// Contexts from a place on: [`Place::default`] is the beginning.
    ///
    /// # Errors
    /// When a text corpus comes without a tokenizer, the context is empty, or the corpus cannot be read.
    pub fn new(corpus: &Corpus, tokenizer: Option<&'a Tokenizer>, config: ContextConfig, from: Place) -> Result<Self> {
        if config.context == 0 {
            return Err(Error::config("harvest.context", "is 0", "give a number of tokens, such as 128"));
        }
        if corpus.kind() == super::Kind::Text && tokenizer.is_none() {
            return Err(Error::request(
                "the corpus is text, and the host has no tokenizer",
                "put tokenizer.json beside the model, or give the corpus as token ids (.u16, .u32, .npy)",
            ));
        }
        let documents = corpus.documents_from(from.document)?;
        Ok(Self { documents, tokenizer, config, current: None, skip: from.token, failed: false })
    }

    fn next_context(&mut self) -> Result<Option<Context>> {
        loop {
            if let Some((doc_id, ids, at, given)) = &mut self.current {
                if *at < ids.len() {
                    let span = *at..ids.len().min(*at + self.config.context);
                    let slice = ids[span.clone()].to_vec();
                    let masked = masks(&self.config, &slice, span.start, *given);
                    let end = if span.end < ids.len() {
                        Place { document: *doc_id, token: span.end as u32 }
                    } else {
                        Place { document: *doc_id + 1, token: 0 }
                    };
                    *at = span.end;
                    return Ok(Some(Context { doc_id: *doc_id, start: span.start as u32, ids: slice, masked, end }));
                }
            }
            let Some(document) = self.documents.next().transpose()? else { return Ok(None) };
            let (ids, given) = match document.content {
                Content::Tokens(ids) => (ids, true),
                Content::Text(text) if text.is_empty() => (Vec::new(), false),
                Content::Text(text) => match self.tokenizer {
                    Some(tokenizer) => (tokenizer.encode(&text, self.config.bos)?, false),
                    None => return Err(Error::request("text without a tokenizer", "give the corpus as token ids")),
                },
            };
            if let Some(at) = ids.iter().position(|&id| id as usize >= self.config.vocab_size) {
                return Err(Error::request(
                    format!(
                        "document {} has the token id {} at position {at}, and the host knows the ids below {}",
                        document.ordinal, ids[at], self.config.vocab_size
                    ),
                    "use the tokenizer that belongs to the host; for token files check their type (u16 or u32)",
                ));
            }
            let at = std::mem::take(&mut self.skip) as usize;
            self.current = Some((document.ordinal, ids, at, given));
        }
    }
}

fn masks(config: &ContextConfig, ids: &[u32], start: usize, given: bool) -> Vec<Mask> {
    let mask = |(i, &id): (usize, &u32)| {
        let special = config.specials.contains(id);
        match () {
            () if config.drop_bos && given && start + i == 0 => Mask::DropBos,
            () if special && !config.keep_special => Mask::Special,
            () if i == 0 && !special && !config.keep_first => Mask::First,
            () => Mask::Keep,
        }
    };
    ids.iter().enumerate().map(mask).collect()
}

impl Iterator for Contexts<'_> {
    type Item = Result<Context>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_context();
        self.failed = next.is_err();
        next.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CorpusConfig, Format};
    use super::*;

    fn config(context: usize) -> ContextConfig {
        ContextConfig {
            context,
            bos: Bos::Tokenizer,
            drop_bos: false,
            keep_special: false,
            keep_first: false,
            vocab_size: 100,
            specials: Specials::ids([1, 2]),
        }
    }

    fn corpus(dir: &std::path::Path, ids: &[u32]) -> Corpus {
        let path = dir.join("x.u32");
        std::fs::write(&path, ids.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()).unwrap();
        let config = CorpusConfig { doc_token: Some(1), format: Some(Format::U32), ..CorpusConfig::new(path.to_string_lossy()) };
        Corpus::open(&config).unwrap()
    }

    const IDS: [u32; 12] = [1, 10, 11, 2, 12, 13, 1, 20, 1, 30, 31, 32];

    #[test]
    fn documents_are_cut_and_masked() {
        use Mask::{DropBos, First, Keep, Special};
        let dir = tempfile::tempdir().unwrap();
        let corpus = corpus(dir.path(), &IDS);
        let read =
            |config: ContextConfig| Contexts::new(&corpus, None, config, Place::default()).unwrap().map(Result::unwrap).collect::<Vec<_>>();
        let contexts = read(config(4));
        let seen: Vec<_> = contexts.iter().map(|c| (c.doc_id, c.start, c.ids.clone(), c.masked.clone())).collect();
        assert_eq!(
            seen,
            [
                (0, 0, vec![1, 10, 11, 2], vec![Special, Keep, Keep, Special]),
                (0, 4, vec![12, 13], vec![First, Keep]),
                (1, 0, vec![1, 20], vec![Special, Keep]),
                (2, 0, vec![1, 30, 31, 32], vec![Special, Keep, Keep, Keep]),
            ]
        );
        let all = |config: ContextConfig| read(config).into_iter().flat_map(|c| c.masked).collect::<Vec<_>>();
        let kept = all(ContextConfig { keep_special: true, keep_first: true, ..config(4) });
        assert!(kept.iter().all(|m| *m == Keep));
        let dropped = all(ContextConfig { drop_bos: true, keep_special: true, ..config(4) });
        assert_eq!(dropped[..6], [DropBos, Keep, Keep, Keep, First, Keep]);
    }

    #[test]
    fn every_place_resumes() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = corpus(dir.path(), &IDS);
        let whole: Vec<_> = Contexts::new(&corpus, None, config(2), Place::default()).unwrap().map(Result::unwrap).collect();
        for (i, context) in whole.iter().enumerate() {
            let rest: Vec<_> = Contexts::new(&corpus, None, config(2), context.end).unwrap().map(Result::unwrap).collect();
            assert_eq!(rest, whole[i + 1..]);
        }
    }

    #[test]
    fn ids_beyond_the_vocabulary_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = corpus(dir.path(), &[1, 7, 100]);
        let e = Contexts::new(&corpus, None, config(8), Place::default()).unwrap().next().unwrap().unwrap_err().to_string();
        assert!(e.contains("id 100 at position 2") && e.contains("below 100"), "{e}");
    }
}
