//! The grammar: who is in a story, what is said of them, and which contextual concepts hold meanwhile.
//!
//! Sentences are written left to right by [`Writer::pick`]. A label is set from what the words so far tell, never from what is to come.
//! Noun phrases and predicates are in `phrases`.

use super::concepts::Context::{self, *};
use super::words::{Gender, Noun, Verb};
use super::writer::{even, Writer};

/// What somebody wishes for: an item, one or several.
#[derive(Clone, Copy)]
pub(super) struct Wish {
    pub item: usize,
    pub many: bool,
}

/// A character or a group of them.
#[derive(Clone, Copy)]
pub(super) struct Character {
    pub noun: &'static Noun,
    pub name: Option<u32>,
    pub many: bool,
    pub gender: Gender,
    pub wish: Option<Wish>,
}

impl Character {
    pub(super) fn is_person(&self) -> bool {
        self.noun.path.starts_with("person")
    }

    /// The noun in its number.
    pub(super) fn form(&self) -> u32 {
        if self.many {
            self.noun.many
        } else {
            self.noun.one
        }
    }

    /// Nominative pronoun and possessive.
    pub(super) fn pronouns(&self) -> (&'static str, &'static str) {
        match (self.many, self.gender) {
            (true, _) => ("they", "their"),
            (_, Gender::He) => ("he", "his"),
            (_, Gender::She) => ("she", "her"),
            (_, Gender::It | Gender::Either) => ("it", "its"),
        }
    }
}

/// A story and what its words have told so far.
pub(super) struct Teller {
    pub w: Writer,
    pub cast: Vec<Character>,
    /// The subject of the sentence before: whom a pronoun means.
    pub topic: Option<usize>,
    pub happy: bool,
    pub past: Option<bool>,
    /// `PlaceOpening`, `PlaceMiddle` or `PlaceEnding`.
    pub part: Context,
}

/// How often a character with a name is called by it, where no pronoun stands.
const NAMED: f64 = 0.7;

/// Probability that the ending begins after so many sentences of the middle.
const STOP: [f64; 5] = [0.03, 0.12, 0.25, 0.45, 1.0];

impl Teller {
    /// Tells the whole story.
    pub(super) fn tell(mut self) -> Writer {
        self.opening();
        self.part = PlaceMiddle;
        for who in 0..2 {
            self.wish(who);
        }
        for stop in STOP {
            if !self.middle(stop) {
                break;
            }
        }
        self.w
    }

    /// `one sunny morning , a boy named tom met two foxes near the river .`
    fn opening(&mut self) {
        let lexicon = self.w.lexicon;
        self.w.say("one");
        let (fair, foul) = (lexicon.set("weather.fair"), lexicon.set("weather.foul"));
        let weather: Vec<_> = even(fair, 0.5).chain(even(foul, 0.5)).collect();
        let weather = self.w.pick(&weather);
        self.happy = fair.contains(&weather);
        self.w.pick(&even(lexicon.set("time"), 1.0).collect::<Vec<_>>());
        self.w.say(",");
        self.introduce(true);
        self.verb_due();
        let meet = lexicon.verb("meet");
        let present = if self.cast[0].many { meet.base } else { meet.third };
        // The first verb tells the story's tense.
        self.past = Some(self.w.pick(&[(meet.past, 0.5), (present, 0.5)]) == meet.past);
        self.introduce(false);
        self.w.pick(&even(&[lexicon.id("near"), lexicon.id("by"), lexicon.id("in")], 1.0).collect::<Vec<_>>());
        self.place();
        self.end_sentence(0);
    }

    /// `the boy wanted a kite .`
    fn wish(&mut self, who: usize) {
        let lexicon = self.w.lexicon;
        let start = self.subject_options(&[who]);
        let first = self.w.pick(&start);
        self.finish_subject(first, &[who]);
        let (want, like) = (lexicon.verb("want"), lexicon.verb("like"));
        self.w.pick(&[(self.inflect(want, who), 0.6), (self.inflect(like, who), 0.4)]);
        let (a, some) = (lexicon.id("a"), lexicon.id("some"));
        let many = self.w.pick(&[(a, 0.5), (some, 0.5)]) == some;
        self.w.mark(RoleObject);
        let taken = self.cast[0].wish.map(|wish| wish.item);
        let free: Vec<_> = (0..lexicon.items.len()).filter(|&i| Some(i) != taken).collect();
        let form = |i: usize| if many { lexicon.items[i].many } else { lexicon.items[i].one };
        let noun = self.w.pick(&free.iter().map(|&i| (form(i), 1.0)).collect::<Vec<_>>());
        let item = free.into_iter().find(|&i| form(i) == noun).expect("the word was one of these forms");
        self.cast[who].wish = Some(Wish { item, many });
        self.mark_object(noun);
        self.end_sentence(who);
    }

    /// A sentence of the middle, or with probability `stop` the ending; false after the ending.
    fn middle(&mut self, stop: f64) -> bool {
        let lexicon = self.w.lexicon;
        let endings = [lexicon.id("at"), lexicon.id("in")];
        let linkers = [lexicon.id("then"), lexicon.id("soon")];
        let subjects = self.subject_options(&[0, 1]);
        let mut start: Vec<_> = even(&endings, stop).chain(even(&linkers, (1.0 - stop) * 0.2)).collect();
        start.extend(subjects.iter().map(|&(word, weight)| (word, weight * (1.0 - stop) * 0.8)));
        let mut first = self.w.pick(&start);
        if endings.contains(&first) {
            self.part = PlaceEnding;
            self.ending(first == endings[0]);
            return false;
        }
        if linkers.contains(&first) {
            first = self.w.pick(&subjects);
        }
        let who = self.finish_subject(first, &[0, 1]);
        self.predicate(who, first == lexicon.id("the"));
        self.end_sentence(who);
        true
    }

    /// `at last , tom found the kite and was very proud .`
    fn ending(&mut self, at: bool) {
        let lexicon = self.w.lexicon;
        self.w.say(if at { "last ," } else { "the end ," });
        let start = self.subject_options(&[0, 1]);
        let first = self.w.pick(&start);
        let who = self.finish_subject(first, &[0, 1]);
        let verbs = if self.happy { ["find", "win"] } else { ["lose", "miss"] };
        let verbs = verbs.map(|v| self.inflect(lexicon.verb(v), who));
        self.w.pick(&even(&verbs, 1.0).collect::<Vec<_>>());
        self.wished_for(who);
        self.w.say("and");
        self.number_due(who);
        self.be(who);
        let (very, feelings) = (lexicon.id("very"), lexicon.set(if self.happy { "feeling.happy" } else { "feeling.sad" }));
        let mut options: Vec<_> = even(feelings, 0.7).collect();
        options.push((very, 0.3));
        if self.w.pick(&options) == very {
            self.feeling_due();
            self.w.pick(&even(feelings, 1.0).collect::<Vec<_>>());
        }
        self.end_sentence(who);
    }

    /// The full stop; the subject becomes the topic.
    fn end_sentence(&mut self, who: usize) {
        // A quotation has had its own stop, and some phrases end in one.
        if !self.w.ends_with("\"") && !self.w.ends_with(".") {
            self.w.say(".");
        }
        self.topic = Some(who);
    }

    /// How likely each candidate is to be called by name or noun, and the pronoun of the topic to come instead.
    fn shares(&self, who: &[usize]) -> (Vec<f64>, f64) {
        match (who, self.topic.filter(|t| who.contains(t))) {
            ([_], Some(_)) => (vec![0.55], 0.45),
            (_, Some(topic)) => (who.iter().map(|&c| if c == topic { 0.2 } else { 0.45 }).collect(), 0.35),
            (_, None) => (vec![1.0 / who.len() as f64; who.len()], 0.0),
        }
    }

    /// The words a subject may begin with: the pronoun of the topic, names, `the`.
    pub(super) fn subject_options(&self, who: &[usize]) -> Vec<(u32, f64)> {
        let lexicon = self.w.lexicon;
        let (shares, pronoun) = self.shares(who);
        let mut options: Vec<_> = self.topic.map(|t| (lexicon.id(self.cast[t].pronouns().0), pronoun)).into_iter().collect();
        for (&c, share) in who.iter().zip(shares) {
            options.extend(self.cast[c].name.map(|name| (name, share * NAMED)));
            options.push((lexicon.id("the"), share * self.called_by_noun(c)));
        }
        options
    }

    /// Of the times a character is not a pronoun, how often it is `the` and its noun.
    fn called_by_noun(&self, who: usize) -> f64 {
        self.cast[who].name.map_or(1.0, |_| 1.0 - NAMED)
    }

    /// Completes a subject that began with `first`; gives back whom it means. `the` is followed by a noun, in the same proportions.
    pub(super) fn finish_subject(&mut self, first: u32, who: &[usize]) -> usize {
        let lexicon = self.w.lexicon;
        let (named, is_the) = (who.iter().copied().find(|&c| self.cast[c].name == Some(first)), first == lexicon.id("the"));
        let subject = match (named, self.topic) {
            (Some(c), _) => c,
            (None, Some(topic)) if !is_the => topic,
            _ => {
                self.w.mark(RoleSubject);
                let shares = self.shares(who).0;
                let nouns = who.iter().zip(shares).map(|(&c, share)| (self.cast[c].form(), share * self.called_by_noun(c)));
                let noun = self.w.pick(&nouns.collect::<Vec<_>>());
                who.iter().copied().find(|&c| self.cast[c].form() == noun).expect("the word was one of these forms")
            }
        };
        if named.is_none() && !is_the {
            self.mark_referent(subject);
        }
        self.verb_due();
        // Of the words a subject ends in, only sheep and their like do not show number.
        let Character { noun, .. } = self.cast[subject];
        if is_the && noun.one == noun.many {
            self.number_due(subject);
        }
        subject
    }

    /// The token just written is a pronoun that means `who`.
    pub(super) fn mark_referent(&mut self, who: usize) {
        self.w.mark(if self.cast[who].is_person() { ReferentPerson } else { ReferentAnimal });
        self.w.mark([ReferentFirst, ReferentSecond][who]);
    }

    /// The token just written completes a subject: a verb may follow.
    pub(super) fn verb_due(&mut self) {
        self.w.mark(self.part);
        if let Some(past) = self.past {
            self.w.mark(if past { TensePast } else { TensePresent });
        }
    }

    /// The number of `who` decides what follows the token just written, which does not show it.
    pub(super) fn number_due(&mut self, who: usize) {
        self.w.mark(if self.cast[who].many { NumberPlural } else { NumberSingular });
    }

    /// What `who` is decides what follows the token just written, which does not show it.
    pub(super) fn kind_due(&mut self, who: usize) {
        self.w.mark(if self.cast[who].is_person() { SubjectPerson } else { SubjectAnimal });
    }

    /// A feeling or a manner may follow the token just written.
    pub(super) fn feeling_due(&mut self) {
        self.w.mark(if self.happy { MoodHappy } else { MoodSad });
    }

    /// The form of a verb for this subject in this story's tense.
    pub(super) fn inflect(&self, verb: Verb, who: usize) -> u32 {
        match (self.past, self.cast[who].many) {
            (Some(true) | None, _) => verb.past,
            (Some(false), false) => verb.third,
            (Some(false), true) => verb.base,
        }
    }
}
