//! Fable: a small language of English-like stories in which everything that can be known about a token is known.
//!
//! A story names two characters, says what each wishes for, tells what happens, and ends well or badly. Every token carries labels
//! for [`concepts`]: sets of words (colours), nodes of a tree (`animal/mammal/dog`), and *contextual* ones, where the same word occurs with
//! and without the label (inside a quotation, after a plural subject, in a sad story, a pronoun that means an animal). Each contextual
//! concept decides something that follows, so a language model must track it.
//!
//! Every random choice of the grammar is a choice of the next word, so [`Story::nats`] is exactly `-ln p(token | tokens before)`: no model
//! has a lower expected loss, and the excess of a model's loss over it is a Kullback-Leibler divergence.
//!
//! ```
//! use lapidary::corpus::fable;
//! let story = fable::story(0, 0);
//! assert_eq!(story.tokens.len(), story.labels.len());
//! assert_eq!(fable::encode(&fable::text(&story)).unwrap(), story.tokens);
//! ```
//!
//! Ids: 0 `<pad>`, 1 `<bos>`, 2 `<eos>`, 3 `<unk>`, then words. A story begins with `<bos>`; `<eos>` is not part of it (the built-in host
//! has learnt to say it after the last full stop). Not for: training the host (`examples/train_host.rs`) or measuring what a
//! dictionary recovers (`score::concepts`).

mod concepts;
mod grammar;
mod phrases;
mod words;
mod writer;

#[cfg(test)]
mod tests;

pub use concepts::{Class, Concept, Labels};

use crate::rng::Rng;
use concepts::Context;

/// Padding; never in a story.
pub const PAD: u32 = 0;
/// Begins every story.
pub const BOS: u32 = 1;
/// Follows every story in the host's training; not part of one.
pub const EOS: u32 = 2;
/// Anything that is no word of the language; never in a story.
pub const UNK: u32 = 3;
/// No story is longer, `<bos>` included.
pub const MAX_TOKENS: usize = 126;

/// One story. The three lists have one entry per token.
#[derive(Debug, Clone, PartialEq)]
pub struct Story {
    /// Token ids; the first is [`BOS`].
    pub tokens: Vec<u32>,
    /// What holds at each token: bit `i` for `concepts()[i]`. A function of the tokens up to and including this one.
    pub labels: Vec<Labels>,
    /// `-ln p(token | tokens before)` under the grammar, in nats; 0 where the token could not be otherwise.
    pub nats: Vec<f32>,
}

/// All words, by id.
pub fn vocabulary() -> &'static [&'static str] {
    &words::Lexicon::get().words
}

/// All concepts; at most 128. Contextual ones come first.
pub fn concepts() -> &'static [Concept] {
    &words::Lexicon::get().concepts
}

/// Index of a concept by name.
pub fn concept(name: &str) -> Option<usize> {
    concepts().iter().position(|c| c.name == name)
}

/// Story `index` of the endless sequence that `seed` names. The same arguments give the same story everywhere.
pub fn story(seed: u64, index: u64) -> Story {
    let writer = writer::Writer::new(Rng::stream(seed, "fable", index));
    grammar::Teller { w: writer, cast: Vec::new(), topic: None, happy: true, past: None, part: Context::PlaceOpening }.tell().finish()
}

/// The words of a story, separated by spaces, without `<bos>`.
pub fn text(story: &Story) -> String {
    let vocabulary = vocabulary();
    let words: Vec<_> = story.tokens.iter().filter(|&&t| t != BOS).map(|&t| vocabulary[t as usize]).collect();
    words.join(" ")
}

/// `<bos>` and the ids of words separated by white space; `None` if one is no word of the language.
pub fn encode(text: &str) -> Option<Vec<u32>> {
    let lexicon = words::Lexicon::get();
    std::iter::once(Some(BOS)).chain(text.split_whitespace().map(|word| lexicon.find(word))).collect()
}
