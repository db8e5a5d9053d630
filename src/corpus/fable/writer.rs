//! Writes one token at a time, with its labels and its cost in nats.
//!
//! The one source of randomness is [`Writer::pick`]: it draws the *next word* and gives back nothing but that word. The state of a story
//! is therefore a function of its words, and the cost of a token is exactly -ln p(token | tokens before), not a bound.

use super::concepts::{Context, Labels};
use super::words::Lexicon;
use super::Story;
use crate::rng::Rng;

/// A story in the making.
pub(super) struct Writer {
    pub lexicon: &'static Lexicon,
    rng: Rng,
    /// Contextual labels that hold for the next token.
    active: Labels,
    story: Story,
}

impl Writer {
    /// An empty story: only the opening mark.
    pub(super) fn new(rng: Rng) -> Self {
        let mut writer =
            Self { lexicon: Lexicon::get(), rng, active: 0, story: Story { tokens: Vec::new(), labels: Vec::new(), nats: Vec::new() } };
        writer.emit(super::BOS, 0.0);
        writer
    }

    pub(super) fn finish(self) -> Story {
        self.story
    }

    /// Draws the next word. Weights need not sum to 1; a word may appear twice (its weights add up).
    pub(super) fn pick(&mut self, options: &[(u32, f64)]) -> u32 {
        let total: f64 = options.iter().map(|o| o.1).sum();
        let mut left = self.rng.uniform() * total;
        let drawn = options.iter().find(|o| {
            left -= o.1;
            left < 0.0
        });
        // Rounding can leave a hair: the last option with weight takes it.
        let (word, _) = *drawn.or(options.iter().rfind(|o| o.1 > 0.0)).expect("every rule offers a word");
        let weight: f64 = options.iter().filter(|o| o.0 == word).map(|o| o.1).sum();
        self.emit(word, (total / weight).ln());
        word
    }

    /// Words that cannot be otherwise.
    pub(super) fn say(&mut self, words: &str) {
        for word in words.split(' ') {
            self.emit(self.lexicon.id(word), 0.0);
        }
    }

    /// A word that cannot be otherwise.
    pub(super) fn say_id(&mut self, word: u32) {
        self.emit(word, 0.0);
    }

    fn emit(&mut self, word: u32, nats: f64) {
        self.story.tokens.push(word);
        self.story.labels.push(self.active | self.lexicon.labels[word as usize]);
        self.story.nats.push(nats as f32);
    }

    /// `context` holds at the token just written.
    pub(super) fn mark(&mut self, context: Context) {
        if let Some(labels) = self.story.labels.last_mut() {
            *labels |= context.bit();
        }
    }

    /// Is `word` the last one written?
    pub(super) fn ends_with(&self, word: &str) -> bool {
        self.story.tokens.last() == Some(&self.lexicon.id(word))
    }

    /// From the next token on, `context` holds or does not.
    pub(super) fn set(&mut self, context: Context, holds: bool) {
        if holds {
            self.active |= context.bit();
        } else {
            self.active &= !context.bit();
        }
    }
}

/// Spreads `weight` evenly over words.
pub(super) fn even(words: &[u32], weight: f64) -> impl Iterator<Item = (u32, f64)> + '_ {
    let each = weight / words.len() as f64;
    words.iter().map(move |&w| (w, each))
}
