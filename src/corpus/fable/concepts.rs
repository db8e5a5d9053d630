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
/// Each is a function of the words up to and including its own, and each changes what may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Context {
    Quote,
    Question,
    Negation,
    TensePast,
    TensePresent,
    VerbDuePast,
    VerbDuePresent,
    NumberSingular,
    NumberPlural,
    MoodHappy,
    MoodSad,
    FeelingDueHappy,
    FeelingDueSad,
    Opening,
    Middle,
    Ending,
    ReferentPerson,
    ReferentAnimal,
    ReferentFirst,
    ReferentSecond,
    SubjectPerson,
    SubjectAnimal,
    SubjectFirst,
    SubjectSecond,
    SpeakerFirst,
    SpeakerSecond,
    RoleSubject,
    RoleObject,
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
pub(super) const CONTEXTUAL: [(&str, &str); 30] = [
    ("quote", "from an opening quotation mark to before the closing one; the speaker's own words, closed later"),
    ("question", "inside a quoted question, before its mark; it must end in `?`"),
    ("negation", "after `not`, to the end of its clause; licenses `any`, `or`, `either` where else `some`, `and`, `too` stand"),
    ("tense.past", "narration of a story told in the past, from its first verb on"),
    ("tense.present", "narration of a story told in the present, from its first verb on"),
    ("verb-due.past", "a complete subject of a past story, or a place inside it: a past verb may follow"),
    ("verb-due.present", "a complete subject of a present story, or a place inside it: a present verb may follow"),
    ("number.singular", "narration after a singular subject, to the end of the sentence; decides verbs, `was`, `his`"),
    ("number.plural", "narration after a plural subject, to the end of the sentence; decides verbs, `were`, `their`"),
    ("mood.happy", "a happy story, after the weather has told; decides feelings, manners and the ending"),
    ("mood.sad", "a sad story, after the weather has told; decides feelings, manners and the ending"),
    ("feeling-due.happy", "a word of a happy story that a feeling or a manner may follow"),
    ("feeling-due.sad", "a word of a sad story that a feeling or a manner may follow"),
    ("place.opening", "the first sentence, which names the cast"),
    ("place.middle", "the wishes and what happens"),
    ("place.ending", "the last sentence, which decides the wish of its subject"),
    ("referent.person", "a pronoun that means a person or people"),
    ("referent.animal", "a pronoun that means an animal or animals"),
    ("referent.first", "a pronoun that means the character named first"),
    ("referent.second", "a pronoun that means the character named second"),
    ("subject.person", "narration after a subject that is a person or people; decides what it can do"),
    ("subject.animal", "narration after a subject that is an animal or animals; decides what it can do"),
    ("subject.first", "narration after a subject that was named first; decides whose wish is meant"),
    ("subject.second", "narration after a subject that was named second; decides whose wish is meant"),
    ("speaker.first", "quoted words of the character named first"),
    ("speaker.second", "quoted words of the character named second"),
    ("role.subject", "a being's noun or name that is the subject of its clause; a verb is due"),
    ("role.object", "a being's noun or name that is the object of its clause; no verb is due"),
    ("wish.first", "a noun that is what the character named first wishes for"),
    ("wish.second", "a noun that is what the character named second wishes for"),
];
