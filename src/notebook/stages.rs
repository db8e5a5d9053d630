//! Inline forms of what the stages report: host, harvest, shards, training, scores, dictionary, exports.

use std::path::Path;

use super::{shown, Html, Show, Table};
use crate::dictionary::Dictionary;
use crate::features::FeaturesReport;
use crate::formats::{Comparison, Exported};
use crate::harvest::HarvestReport;
use crate::host::HostInfo;
use crate::score::{definition, figure, thousands, Metrics, ScoreReport, Scores};
use crate::shard::{Shards, Split};
use crate::train::TrainReport;

/// Metrics of the tables that compare.
const HEADLINES: [&str; 7] = ["l0", "fvu", "cosine", "dead_fraction", "decoder_coherence", "ce_loss_score", "kl_score"];

/// A path as a person writes it.
fn folder(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "/")
}

fn count(n: u64) -> String {
    thousands(n)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// A table of names and values.
fn facts(caption: &str, facts: impl IntoIterator<Item = (&'static str, String)>) -> Html {
    Table::new(caption, &["", ""]).rows(facts, |(name, value)| [name.to_string(), value]).html()
}

impl Show for HostInfo {
    fn show(&self) -> Html {
        facts(
            &format!("host {}", self.name),
            [
                ("family", self.family.to_string()),
                ("blocks", self.n_layers.to_string()),
                ("d_model", self.d_model.to_string()),
                ("heads", format!("{} of width {}", self.n_heads, self.d_head)),
                ("d_mlp", self.d_mlp.to_string()),
                ("vocabulary", format!("{} tokens", count(self.vocab_size as u64))),
                ("longest context", format!("{} tokens", count(self.n_context as u64))),
                ("parameters", count(self.n_params)),
            ],
        )
    }
}

impl Show for HarvestReport {
    fn show(&self) -> Html {
        let masked =
            self.masked.iter().filter(|m| *m.1 > 0).map(|(rule, n)| format!("{} {rule}", count(*n))).collect::<Vec<_>>().join(", ");
        facts(
            &format!("harvest in {}", folder(&self.out)),
            [
                ("hook points", self.hooks.join(", ")),
                ("documents", count(self.documents)),
                ("tokens read", count(self.tokens)),
                ("rows for training", count(self.rows.train)),
                ("rows held out", count(self.rows.held_out)),
                ("rows masked", if masked.is_empty() { "none".into() } else { masked }),
                ("files", format!("{}, {}", self.files, megabytes(self.bytes))),
            ],
        )
    }
}

impl Show for Shards {
    fn show(&self) -> Html {
        let manifest = self.manifest();
        let columns = Table::new(
            &format!(
                "{}: {} rows for training, {} held out",
                folder(self.dir()),
                count(self.rows(Some(Split::Train))),
                count(self.rows(Some(Split::HeldOut)))
            ),
            &["column", "width", "stored as", "mean squared norm"],
        )
        .rows(&manifest.columns, |c| {
            [c.column.name.clone(), c.column.width.to_string(), c.column.dtype.name().to_string(), figure(c.mean_sq_norm)]
        });
        let files =
            Table::new("", &["file", "rows", "size"]).rows(&manifest.shards, |s| [s.file.clone(), count(s.rows), megabytes(s.bytes)]);
        columns.html().then(&files.html())
    }
}

impl Show for TrainReport {
    fn show(&self) -> Html {
        let dead_after = self.members.first().map_or(0, |m| m.last.dead_after_tokens);
        Table::new(
            &format!(
                "{} steps, {} rows each; FVU and L0 of training rows over the last log window; dead: silent for {} rows",
                count(self.steps),
                count(self.tokens),
                count(dead_after)
            ),
            &["dictionary", "latents", "learning rate", "FVU", "L0", "dead", "folder"],
        )
        .rows(&self.members, |m| {
            [
                m.name.clone(),
                m.d_sae.to_string(),
                format!("{:.1e}", m.lr),
                figure(m.last.fvu),
                format!("{:.2}", m.last.l0),
                m.last.dead.to_string(),
                folder(&m.dictionary),
            ]
        })
        .html()
    }
}

/// A line per thing scored, a column per headline metric (L0, FVU, cosine, dead, ...) that any of them has.
pub fn scores<'a>(caption: &str, rows: impl IntoIterator<Item = (String, &'a Metrics)>) -> Html {
    let rows: Vec<(String, &Metrics)> = rows.into_iter().collect();
    let ids: Vec<&str> = HEADLINES.into_iter().filter(|id| rows.iter().any(|(_, m)| m.get(id).is_some())).collect();
    let head: Vec<&str> = std::iter::once("").chain(ids.iter().copied()).collect();
    Table::new(caption, &head)
        .rows(rows, |(name, metrics)| {
            let cell = |id: &&str| metrics.get(id).map_or(String::from("–"), |&v| figure(v));
            std::iter::once(name).chain(ids.iter().map(cell)).collect::<Vec<_>>()
        })
        .html()
}

impl Show for ScoreReport {
    fn show(&self) -> Html {
        let prefixes = self.prefixes.iter().map(|(width, m)| (format!("first {width} latents"), m));
        let steps = self.steps.iter().map(|(n, m)| (format!("{n} steps"), m));
        let baselines = self.baselines.iter().map(|(name, m)| (format!("baseline {name}"), m));
        let rows = std::iter::once(("dictionary".to_string(), &self.metrics)).chain(prefixes).chain(steps).chain(baselines);
        scores(&format!("{} rows of the {} split", count(self.rows), self.split), rows)
    }
}

impl Show for Scores {
    fn show(&self) -> Html {
        Table::new(&format!("{} rows", count(self.rows)), &["metric", "unit", "value"])
            .rows(self.metrics.iter(), |(id, &v)| {
                [id.to_string(), definition(id).map_or_else(String::new, |d| d.unit.to_string()), figure(v)]
            })
            .html()
    }
}

impl Show for Dictionary {
    fn show(&self) -> Html {
        let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
        let activation = serde_json::to_value(&self.activation).map_or_else(|_| String::new(), |a| text(&a));
        let from = &self.provenance;
        let reads = if from.hook.is_empty() { "(not said)".into() } else { from.hook.clone() };
        let host = from.host.get("name").map_or_else(|| "(not said)".into(), text);
        facts(
            "dictionary",
            [
                ("latents", count(self.d_sae() as u64)),
                ("reads", format!("{reads} of {host}, {} wide", self.d_in())),
                ("activation", activation),
                ("made by", from.made_by.clone()),
            ],
        )
    }
}

impl Show for FeaturesReport {
    fn show(&self) -> Html {
        facts(
            &format!("feature table in {}", folder(&self.out)),
            [
                ("rows encoded", count(self.rows)),
                ("mean L0", format!("{:.2}", self.l0)),
                ("latents", count(self.latents as u64)),
                ("dead", count(self.dead as u64)),
                ("dense", count(self.dense as u64)),
                ("with a label", count(self.labelled as u64)),
                ("examples", count(self.examples as u64)),
            ],
        )
    }
}

impl Show for Comparison {
    fn show(&self) -> Html {
        let fvu = |v: Option<f64>| v.map_or("–".into(), figure);
        Table::new(
            &format!("{} rows: {}", count(self.rows), if self.holds() { "the same but for rounding" } else { "NOT the same" }),
            &["", "before", "after", "largest difference"],
        )
        .row(["codes".into(), figure(self.largest[0]), String::new(), format!("{:.1e}", self.codes)])
        .row(["reconstruction".into(), figure(self.largest[1]), String::new(), format!("{:.1e}", self.reconstruction)])
        .row(["L0".into(), figure(self.l0[0]), figure(self.l0[1]), String::new()])
        .row(["FVU".into(), fvu(self.fvu[0]), fvu(self.fvu[1]), String::new()])
        .html()
    }
}

/// Exports side by side: where each went, what the dialect does not carry, and whether it encodes as before.
pub fn exports(all: &[Exported]) -> Html {
    Table::new("", &["format", "written", "codes differ by at most", "reconstructions by", "same?", "what the dialect does not carry"])
        .rows(all, |e| {
            [
                e.format.to_string(),
                folder(&e.path),
                format!("{:.1e}", e.proof.codes),
                format!("{:.1e}", e.proof.reconstruction),
                if e.proof.holds() { "yes" } else { "no" }.to_string(),
                e.notes.join("; "),
            ]
        })
        .html()
}

impl Show for Exported {
    fn show(&self) -> Html {
        exports(std::slice::from_ref(self))
    }
}

shown!(HostInfo, HarvestReport, Shards, TrainReport, ScoreReport, Scores, Dictionary, FeaturesReport, Comparison, Exported);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::Ordered;

    #[test]
    fn scores_stand_beside_their_baselines() {
        let metrics = |fvu: f64| [("fvu".to_string(), fvu), ("l0".to_string(), 8.0)].into_iter().collect::<Metrics>();
        let mut baselines = Ordered::default();
        baselines.insert("pca", metrics(0.5));
        let report =
            ScoreReport { split: "held-out".into(), rows: 12_345, metrics: metrics(0.0123456), baselines, ..ScoreReport::default() };
        let text = report.show().text().to_string();
        assert_eq!(text.lines().next(), Some("12,345 rows of the held-out split"));
        assert!(text.contains("l0       fvu") && text.contains("0.012346") && text.contains("baseline pca"), "{text}");
        assert!(!text.contains("cosine"), "columns that nobody has are left out: {text}");
    }
}
