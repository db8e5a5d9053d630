//! What is known about each token of a story: the list of concepts, and the contextual ones by name.
//!
//! Not for: which words carry the lexical ones (`words`), nor where the contextual ones hold (`grammar`).

/// Labels of one token: bit `i` is set when `concepts()[i]` holds there.
pub type Labels = u128;

/// How a concept relates to the word it is found on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A set of words: the word alone decides.
    Lexical,
    /// A node of the noun tree (`animal`, `animal/mammal`, `animal/mammal/dog`): the word alone decides, and levels nest.
    Hierarchical,
    /// The same word occurs with and without it: only the words before decide.
    Contextual,
}

impl Class {
    /// All classes, in the order of reports.
    pub const ALL: [Class; 3] = [Class::Lexical, Class::Hierarchical, Class::Contextual];

    /// `lexical`, `hierarchical`, `contextual`.
    pub fn name(self) -> &'static str {
        match self {
            Class::Lexical => "lexical",
            Class::Hierarchical => "hierarchical",
            Class::Contextual => "contextual",
        }
    }
}

/// A concept of the language.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Concept {
    /// Unique name: `colour`, `animal/mammal/dog`, `tense.past`.
    pub name: &'static str,
    /// How it relates to the word.
    pub class: Class,
    /// On which tokens it holds, in a sentence.
    pub meaning: &'static str,
}

/// The contextual concepts; the discriminant is the index in `concepts()`.
///
/// Each is a function of the words up to and including its own, and stands where it changes what may follow: a label on every word of a
/// sad story would ask for something no reader need keep in mind at every word, and would be met by guessing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Context {
    Quote,
    QuoteOpening,
    QuoteEnd,
    Question,
    Negation,
    TensePast,
    TensePresent,
    NumberSingular,
    NumberPlural,
    PhraseSingular,
    PhrasePlural,
    MoodHappy,
    MoodSad,
    PlaceOpening,
    PlaceMiddle,
    PlaceEnding,
    ReferentPerson,
    ReferentAnimal,
    ReferentFirst,
    ReferentSecond,
    SubjectPerson,
    SubjectAnimal,
    WishDueFirst,
    WishDueSecond,
    SpeakerOne,
    SpeakerMany,
    RoleSubject,
    RoleObject,
    RolePlace,
    BeingObject,
    WishFirst,
    WishSecond,
}

impl Context {
    /// The label bit.
    pub(super) const fn bit(self) -> Labels {
        1 << self as u8
    }
}

/// Name and meaning of each `Context`, in its order.
pub(super) const CONTEXTUAL: [(&str, &str); 32] = [
    ("quote", "any word inside a quotation, the opening mark included"),
    ("quote.opening", "a quotation mark that opens; words follow, not a new sentence"),
    ("quote.end", "a full stop inside a quotation; the closing mark follows"),
    ("question", "the last word of a quoted question; `?` follows where else `.` would"),
    ("negation", "a verb, object, feeling or comma under `not`; `any`, `or`, `either` follow where else `some`, `and`, `too` would"),
    ("tense.past", "the end of a subject in a story told in the past; a past verb follows"),
    ("tense.present", "the end of a subject in a story told in the present; a present verb follows"),
    ("number.singular", "a word that does not show number where that of a singular subject decides (`was`, `his`, the verb)"),
    ("number.plural", "a word that does not show number where that of a plural subject decides (`were`, `their`, the verb)"),
    ("phrase.singular", "an adjective in a singular phrase; a singular noun follows"),
    ("phrase.plural", "an adjective in a plural phrase; a plural noun follows"),
    ("mood.happy", "a word of a happy story that a feeling or a manner may follow"),
    ("mood.sad", "a word of a sad story that a feeling or a manner may follow"),
    ("place.opening", "the end of the subject of the first sentence; a meeting follows"),
    ("place.middle", "the end of a subject in the middle of a story; any verb follows, but none that decides a wish"),
    ("place.ending", "the end of the subject of the last sentence; a verb that decides the wish follows"),
    ("referent.person", "a pronoun that means a person or people"),
    ("referent.animal", "a pronoun that means an animal or animals"),
    ("referent.first", "a pronoun that means the character named first"),
    ("referent.second", "a pronoun that means the character named second"),
    ("subject.person", "a place inside a subject, or `will`, where the subject is a person or people; what people do follows"),
    ("subject.animal", "a place inside a subject, or `will`, where the subject is an animal or animals; what it can do follows"),
    ("wish-due.first", "`the` before what the character named first wishes for"),
    ("wish-due.second", "`the` before what the character named second wishes for"),
    ("speaker.one", "an opening quotation mark of a single speaker's statement; `i` may follow"),
    ("speaker.many", "an opening quotation mark of several speakers' statement; `we` may follow"),
    ("role.subject", "an article, numeral or adjective in a subject; a being follows"),
    ("role.object", "an article, quantifier or adjective in an object; a thing, food or being follows"),
    ("role.place", "an article or adjective after a preposition of place; a place follows"),
    ("being.object", "a being's noun or name that is an object; no verb follows"),
    ("wish.first", "a noun that is what the character named first wishes for"),
    ("wish.second", "a noun that is what the character named second wishes for"),
];
