//! Phrases: introductions, objects, places, predicates and quotations.

use super::concepts::Context::*;
use super::grammar::{Character, Teller};
use super::words::Gender;
use super::writer::even;

/// What may follow an object, with weights: full stop, place, afterthought (`, too`, `, either`), further coordination.
struct After {
    stop: f64,
    place: f64,
    afterthought: f64,
}

impl Teller {
    /// `a [small] boy named tom` or `two [small] foxes`: a new character, unlike those before.
    pub(super) fn introduce(&mut self, is_subject: bool) {
        let lexicon = self.w.lexicon;
        let a = lexicon.id("a");
        let count: Vec<_> = [(a, 0.6)].into_iter().chain(even(lexicon.set("numeral"), 0.4)).collect();
        let many = self.w.pick(&count) != a;
        let role = if is_subject { RoleSubject } else { RoleObject };
        self.w.mark(role);
        let known: Vec<_> = self.cast.iter().map(|c| c.noun.path).collect();
        let form = |i: usize| if many { lexicon.beings[i].many } else { lexicon.beings[i].one };
        let new: Vec<_> = (0..lexicon.beings.len()).filter(|&i| !known.contains(&lexicon.beings[i].path)).collect();
        let weight = |i: usize| if lexicon.beings[i].path.starts_with("person") { 2.0 } else { 1.0 };
        let nouns: Vec<_> = new.iter().map(|&i| (form(i), weight(i))).collect();
        let sizes = lexicon.set("size");
        let total: f64 = nouns.iter().map(|n| n.1).sum();
        let mut word = self.w.pick(&even(sizes, total / 3.0).chain(nouns.iter().copied()).collect::<Vec<_>>());
        if sizes.contains(&word) {
            self.w.mark(role);
            self.phrase_number(many);
            word = self.w.pick(&nouns);
        }
        if !is_subject {
            self.w.mark(BeingObject);
        }
        let noun = &lexicon.beings[new.into_iter().find(|&i| form(i) == word).expect("the word was one of these forms")];
        let mut character = Character { noun, name: None, many, gender: noun.gender, wish: None };
        if character.is_person() && !many {
            self.w.say("named");
            let (male, female) = (lexicon.set("name.male"), lexicon.set("name.female"));
            let fits = |name: &u32| match noun.gender {
                Gender::He => male.contains(name),
                Gender::She => female.contains(name),
                Gender::It | Gender::Either => true,
            };
            let taken = self.cast.first().and_then(|c| c.name);
            let names: Vec<_> = male.iter().chain(female).copied().filter(|n| fits(n) && Some(*n) != taken).collect();
            let name = self.w.pick(&even(&names, 1.0).collect::<Vec<_>>());
            if !is_subject {
                self.w.mark(BeingObject);
            }
            character.name = Some(name);
            character.gender = if male.contains(&name) { Gender::He } else { Gender::She };
        }
        self.cast.push(character);
    }

    fn phrase_number(&mut self, many: bool) {
        self.w.mark(if many { PhrasePlural } else { PhraseSingular });
    }

    /// `the [big] forest`, after its preposition.
    pub(super) fn place(&mut self) {
        let lexicon = self.w.lexicon;
        self.w.say("the");
        self.w.mark(RolePlace);
        let adjectives = [lexicon.set("colour"), lexicon.set("size")].concat();
        let places = &lexicon.places;
        let word = self.w.pick(&even(&adjectives, 0.2).chain(even(places, 0.8)).collect::<Vec<_>>());
        if adjectives.contains(&word) {
            self.w.mark(RolePlace);
            self.w.pick(&even(places, 1.0).collect::<Vec<_>>());
        }
    }

    /// `the kite`: what `who` wishes for.
    pub(super) fn wished_for(&mut self, who: usize) {
        self.w.say("the");
        self.w.mark(RoleObject);
        self.w.mark([WishDueFirst, WishDueSecond][who]);
        // Both wishes are told before anything else happens.
        if let Some(wish) = self.cast[who].wish {
            let item = &self.w.lexicon.items[wish.item];
            let noun = if wish.many { item.many } else { item.one };
            self.w.say_id(noun);
            self.mark_object(noun);
        }
    }

    /// The noun just written is an object: perhaps a being that could be a subject elsewhere, perhaps somebody's wish.
    pub(super) fn mark_object(&mut self, noun: u32) {
        if self.w.lexicon.beings.iter().any(|b| b.one == noun || b.many == noun) {
            self.w.mark(BeingObject);
        }
        for (who, label) in [WishFirst, WishSecond].into_iter().enumerate() {
            let item = self.cast.get(who).and_then(|c| c.wish).map(|wish| &self.w.lexicon.items[wish.item]);
            if item.is_some_and(|item| item.one == noun || item.many == noun) {
                self.w.mark(label);
            }
        }
    }

    /// Everything after a subject. `far`: a place may stand between (`the foxes near the river were ...`).
    pub(super) fn predicate(&mut self, who: usize, far: bool) {
        let lexicon = self.w.lexicon;
        let verb = |base| self.inflect(lexicon.verb(base), who);
        let path = self.cast[who].noun.path;
        let (moves, acts): (&[&str], &[&str]) = match path.split('/').nth(1) {
            Some("child" | "adult") => (&["walk", "march"], &["buy", "paint"]),
            Some("mammal") => (&["trot", "creep"], &["sniff", "lick"]),
            Some("bird") => (&["fly", "hop"], &["peck"]),
            Some("fish") => (&["swim"], &["nudge"]),
            _ => (&["crawl"], &["nudge"]),
        };
        let moves: Vec<_> = moves.iter().chain(&["go"]).map(|v| verb(v)).collect();
        let acts: Vec<_> = acts.iter().chain(&["see", "take"]).map(|v| verb(v)).collect();
        let (look, say, ask) = (verb("look"), verb("say"), verb("ask"));
        let (be, not_do) = (self.be_form(who), self.do_form(who));
        let far_words = [lexicon.id("near"), lexicon.id("by")];
        let mut options: Vec<_> = even(&moves, 0.16).chain(even(&acts, 0.16)).collect();
        options.extend([(look, 0.16), (not_do, 0.12), (be, 0.12), (say, 0.17), (ask, 0.11)]);
        if far {
            options.extend(even(&far_words, 0.4));
        }
        let word = self.w.pick(&options);
        if far_words.contains(&word) {
            self.place();
            self.verb_due();
            self.number_due(who);
            self.kind_due(who);
            self.predicate(who, false);
        } else if moves.contains(&word) {
            self.motion(who);
        } else if acts.contains(&word) {
            // `his` or `their` may follow; a present verb shows the number itself.
            if self.past == Some(true) {
                self.number_due(who);
            }
            self.object(Some(who));
        } else if word == look {
            self.w.say("for");
            self.wished_for(who);
            self.tail(who, 0.3);
        } else if word == not_do {
            self.negated(&["see", "take", "want", "like"]);
        } else if word == be {
            self.feeling_due();
            self.feeling(true);
        } else {
            self.quotation(who, word == ask);
        }
    }

    fn be_form(&self, who: usize) -> u32 {
        let form = match (self.past == Some(true), self.cast[who].many) {
            (true, false) => "was",
            (true, true) => "were",
            (false, false) => "is",
            (false, true) => "are",
        };
        self.w.lexicon.id(form)
    }

    fn do_form(&self, who: usize) -> u32 {
        let form = match (self.past == Some(true), self.cast[who].many) {
            (true, _) => "did",
            (false, false) => "does",
            (false, true) => "do",
        };
        self.w.lexicon.id(form)
    }

    /// `was`, after `and`.
    pub(super) fn be(&mut self, who: usize) {
        let form = self.be_form(who);
        self.w.say_id(form);
        self.feeling_due();
    }

    /// `[happily] to the mill`, after a verb of motion.
    fn motion(&mut self, who: usize) {
        let lexicon = self.w.lexicon;
        self.feeling_due();
        let manners = lexicon.set(if self.happy { "manner.happy" } else { "manner.sad" });
        let to = lexicon.id("to");
        let mut options: Vec<_> = even(manners, 0.4).chain(even(lexicon.set("manner.neutral"), 0.15)).collect();
        options.push((to, 0.45));
        if self.w.pick(&options) != to {
            self.w.say("to");
        }
        self.place();
        self.tail(who, 0.3);
    }

    /// Perhaps `and was tired`, in the subject's number.
    fn tail(&mut self, who: usize, weight: f64) {
        let lexicon = self.w.lexicon;
        let (stop, and) = (lexicon.id("."), lexicon.id("and"));
        if self.w.pick(&[(stop, 1.0 - weight), (and, weight)]) == and {
            self.number_due(who);
            self.be(who);
            self.feeling(false);
        }
    }

    /// A feeling that fits the mood, or the opposite one when negated; `long` lets `not`, `very` and a second feeling come.
    fn feeling(&mut self, long: bool) {
        let lexicon = self.w.lexicon;
        let mood = |happy: bool| lexicon.set(if happy { "feeling.happy" } else { "feeling.sad" });
        let neutral = lexicon.set("feeling.neutral");
        let (not, very) = (lexicon.id("not"), lexicon.id("very"));
        let mut options: Vec<_> = even(mood(self.happy), 0.6).chain(even(neutral, 0.4)).collect();
        if long {
            options.extend([(not, 0.35), (very, 0.2)]);
        }
        let mut word = self.w.pick(&options);
        let negated = word == not;
        if negated || word == very {
            if !negated {
                self.feeling_due();
            }
            word = self.w.pick(&even(mood(self.happy != negated), 0.6).chain(even(neutral, 0.4)).collect::<Vec<_>>());
        }
        if negated {
            self.w.mark(Negation);
        }
        if long {
            let (stop, join) = (lexicon.id("."), lexicon.id(if negated { "or" } else { "and" }));
            if self.w.pick(&[(stop, 0.6), (join, 0.4)]) == join {
                let rest: Vec<_> = neutral.iter().copied().filter(|&f| f != word).collect();
                self.w.pick(&even(&rest, 1.0).collect::<Vec<_>>());
            }
        }
    }

    /// `not see any [red] pears [or plums] [in the garden] [, either]`, after a form of `do`.
    fn negated(&mut self, verbs: &[&str]) {
        let lexicon = self.w.lexicon;
        self.w.say("not");
        let verbs: Vec<_> = verbs.iter().map(|v| lexicon.verb(v).base).collect();
        self.w.pick(&even(&verbs, 1.0).collect::<Vec<_>>());
        self.w.mark(Negation);
        self.w.say("any");
        self.w.mark(RoleObject);
        let noun = self.described(true);
        self.w.mark(Negation);
        self.after_object(noun, "or", "either", After { stop: 0.4, place: 0.2, afterthought: 0.15 }, true, None);
    }

    /// An object and what may follow it. `who`: the subject, in narration.
    fn object(&mut self, who: Option<usize>) {
        let lexicon = self.w.lexicon;
        let (a, some, the) = (lexicon.id("a"), lexicon.id("some"), lexicon.id("the"));
        let mut options = vec![(a, 0.3), (some, 0.35)];
        if let Some(who) = who {
            options.extend([(lexicon.id(self.cast[who].pronouns().1), 0.2), (the, 0.15)]);
        }
        let word = self.w.pick(&options);
        self.w.mark(RoleObject);
        if let (Some(who), true) = (who, word == the) {
            let noun = self.cast[1 - who].form();
            self.w.say_id(noun);
            self.mark_object(noun);
            return self.after_object(noun, "and", "too", After { stop: 0.5, place: 0.2, afterthought: 0.1 }, false, Some(who));
        }
        let noun = self.described(word == some);
        self.after_object(noun, "and", "too", After { stop: 0.4, place: 0.2, afterthought: 0.15 }, word == some, who);
    }

    /// `[red] pears`: a noun, perhaps with a colour or a size.
    fn described(&mut self, many: bool) -> u32 {
        let lexicon = self.w.lexicon;
        let form = |noun: &super::words::Noun| if many { noun.many } else { noun.one };
        let nouns: Vec<_> = lexicon.items.iter().map(|n| (form(n), 0.7 / lexicon.items.len() as f64)).collect();
        let beings = lexicon.beings.iter().filter(|b| b.path.starts_with("animal"));
        let animals: Vec<_> = beings.map(|b| (form(b), 0.3 / 16.0)).collect();
        let nouns = [nouns, animals].concat();
        let adjectives = [lexicon.set("colour"), lexicon.set("size")].concat();
        let mut word = self.w.pick(&even(&adjectives, 0.4).chain(nouns.iter().copied()).collect::<Vec<_>>());
        if adjectives.contains(&word) {
            self.w.mark(RoleObject);
            self.phrase_number(many);
            word = self.w.pick(&nouns);
        }
        self.mark_object(word);
        word
    }

    /// After an object: a stop, a second noun (`join`), a place, an afterthought, or a tail about the subject.
    /// `joins`: a second noun may come. `who`: the subject, in narration; a tail may come.
    fn after_object(&mut self, noun: u32, join: &str, afterthought: &str, after: After, joins: bool, who: Option<usize>) {
        let lexicon = self.w.lexicon;
        let [stop, comma, place, join_id] = [".", ",", "in", join].map(|word| lexicon.id(word));
        let mut options = vec![(stop, after.stop), (place, after.place), (comma, after.afterthought)];
        if joins || who.is_some() {
            options.push((join_id, 1.0 - after.stop - after.place - after.afterthought));
        }
        let mut word = self.w.pick(&options);
        let negated = afterthought == "either";
        if word == join_id {
            if let Some(who) = who {
                self.number_due(who);
            }
            let others: Vec<_> = lexicon.items.iter().map(|n| n.many).filter(|&n| n != noun).collect();
            let be = who.map(|who| self.be_form(who));
            let mut options: Vec<_> = be.map(|be| (be, 0.4)).into_iter().collect();
            if joins {
                options.extend(even(&others, 0.6));
            }
            let next = self.w.pick(&options);
            if Some(next) == be {
                self.feeling_due();
                return self.feeling(false);
            }
            self.mark_object(next);
            if negated {
                self.w.mark(Negation);
            }
            word = self.w.pick(&[(stop, 0.6), (place, 0.2), (comma, 0.2)]);
        }
        if word == place {
            self.place();
            word = self.w.pick(&[(stop, 0.75), (comma, 0.25)]);
        }
        if word == comma {
            if negated {
                self.w.mark(Negation);
            }
            self.w.say(afterthought);
        }
    }

    /// `, " i want the kite . "` or `, " where is the kite ? "`, after a verb of speech.
    fn quotation(&mut self, who: usize, asks: bool) {
        self.w.say(",");
        self.w.set(Quote, true);
        self.w.say("\"");
        self.w.mark(QuoteOpening);
        if asks {
            self.quoted_question(who);
        } else {
            self.w.mark(if self.cast[who].many { SpeakerMany } else { SpeakerOne });
            self.quoted_statement(who);
        }
        self.w.set(Quote, false);
        self.w.say("\"");
    }

    fn quoted_statement(&mut self, who: usize) {
        let lexicon = self.w.lexicon;
        let character = self.cast[who];
        let (speaker, you) = (lexicon.id(if character.many { "we" } else { "i" }), lexicon.id("you"));
        if self.w.pick(&[(speaker, 0.85), (you, 0.15)]) == you {
            self.mark_referent(1 - who);
            self.w.say("are");
            self.feeling_due();
            self.feeling(false);
            return self.stop_quote();
        }
        self.mark_referent(who);
        let be = lexicon.id(if character.many { "are" } else { "am" });
        let [want, see] = ["want", "see"].map(|v| lexicon.verb(v).base);
        let (will, not_do) = (lexicon.id("will"), lexicon.id("do"));
        let word = self.w.pick(&[(want, 0.4), (see, 0.15), (will, 0.15), (be, 0.15), (not_do, 0.15)]);
        if word == want {
            self.wished_for(who);
            self.stop_quote();
        } else if word == see {
            self.object(None);
            self.stop_quote();
        } else if word == will {
            let moves: &[&str] = match character.noun.path.split('/').nth(1) {
                Some("child" | "adult") => &["walk", "march", "go"],
                Some("mammal") => &["trot", "creep", "go"],
                Some("bird") => &["fly", "hop", "go"],
                Some("fish") => &["swim", "go"],
                _ => &["crawl", "go"],
            };
            let moves: Vec<_> = moves.iter().map(|v| lexicon.verb(v).base).collect();
            self.kind_due(who);
            self.w.pick(&even(&moves, 1.0).collect::<Vec<_>>());
            self.w.say("to");
            self.place();
            self.stop_quote();
        } else if word == be {
            self.feeling_due();
            self.feeling(false);
            self.stop_quote();
        } else {
            self.negated(&["see", "want", "like"]);
            self.stop_quote();
        }
    }

    fn stop_quote(&mut self) {
        if !self.w.ends_with(".") {
            self.w.say(".");
        }
        self.w.mark(QuoteEnd);
    }

    fn quoted_question(&mut self, who: usize) {
        let lexicon = self.w.lexicon;
        let [place, ask, are] = ["where", "do", "are"].map(|word| lexicon.id(word));
        let word = self.w.pick(&[(place, 0.4), (ask, 0.4), (are, 0.2)]);
        if word == place {
            let many = self.cast[who].wish.is_some_and(|wish| wish.many);
            self.w.say(if many { "are" } else { "is" });
            self.wished_for(who);
        } else {
            self.w.say("you");
            self.mark_referent(1 - who);
            if word == are {
                self.feeling_due();
                self.feeling(false);
            } else {
                let [want, like] = ["want", "like"].map(|v| lexicon.verb(v).base);
                self.w.pick(&[(want, 0.5), (like, 0.5)]);
                self.wished_for(1 - who);
            }
        }
        self.w.mark(Question);
        self.w.say("?");
    }
}
