//! What came of the concepts, as a page: recovery by class, each contextual concept, what silencing does, what was absorbed.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{ConceptSettings, SeedRun, HOOK};
use crate::artefact;
use crate::claims::report::{Measure, Table};
use crate::error::{Error, Result};
use crate::score::concepts::RECOVERED;

/// Everything that a run found.
#[derive(Debug, Clone, Serialize)]
pub struct ConceptsReport {
    /// What was tried.
    pub settings: ConceptSettings,
    /// Seed by seed.
    pub runs: Vec<SeedRun>,
}

/// A concept's latents, silenced: one value per seed that recovered it.
struct Silenced {
    concept: String,
    before: Measure,
    change: Measure,
    mean: Measure,
    max: Measure,
    above_mean: usize,
    above_all: usize,
}

impl ConceptsReport {
    fn measure(&self, of: impl Fn(&SeedRun) -> f64) -> Measure {
        Measure { values: self.runs.iter().map(of).collect() }
    }

    /// Recovery by class and representation, and how many concepts are above [`RECOVERED`].
    fn by_class(&self) -> Table {
        let title = format!("Mean F1 over the concepts of a class, and how many have F1 above {RECOVERED}; on rows that chose nothing:");
        let mut table = Table::new(&[], title);
        for run in &self.runs {
            for r in &run.recoveries.representations {
                for class in &r.classes {
                    table.add(&r.features, &format!("{} ({})", class.class, class.concepts), class.mean_f1);
                    table.add(&r.features, &format!("{} above", class.class), class.recovered as f64);
                }
            }
        }
        table
    }

    /// Every concept that any seed recovered and silenced, in order of appearance.
    fn silenced(&self) -> Vec<Silenced> {
        let mut all: Vec<Silenced> = Vec::new();
        for c in self.runs.iter().flat_map(|r| &r.causal) {
            let at = all.iter().position(|s| s.concept == c.concept).unwrap_or_else(|| {
                let none = Measure::default;
                all.push(Silenced {
                    concept: c.concept.clone(),
                    before: none(),
                    change: none(),
                    mean: none(),
                    max: none(),
                    above_mean: 0,
                    above_all: 0,
                });
                all.len() - 1
            });
            let s = &mut all[at];
            s.before.values.push(c.before);
            s.change.values.push(c.change);
            s.mean.values.push(c.matched_mean());
            s.max.values.push(c.matched_max());
            s.above_mean += usize::from(c.change > c.matched_mean());
            s.above_all += usize::from(c.change > c.matched_max());
        }
        all
    }

    /// Concepts recovered on every seed whose latent changed more than every matched one on each.
    pub fn causal_on_every_seed(&self) -> Vec<String> {
        let n = self.runs.len();
        self.silenced().into_iter().filter(|s| s.above_all == n).map(|s| s.concept).collect()
    }

    /// Seeds on which at least half of the contextual concepts in reach were won.
    pub fn seeds_with_half(&self) -> usize {
        let half = |r: &&SeedRun| 2 * r.recoveries.contextual_won.len() >= r.recoveries.contextual_in_reach;
        self.runs.iter().filter(half).count()
    }

    fn summary(&self) -> String {
        let quick = if self.settings.share < 1.0 {
            format!(" ONLY {} OF THE TOKENS WERE RUN: no evidence.", self.settings.share)
        } else {
            String::new()
        };
        let won = self.measure(|r| r.recoveries.contextual_won.len() as f64);
        let reach = self.runs.first().map_or(0, |r| r.recoveries.contextual_in_reach);
        format!(
            "Of {reach} contextual concepts that a linear probe finds (F1 above 0.9), {won} have a single latent above {RECOVERED} and above every \
             control; at least half on {} of {} seeds. Silencing the latent takes more licensed probability than each frequency-matched latent on \
             every seed for: {}.{quick}",
            self.seeds_with_half(),
            self.runs.len(),
            join(&self.causal_on_every_seed())
        )
    }

    /// The page.
    pub fn markdown(&self) -> String {
        let s = &self.settings;
        let mut out = String::from(
            "# Concepts: what single latents find, do and leave out\n\n```sh\nlapidary bench concepts --report docs/concepts.md\n```\n\n",
        );
        let seeds = s.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let first = self.runs.first();
        let rows = first.map_or((0, 0), |r| (r.recoveries.selection_rows, r.recoveries.test_rows));
        let _ = writeln!(
            out,
            "The built-in host reads the built-in language, whose every token is labelled. Per seed ({seeds}) a TopK dictionary of `{HOOK}` ({} latents, k = {}, {} rows; \
             held-out FVU {}) is trained, and the same on the embedding and on the random host ({} rows). For each concept the latent and the threshold \
             with the best F1 on {} held-out rows are taken, and F1 is that on {} rows of other stories. The probe combines all dimensions; a latent is \
             not expected to beat it. Figures are mean ± standard deviation over seeds; those that no seed touches have none.\n",
            s.d_sae,
            s.k,
            s.n_tokens,
            self.measure(|r| r.fvu),
            s.control_tokens,
            rows.0,
            rows.1
        );
        let _ = writeln!(out, "{}\n\n## Recovery by class\n", self.summary());
        out.push_str(&self.by_class().markdown());
        self.contextual(&mut out);
        self.causal(&mut out);
        self.absorption(&mut out);
        out
    }

    fn contextual(&self, out: &mut String) {
        let _ = writeln!(out, "## Contextual concepts, one by one\n");
        let _ = writeln!(
            out,
            "Won: on so many seeds the latent is above {RECOVERED} and above every control (counted where the probe is above 0.9). Those with no seed are the failures.\n"
        );
        let _ = writeln!(
            out,
            "| concept | dictionary | precision | recall | best control | which | probe | won |\n|---|---|---|---|---|---|---|---|"
        );
        let Some(first) = self.runs.first() else { return };
        let mut lines: Vec<(f64, String)> = Vec::new();
        for c in first.recoveries.own().concepts.iter().filter(|c| c.class == "contextual") {
            let own = |f: fn(&crate::score::concepts::ConceptScore) -> f64| {
                self.measure(move |r| r.recoveries.own().concept(&c.concept).map_or(0.0, f))
            };
            let f1 = own(|c| c.f1);
            let control = self.measure(|r| r.recoveries.best_control(&c.concept).0);
            let probe = self.measure(|r| r.recoveries.probe().concept(&c.concept).map_or(0.0, |c| c.f1));
            let in_reach = first.recoveries.in_reach.contains(&c.concept);
            let won = self.runs.iter().filter(|r| r.recoveries.contextual_won.contains(&c.concept)).count();
            let won = if in_reach { format!("{won}/{}", self.runs.len()) } else { "out of reach".to_string() };
            let which = first.recoveries.best_control(&c.concept).1.trim_start_matches("control: ").to_string();
            let line = format!(
                "| {} | {f1} | {} | {} | {control} | {which} | {probe} | {won} |",
                c.concept,
                own(|c| c.precision),
                own(|c| c.recall)
            );
            lines.push((f1.mean(), line));
        }
        lines.sort_by(|a, b| b.0.total_cmp(&a.0));
        lines.iter().for_each(|(_, line)| {
            let _ = writeln!(out, "{line}");
        });
        let lost: Vec<String> = first
            .recoveries
            .in_reach
            .iter()
            .filter(|c| !self.runs.iter().any(|r| r.recoveries.contextual_won.contains(c)))
            .cloned()
            .collect();
        let _ = writeln!(out, "\nIn the probe's reach and won on no seed: {}.\n", join(&lost));
    }

    fn causal(&self, out: &mut String) {
        let _ = writeln!(out, "## What silencing does\n");
        let _ = writeln!(
            out,
            "Each recovered latent is set to 0 wherever it fires in 120 test stories (the reconstruction's error stays, so nothing else changes). Read is \
             the probability that the host puts on the words which the grammar lets follow the concept (those that ever follow it in 6,000 stories of another \
             seed), mean over the concept's positions; the change is what is lost of it. Beside it up to eight latents that fire as often, within 20 %, drawn \
             by the seed: the mean of their changes and the greatest. A negative change is a gain.\n"
        );
        let _ = writeln!(
            out,
            "| concept | seeds | before | change | matched, mean | matched, greatest | above their mean | above all of them |\n|---|---|---|---|---|---|---|---|"
        );
        for s in self.silenced() {
            let n = s.change.values.len();
            let _ = writeln!(
                out,
                "| {} | {n} | {} | {} | {} | {} | {}/{n} | {}/{n} |",
                s.concept, s.before, s.change, s.mean, s.max, s.above_mean, s.above_all
            );
        }
        out.push('\n');
    }

    fn absorption(&self, out: &mut String) {
        let _ = writeln!(out, "## Absorption\n");
        let counts = self.runs.iter().map(|r| format!("{} (seed {})", r.absorptions, r.seed)).collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            out,
            "A concept's main latent is silent on a word that carries the concept (it fires on at most a tenth of its rows, and on at least half of the concept's other \
             rows), while a latent that is mostly that word's fires there and points along the concept (the mean of the concept's other rows minus that of rows \
             without it). Cases (concept, word, latent): {counts}.\n"
        );
        for run in &self.runs {
            let Some(a) = &run.absorption else {
                let _ = writeln!(out, "Seed {}: none that clear.\n", run.seed);
                continue;
            };
            let _ = writeln!(
                out,
                "Seed {}: `{}` has latent {} (precision {:.2}, recall {:.2}), which fires on {:.0} % of the rows of other words and on {:.0} % of the {} rows of *{}*. \
                 There latent {} fires ({:.0} % of them; {:.0} % of its firing is on that word). Its atom has cosine {:.2} with the concept's direction (the main \
                 latent's: {:.2}), and it writes {:.2} times as much along it as the main latent where that fires.\n",
                run.seed,
                a.concept,
                a.main,
                a.precision,
                a.recall,
                100.0 * a.main_elsewhere,
                100.0 * a.main_on_word,
                a.rows,
                a.word,
                a.absorber,
                100.0 * a.absorber_on_word,
                100.0 * a.absorber_precision,
                a.absorber_cos,
                a.main_cos,
                a.carried
            );
            a.examples.iter().for_each(|e| {
                let _ = writeln!(out, "> {e}\n>");
            });
            out.push('\n');
        }
    }

    /// Writes `concepts.json` and `concepts.md` into `dir`, which is made if it is not there; returns the paths.
    ///
    /// # Errors
    /// I/O errors.
    pub fn save(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let mut json = serde_json::to_vec_pretty(self).expect("a report is plain data with string keys");
        json.push(b'\n');
        artefact::write(dir, "concepts.json", &json)?;
        artefact::write(dir, "concepts.md", self.markdown().as_bytes())?;
        Ok(vec![dir.join("concepts.json"), dir.join("concepts.md")])
    }
}

fn join(names: &[String]) -> String {
    if names.is_empty() {
        return "none".into();
    }
    names.join(", ")
}

impl fmt::Display for ConceptsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in &self.runs {
            writeln!(f, "seed {}, FVU {:.4}\n{}", run.seed, run.fvu, run.recoveries)?;
            for c in &run.causal {
                writeln!(
                    f,
                    "  {:<18} latent {:>4} silenced: licensed probability {:.3}, {:+.4}; matched latents {:+.4} on average, {:+.4} at most",
                    c.concept,
                    c.latent,
                    c.before,
                    -c.change,
                    -c.matched_mean(),
                    -c.matched_max()
                )?;
            }
            if let Some(a) = &run.absorption {
                writeln!(
                    f,
                    "  absorption: {} by latent {} is silent on `{}`, where latent {} fires",
                    a.concept, a.main, a.word, a.absorber
                )?;
            }
            writeln!(f)?;
        }
        write!(f, "{}", self.summary())
    }
}
