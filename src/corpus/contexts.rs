//! Documents to contexts: what a host sees at once, with the tokens whose rows are not to be written marked by rule.
//!
//! A context holds tokens of one document, and long documents are cut. Packed, a context is filled up with the documents that come
//! next, which then attend to those before them; documents of two kinds (training, held-out) never share one.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

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

/// Several documents in one context: which of two kinds a document is of. Contexts hold documents of one kind.
#[derive(Clone)]
pub struct Pack(Arc<dyn Fn(u64) -> bool + Send + Sync>);

impl Pack {
    /// `second`: is the document with this number of the second kind?
    pub fn new(second: impl Fn(u64) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(second))
    }
}

impl fmt::Debug for Pack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pack")
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
    /// Fill contexts up with further documents; `None`: a context holds one document.
    pub pack: Option<Pack>,
}

/// A place between two contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// Document that comes next.
    pub document: u64,
    /// Its first token that was not read, from 0.
    pub token: u32,
    /// Packed contexts: the same for documents of the second kind (document, token); the two above are for the first kind then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<(u64, u32)>,
}

impl Place {
    /// Documents before this one are read to their end.
    pub fn first_document(&self) -> u64 {
        self.second.map_or(self.document, |(document, _)| document.min(self.document))
    }
}

/// What a host sees at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Token ids, `[n]`, at least one.
    pub ids: Vec<u32>,
    /// Ordinal of each token's document, and its position there, `[n]`.
    pub places: Vec<(u64, u32)>,
    /// Rule per token, `[n]`.
    pub masked: Vec<Mask>,
    /// Where the next context begins.
    pub end: Place,
}

/// A context that is being filled.
#[derive(Default)]
struct Open {
    ids: Vec<u32>,
    places: Vec<(u64, u32)>,
    masked: Vec<Mask>,
}

/// A document being cut.
struct Current {
    ordinal: u64,
    ids: Vec<u32>,
    /// Next token.
    at: usize,
    /// Was it given as token ids?
    given: bool,
}

/// The contexts of a corpus, in the order in which they are full.
pub struct Contexts<'a> {
    documents: Documents,
    tokenizer: Option<&'a Tokenizer>,
    config: ContextConfig,
    current: Option<Current>,
    /// By kind; without packing there is one.
    open: [Open; 2],
    /// Where the next context of each kind begins.
    next: [(u64, u32); 2],
    /// Documents seen, for the end.
    seen: u64,
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
        let first = (from.document, from.token);
        let next = [first, from.second.unwrap_or(first)];
        let documents = corpus.documents_from(from.first_document())?;
        let open = [Open::default(), Open::default()];
        Ok(Self { documents, tokenizer, config, current: None, open, next, seen: from.first_document(), failed: false })
    }

    fn kind(&self, document: u64) -> usize {
        self.config.pack.as_ref().map_or(0, |p| usize::from((p.0)(document)))
    }

    fn next_context(&mut self) -> Result<Option<Context>> {
        loop {
            if let Some(mut document) = self.current.take() {
                let kind = self.kind(document.ordinal);
                let open = &mut self.open[kind];
                while document.at < document.ids.len() && open.ids.len() < self.config.context {
                    let (id, at) = (document.ids[document.at], document.at as u32);
                    open.masked.push(mask(&self.config, id, at, open.ids.len(), document.given));
                    open.ids.push(id);
                    open.places.push((document.ordinal, at));
                    document.at += 1;
                }
                let ended = document.at == document.ids.len();
                let full = open.ids.len() == self.config.context || (ended && self.config.pack.is_none() && !open.ids.is_empty());
                let here = if ended { (document.ordinal + 1, 0) } else { (document.ordinal, document.at as u32) };
                if !ended {
                    self.current = Some(document);
                }
                if full {
                    return Ok(Some(self.close(kind, here)));
                }
            }
            if !self.read()? {
                let left = self.open.iter().position(|open| !open.ids.is_empty());
                return Ok(left.map(|kind| self.close(kind, (self.seen, 0))));
            }
        }
    }

    /// The next document; false at the end.
    fn read(&mut self) -> Result<bool> {
        let Some(document) = self.documents.next().transpose()? else { return Ok(false) };
        self.seen = document.ordinal + 1;
        let (first, token) = self.next[self.kind(document.ordinal)];
        if document.ordinal < first {
            // Read already; it comes again because the other kind is further back.
            return Ok(true);
        }
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
        let at = if document.ordinal == first { (token as usize).min(ids.len()) } else { 0 };
        self.current = Some(Current { ordinal: document.ordinal, ids, at, given });
        Ok(true)
    }

    /// Gives out the open context of a kind, whose next one begins `here`.
    fn close(&mut self, kind: usize, here: (u64, u32)) -> Context {
        self.next[kind] = here;
        let mut end = Place { document: here.0, token: here.1, second: None };
        if self.config.pack.is_some() {
            // What the other kind has open is read again from its beginning; where nothing is open, nothing is left before here.
            let other = 1 - kind;
            let up_to_here = (here.0 + u64::from(here.1 > 0), 0);
            self.next[other] = self.open[other].places.first().copied().unwrap_or(self.next[other].max(up_to_here));
            let [first, second] = self.next;
            end = Place { document: first.0, token: first.1, second: Some(second) };
        }
        let Open { ids, places, masked } = std::mem::take(&mut self.open[kind]);
        Context { ids, places, masked, end }
    }
}

/// The rule for a token: `position` in its document, `at` in its context.
fn mask(config: &ContextConfig, id: u32, position: u32, at: usize, given: bool) -> Mask {
    let special = config.specials.contains(id);
    match () {
        () if config.drop_bos && given && position == 0 => Mask::DropBos,
        () if special && !config.keep_special => Mask::Special,
        () if at == 0 && !special && !config.keep_first => Mask::First,
        () => Mask::Keep,
    }
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
            pack: None,
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
        let seen: Vec<_> = contexts.iter().map(|c| (c.places[0].0, c.places[0].1, c.ids.clone(), c.masked.clone())).collect();
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
    fn packed_contexts_are_full_hold_one_kind_and_resume() {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = crate::rng::Rng::stream(0, "pack", 0);
        let mut ids = Vec::new();
        let mut lengths = Vec::new();
        for _ in 0..60 {
            lengths.push(1 + rng.below(9) as u32);
            ids.push(1);
            ids.extend((1..*lengths.last().unwrap()).map(|_| 10 + rng.below(80) as u32));
        }
        let corpus = corpus(dir.path(), &ids);
        for second in [|d: u64| d.is_multiple_of(5), |_| false, |d: u64| d > 40] {
            let packed = ContextConfig { pack: Some(Pack::new(second)), ..config(8) };
            let read = |from| Contexts::new(&corpus, None, packed.clone(), from).unwrap().map(Result::unwrap).collect::<Vec<_>>();
            let whole = read(Place::default());
            // Every token once, in order within a kind; all contexts but the last of each kind full; no two kinds in one.
            let mut places = [Vec::new(), Vec::new()];
            for context in &whole {
                let kind = usize::from(second(context.places[0].0));
                assert!(context.places.iter().all(|p| usize::from(second(p.0)) == kind));
                places[kind].extend(context.places.clone());
                assert!(context.masked[0] != Mask::Keep && context.ids.len() == context.places.len());
            }
            assert!(whole.iter().filter(|c| c.ids.len() < 8).count() <= 2);
            for (kind, places) in places.iter().enumerate() {
                let all = (0..60u64).flat_map(|d| (0..lengths[d as usize]).map(move |t| (d, t)));
                assert!(all.filter(|p| usize::from(second(p.0)) == kind).eq(places.iter().copied()));
            }
            for (i, context) in whole.iter().enumerate() {
                assert_eq!(read(context.end), whole[i + 1..], "after context {i}: {:?}", context.end);
                let first = context.end.first_document();
                assert!(whole[i + 1..].iter().flat_map(|c| &c.places).all(|p| p.0 >= first));
            }
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
