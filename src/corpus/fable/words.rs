//! The words: the vocabulary in id order, the lexical and hierarchical concepts they carry, and the tables the grammar draws from.
//!
//! No noun or adjective begins with a vowel, so `a` never has to be `an`.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::concepts::{Class, Concept, Context, Labels, CONTEXTUAL};

/// Which pronouns a noun takes in the singular; the plural is always `they`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gender {
    He,
    She,
    It,
    /// A person whose name decides.
    Either,
}
use Gender::{Either, He, It, She};

/// Special tokens, at the ids of their positions here.
pub(super) const SPECIAL: [&str; 4] = ["<pad>", "<bos>", "<eos>", "<unk>"];

/// Beings: path in the noun tree, one, several, gender. Sheep, deer, trout and salmon keep their form: only context tells their number.
const BEINGS: &[(&str, &str, &str, Gender)] = &[
    ("animal/mammal/dog", "dog", "dogs", He),
    ("animal/mammal/cat", "cat", "cats", She),
    ("animal/mammal/fox", "fox", "foxes", He),
    ("animal/mammal/cow", "cow", "cows", She),
    ("animal/mammal/bear", "bear", "bears", He),
    ("animal/mammal/mouse", "mouse", "mice", She),
    ("animal/mammal/sheep", "sheep", "sheep", She),
    ("animal/mammal/deer", "deer", "deer", He),
    ("animal/bird/hen", "hen", "hens", She),
    ("animal/bird/crow", "crow", "crows", He),
    ("animal/bird/duck", "duck", "ducks", She),
    ("animal/bird/goose", "goose", "geese", He),
    ("animal/fish/trout", "trout", "trout", It),
    ("animal/fish/salmon", "salmon", "salmon", It),
    ("animal/insect/bee", "bee", "bees", It),
    ("animal/insect/beetle", "beetle", "beetles", It),
    ("person/child/boy", "boy", "boys", He),
    ("person/child/girl", "girl", "girls", She),
    ("person/adult/king", "king", "kings", He),
    ("person/adult/queen", "queen", "queens", She),
    ("person/adult/farmer", "farmer", "farmers", Either),
    ("person/adult/baker", "baker", "bakers", Either),
    ("person/adult/sailor", "sailor", "sailors", Either),
    ("person/adult/witch", "witch", "witches", She),
];

/// What one can wish for: path, one, several.
const ITEMS: &[(&str, &str, &str)] = &[
    ("food/fruit/pear", "pear", "pears"),
    ("food/fruit/plum", "plum", "plums"),
    ("food/fruit/peach", "peach", "peaches"),
    ("food/baked/cake", "cake", "cakes"),
    ("food/baked/bun", "bun", "buns"),
    ("food/vegetable/carrot", "carrot", "carrots"),
    ("food/vegetable/bean", "bean", "beans"),
    ("thing/toy/ball", "ball", "balls"),
    ("thing/toy/kite", "kite", "kites"),
    ("thing/toy/drum", "drum", "drums"),
    ("thing/tool/hammer", "hammer", "hammers"),
    ("thing/tool/rope", "rope", "ropes"),
];

/// Places: path, words (only ever one of each).
const PLACES: &[(&str, &str)] =
    &[("place/nature", "forest river valley garden field meadow"), ("place/building", "barn mill school castle tower market")];

/// Verbs: kind, past, present of one, base (also the present of several).
const VERBS: &[(&str, &str, &str, &str)] = &[
    ("motion", "went", "goes", "go"),
    ("motion", "walked", "walks", "walk"),
    ("motion", "marched", "marches", "march"),
    ("motion", "trotted", "trots", "trot"),
    ("motion", "crept", "creeps", "creep"),
    ("motion", "flew", "flies", "fly"),
    ("motion", "hopped", "hops", "hop"),
    ("motion", "swam", "swims", "swim"),
    ("motion", "crawled", "crawls", "crawl"),
    ("action", "met", "meets", "meet"),
    ("action", "saw", "sees", "see"),
    ("action", "took", "takes", "take"),
    ("action", "bought", "buys", "buy"),
    ("action", "painted", "paints", "paint"),
    ("action", "sniffed", "sniffs", "sniff"),
    ("action", "licked", "licks", "lick"),
    ("action", "pecked", "pecks", "peck"),
    ("action", "nudged", "nudges", "nudge"),
    ("wish", "wanted", "wants", "want"),
    ("wish", "liked", "likes", "like"),
    ("wish", "looked", "looks", "look"),
    ("speech", "said", "says", "say"),
    ("speech", "asked", "asks", "ask"),
    ("outcome", "found", "finds", "find"),
    ("outcome", "won", "wins", "win"),
    ("outcome", "lost", "loses", "lose"),
    ("outcome", "missed", "misses", "miss"),
];

/// Lexical sets: concept, words. A word may stand in several.
const SETS: &[(&str, &str, &str)] = &[
    ("colour", "a colour", "red blue green white black yellow"),
    ("size", "a size", "big small tiny tall"),
    ("weather.fair", "weather that promises a happy story", "sunny warm bright"),
    ("weather.foul", "weather that promises a sad story", "rainy cold dark"),
    ("time", "a time of day", "morning day evening night"),
    ("feeling.happy", "a happy feeling", "happy glad proud cheerful"),
    ("feeling.sad", "a sad feeling", "sad lonely sorry gloomy"),
    ("feeling.neutral", "a feeling without mood", "tired hungry thirsty sleepy"),
    ("manner.happy", "a happy manner", "happily merrily gladly"),
    ("manner.sad", "a sad manner", "sadly bitterly wearily"),
    ("manner.neutral", "a manner without mood", "quickly quietly"),
    ("numeral", "a number of at least two", "two three four"),
    ("name.male", "a name of a he", "tom sam ben max"),
    ("name.female", "a name of a she", "mia sue zoe lily"),
    ("preposition", "a preposition", "near by in to for"),
    ("determiner", "an article or quantifier", "a the some any"),
    ("possessive", "a possessive pronoun", "his her its their"),
    ("pronoun", "a personal pronoun", "he she it they i we you"),
    ("be", "a form of to be", "was were is are am"),
    ("auxiliary", "a helping verb", "did does do will"),
    ("linker", "a word that joins or opens", "and or then soon"),
];

/// Words of the grammar that carry no lexical concept.
const FREE: &str = "one named not very too either where at last end , . ? \"";

/// A noun in its two forms.
#[derive(Debug)]
pub(super) struct Noun {
    pub one: u32,
    pub many: u32,
    pub path: &'static str,
    pub gender: Gender,
}

/// A verb in its three forms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verb {
    pub past: u32,
    pub third: u32,
    pub base: u32,
}

/// Everything derived from the tables, built once.
pub(super) struct Lexicon {
    pub words: Vec<&'static str>,
    pub concepts: Vec<Concept>,
    /// Lexical and hierarchical labels of each word.
    pub labels: Vec<Labels>,
    pub beings: Vec<Noun>,
    pub items: Vec<Noun>,
    pub places: Vec<u32>,
    verbs: HashMap<&'static str, Verb>,
    sets: HashMap<&'static str, Vec<u32>>,
    index: HashMap<&'static str, u32>,
}

impl Lexicon {
    pub(super) fn get() -> &'static Lexicon {
        static LEXICON: OnceLock<Lexicon> = OnceLock::new();
        LEXICON.get_or_init(Lexicon::build)
    }

    /// Id of a word the grammar names.
    pub(super) fn id(&self, word: &str) -> u32 {
        *self.index.get(word).expect("the grammar names only words of the tables; a test generates every rule")
    }

    /// Id of any word, if it is one.
    pub(super) fn find(&self, word: &str) -> Option<u32> {
        self.index.get(word).copied()
    }

    /// A verb by its base form.
    pub(super) fn verb(&self, base: &str) -> Verb {
        *self.verbs.get(base).expect("the grammar names only verbs of the table; a test generates every rule")
    }

    /// The words of a lexical set.
    pub(super) fn set(&self, concept: &str) -> &[u32] {
        self.sets.get(concept).expect("the grammar names only sets of the table; a test generates every rule")
    }

    fn build() -> Lexicon {
        let mut lexicon = Lexicon {
            words: Vec::new(),
            concepts: CONTEXTUAL.iter().map(|&(name, meaning)| Concept { name, class: Class::Contextual, meaning }).collect(),
            labels: Vec::new(),
            beings: Vec::new(),
            items: Vec::new(),
            places: Vec::new(),
            verbs: HashMap::new(),
            sets: HashMap::new(),
            index: HashMap::new(),
        };
        debug_assert_eq!(Context::WishSecond as usize + 1, CONTEXTUAL.len());
        for word in SPECIAL.into_iter().chain(FREE.split(' ')) {
            lexicon.word(word);
        }
        for &(name, meaning, words) in SETS {
            let bit = lexicon.concept(name, Class::Lexical, meaning);
            let ids = words.split(' ').map(|word| lexicon.tag(word, bit)).collect();
            lexicon.sets.insert(name, ids);
        }
        lexicon.add_verbs();
        let several = lexicon.concept("noun.plural", Class::Lexical, "a noun whose form says several");
        let noun = |lexicon: &mut Lexicon, path, one, many, gender| {
            let bits = lexicon.path(path);
            let noun = Noun { one: lexicon.tag(one, bits), many: lexicon.tag(many, bits), path, gender };
            if noun.one != noun.many {
                lexicon.labels[noun.many as usize] |= several;
            }
            noun
        };
        for &(path, one, many, gender) in BEINGS {
            let being = noun(&mut lexicon, path, one, many, gender);
            lexicon.beings.push(being);
        }
        for &(path, one, many) in ITEMS {
            let item = noun(&mut lexicon, path, one, many, It);
            lexicon.items.push(item);
        }
        for &(path, words) in PLACES {
            let bits = lexicon.path(path);
            for word in words.split(' ') {
                let id = lexicon.tag(word, bits);
                lexicon.places.push(id);
            }
        }
        lexicon
    }

    fn add_verbs(&mut self) {
        let forms = [
            ("verb.past", "a past form of a full verb"),
            ("verb.third", "a present form for one subject"),
            ("verb.base", "a bare form: present for several, or after a helping verb"),
        ]
        .map(|(name, meaning)| self.concept(name, Class::Lexical, meaning));
        for &(kind, past, third, base) in VERBS {
            let (name, meaning) = match kind {
                "motion" => ("verb.motion", "a verb of going somewhere"),
                "action" => ("verb.action", "a verb of doing something to an object"),
                "wish" => ("verb.wish", "a verb of wishing"),
                "speech" => ("verb.speech", "a verb of speaking"),
                _ => ("verb.outcome", "a verb that decides a wish"),
            };
            let kind = self.concept(name, Class::Lexical, meaning);
            let verb = Verb {
                past: self.tag(past, kind | forms[0]),
                third: self.tag(third, kind | forms[1]),
                base: self.tag(base, kind | forms[2]),
            };
            self.verbs.insert(base, verb);
        }
    }

    /// The labels of a path: one concept per level.
    fn path(&mut self, path: &'static str) -> Labels {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        ends.fold(0, |bits, end| bits | self.concept(&path[..end], Class::Hierarchical, "a node of the noun tree"))
    }

    /// The bit of a concept, new or known.
    fn concept(&mut self, name: &'static str, class: Class, meaning: &'static str) -> Labels {
        let at = self.concepts.iter().position(|c| c.name == name).unwrap_or_else(|| {
            self.concepts.push(Concept { name, class, meaning });
            self.concepts.len() - 1
        });
        1 << at
    }

    fn word(&mut self, word: &'static str) -> u32 {
        let next = self.words.len() as u32;
        *self.index.entry(word).or_insert_with(|| {
            self.words.push(word);
            self.labels.push(0);
            next
        })
    }

    fn tag(&mut self, word: &'static str, bits: Labels) -> u32 {
        let id = self.word(word);
        self.labels[id as usize] |= bits;
        id
    }
}
