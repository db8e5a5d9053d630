//! Concept recovery with its controls on the same held-out rows: one latent of the dictionary against a linear probe, the word, single
//! dimensions, and dictionaries of the embedding and of a random host.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::rows::Column;
use crate::artefact;
use crate::dictionary::Dictionary;
use crate::error::Result;
use crate::progress::Progress;
use crate::score::concepts::{best_token, latents, neurons, probe, word_alone, ProbeOptions, Recovery, RECOVERED};
use crate::shard::Shards;

/// Where the representations lie.
pub struct Sources<'a> {
    /// Shards of the host.
    pub shards: &'a Shards,
    /// The hook point that is looked into.
    pub hook: &'a str,
    /// The column of the MLP's neurons.
    pub mlp: &'a str,
    /// The column of the embedding.
    pub embed: &'a str,
    /// Shards of the random host, of the same corpus, with `hook`.
    pub random_shards: &'a Shards,
}

/// What is the same for every dictionary: the rows, the probe, the controls that are not trained.
pub struct Ground {
    pub(super) resid: Column,
    embed: Column,
    random: Column,
    probe: Recovery,
    untrained: Vec<Recovery>,
}

/// Recovery under each representation, and what the two splits were.
#[derive(Debug, Clone, Serialize)]
pub struct Recoveries {
    /// Rows that chose latent and threshold.
    pub selection_rows: usize,
    /// Rows that were scored.
    pub test_rows: usize,
    /// By representation: the dictionary, the probe, then the controls.
    pub representations: Vec<Recovery>,
    /// Contextual concepts with probe F1 above 0.9.
    pub contextual_in_reach: usize,
    /// Their names.
    pub in_reach: Vec<String>,
    /// Those of them where the dictionary's best latent is above 0.7 and above every control.
    pub contextual_won: Vec<String>,
}

impl Ground {
    /// Reads the rows and fits what needs no dictionary.
    ///
    /// # Errors
    /// Shards that lack a column or are no stories of the built-in language.
    pub fn new(sources: &Sources<'_>, progress: &dyn Progress) -> Result<Self> {
        progress.begin("concepts", Some(5), "tables");
        let step = |r: Result<Recovery>| {
            progress.advance(1);
            r
        };
        let resid = Column::read(sources.shards, sources.hook)?;
        let task = resid.task();
        let options = ProbeOptions { max_rows: 15_000, ..ProbeOptions::default() };
        let probe = step(probe("linear probe (combines all dims)", &resid.x, resid.width, &task, &options))?;
        let mut untrained = vec![
            step(best_token("control: best single token", &resid.token_id, &task))?,
            step(word_alone("control: all the token tells", &resid.token_id, &task))?,
            step(neurons("control: best residual dimension", &resid.x, resid.width, &task))?,
        ];
        let mlp = Column::read(sources.shards, sources.mlp)?;
        untrained.push(step(neurons("control: best MLP neuron", &mlp.x, mlp.width, &task))?);
        progress.end();
        let (embed, random) = (Column::read(sources.shards, sources.embed)?, Column::read(sources.random_shards, sources.hook)?);
        Ok(Self { resid, embed, random, probe, untrained })
    }

    /// A dictionary, with the two controls that are dictionaries too: on the embedding, and on the random host (its rows are of the same
    /// stories).
    ///
    /// # Errors
    /// A dictionary of another width.
    pub fn recover(&self, dictionary: &Dictionary, on_embed: &Dictionary, on_random: &Dictionary) -> Result<Recoveries> {
        let task = self.resid.task();
        let own = latents("dictionary: best latent", &self.resid.codes(dictionary)?, &task)?;
        let mut controls = self.untrained.clone();
        controls.push(latents("control: SAE on hook_embed", &self.embed.codes(on_embed)?, &task)?);
        controls.push(latents("control: SAE on a random host", &self.random.codes(on_random)?, &self.random.task())?);
        Ok(Recoveries::of(own, self.probe.clone(), controls, self.resid.selection.len(), self.resid.test.len()))
    }
}

impl Recoveries {
    fn of(own: Recovery, probe: Recovery, controls: Vec<Recovery>, selection_rows: usize, test_rows: usize) -> Self {
        let hard = probe.concepts.iter().filter(|c| c.class == "contextual" && c.f1 > 0.9);
        let in_reach: Vec<String> = hard.map(|c| c.concept.clone()).collect();
        let f1 = |r: &Recovery, name: &str| r.concept(name).map_or(0.0, |c| c.f1);
        let wins = |name: &&String| f1(&own, name) > RECOVERED && controls.iter().all(|c| f1(&own, name) > f1(c, name));
        let contextual_won = in_reach.iter().filter(wins).cloned().collect();
        let mut representations = vec![own, probe];
        representations.extend(controls);
        Self { selection_rows, test_rows, representations, contextual_in_reach: in_reach.len(), in_reach, contextual_won }
    }

    /// The dictionary's.
    pub fn own(&self) -> &Recovery {
        &self.representations[0]
    }

    /// The probe's.
    pub fn probe(&self) -> &Recovery {
        &self.representations[1]
    }

    /// The best of the controls for a concept: F1 and which.
    pub fn best_control(&self, concept: &str) -> (f64, &str) {
        let all = self.representations[2..].iter().map(|r| (r.concept(concept).map_or(0.0, |c| c.f1), r.features.as_str()));
        all.fold((0.0, "-"), |best, c| if c.0 > best.0 { c } else { best })
    }

    /// Writes `concepts.json` into a folder that is there.
    ///
    /// # Errors
    /// I/O errors.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let mut json = serde_json::to_vec_pretty(self).expect("plain data with string keys");
        json.push(b'\n');
        artefact::write(dir, "concepts.json", &json)
    }
}

impl fmt::Display for Recoveries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Concept recovery: latent and threshold chosen on {} rows, F1 on {} other rows (mean over concepts; in brackets: how many above {RECOVERED})",
            self.selection_rows, self.test_rows
        )?;
        let Some(first) = self.representations.first() else { return Ok(()) };
        write!(f, "{:<34}", "")?;
        for class in &first.classes {
            write!(f, " {:>20}", format!("{} ({})", class.class, class.concepts))?;
        }
        writeln!(f)?;
        for r in &self.representations {
            write!(f, "{:<34}", r.features)?;
            for class in &r.classes {
                write!(f, " {:>20}", format!("{:.3} [{}]", class.mean_f1, class.recovered))?;
            }
            writeln!(f)?;
        }
        write!(
            f,
            "contextual concepts with probe F1 above 0.9: {}; of these the dictionary has a latent above {RECOVERED} and above every control for {}: {}",
            self.contextual_in_reach,
            self.contextual_won.len(),
            self.contextual_won.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::concepts::ConceptScore;

    fn recovery(f1: &[f64]) -> Recovery {
        let score = |(i, &f1): (usize, &f64)| ConceptScore {
            concept: format!("c{i}"),
            class: "contextual".into(),
            positives: 100,
            f1,
            precision: f1,
            recall: f1,
            selection_f1: f1,
            feature: Some(0),
            negated: false,
            threshold: 0.0,
        };
        Recovery { features: "r".into(), concepts: f1.iter().enumerate().map(score).collect(), classes: Vec::new(), skipped: Vec::new() }
    }

    #[test]
    fn a_concept_is_won_against_every_control() {
        let controls = vec![recovery(&[0.1, 0.8, 0.1, 0.1]), recovery(&[0.75, 0.1, 0.1, 0.1])];
        let r = Recoveries::of(recovery(&[0.8, 0.75, 0.65, 0.9]), recovery(&[0.95, 0.95, 0.95, 0.85]), controls, 1, 1);
        assert_eq!(r.in_reach, ["c0", "c1", "c2"], "c3 is not in the probe's reach");
        assert_eq!(r.contextual_won, ["c0"], "c1 loses to a control, c2 is below 0.7");
        assert_eq!(r.best_control("c1").0, 0.8);
    }
}
