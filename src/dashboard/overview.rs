//! What the overview shows: figures of the run, where everything comes from, curves.

use serde::Serialize;
use serde_json::Value;

use super::json::{nums, Num};
use super::vocabulary::cut;
use super::Extra;
use crate::features::FeatureTable;
use crate::score::{definition, ScoreReport};

/// Entries of a list that are written out.
const LISTED: usize = 8;

#[derive(Debug, Serialize)]
pub(super) struct Overview {
    scores: Option<Scores>,
    sections: Vec<(String, Vec<(String, String)>)>,
    curves: Vec<(String, String, Vec<Num>, Vec<Num>)>,
    /// Arguments of command lines to type next.
    dictionary: String,
    features: String,
    model: String,
    l0: Num,
    dense_above: f64,
}

#[derive(Debug, Serialize)]
struct Scores {
    split: String,
    rows: u64,
    /// Of the columns after the dictionary's.
    beside: Vec<String>,
    /// Id, unit, formula, whose, the dictionary's figure, the others'.
    lines: Vec<(String, String, String, String, Num, Vec<Num>)>,
}

impl Scores {
    fn new(report: &ScoreReport) -> Self {
        let prefixes = report.prefixes.iter().map(|(n, m)| (format!("first {n}"), m));
        let beside: Vec<_> = prefixes.chain(report.baselines.iter().map(|(n, m)| (n.to_string(), m))).collect();
        let line = |(id, &value): (&str, &f64)| {
            let d = definition(id);
            let text = |field: Option<&'static str>| field.unwrap_or_default().to_string();
            let others = beside.iter().map(|(_, m)| Num(m.get(id).copied().unwrap_or(f64::NAN))).collect();
            (cut(id), text(d.map(|d| d.unit)), text(d.map(|d| d.formula)), text(d.map(|d| d.whose)), Num(value), others)
        };
        let lines = report.metrics.iter().map(line).collect();
        Self { split: cut(&report.split), rows: report.rows, beside: beside.into_iter().map(|(n, _)| cut(&n)).collect(), lines }
    }
}

impl Overview {
    pub fn new(table: &FeatureTable, extra: &Extra) -> Self {
        let info = &table.info;
        let source = serde_json::to_value(&info.dictionary).unwrap_or(Value::Null);
        let told = &extra.provenance;
        let mut sections = Vec::new();
        let mut section = |name: &str, value: &Value| {
            let mut lines = Vec::new();
            flatten("", value, &mut lines);
            if !lines.is_empty() {
                sections.push((name.to_string(), lines));
            }
        };
        section("Dictionary", &source);
        section("Host", if info.host.is_null() { &told["host"] } else { &info.host });
        section("Corpus", &info.corpus);
        section("Trained on", if told["shards"].is_null() { &told["stream"] } else { &told["shards"] });
        section("Training configuration", &told["config"]);
        section("What training left", &told["notes"]);
        let made = serde_json::json!({
            "split": info.split, "rows": info.rows, "l0": info.l0, "coactive_rows": info.coactive_rows,
            "concept_rows": info.concept_rows, "lapidary": info.lapidary, "config": info.config,
        });
        section("Feature table", &made);
        Self {
            scores: extra.scores.as_ref().map(Scores::new),
            sections,
            curves: extra.curves.iter().map(|c| (cut(&c.name), cut(&c.unit), nums(&c.x), nums(&c.y))).collect(),
            dictionary: extra.dictionary.clone().unwrap_or_else(|| info.dictionary.name.clone()),
            features: extra.features.clone().unwrap_or_else(|| "features".into()),
            model: if info.host["name"] == "fable" { "fable".into() } else { "MODEL".into() },
            l0: Num(info.l0),
            dense_above: crate::score::DENSE_ABOVE,
        }
    }
}

/// Nested JSON as lines of dotted key and text.
fn flatten(key: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    let text = |v: &Value| match v {
        Value::String(s) => s.clone(),
        v => v.to_string(),
    };
    match value {
        Value::Null => {}
        Value::String(s) if s.is_empty() => {}
        Value::Array(items) if items.is_empty() => {}
        Value::Object(map) => {
            for (name, value) in map {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(&key, value, lines);
            }
        }
        Value::Array(items) if items.iter().any(|v| v.is_object() || v.is_array()) => {
            for (i, value) in items.iter().take(LISTED).enumerate() {
                flatten(&format!("{key}.{i}"), value, lines);
            }
            if items.len() > LISTED {
                lines.push((cut(key), format!("... {} in all", items.len())));
            }
        }
        Value::Array(items) => {
            let shown: Vec<_> = items.iter().take(LISTED).map(text).collect();
            let more = if items.len() > LISTED { format!(", ... {} in all", items.len()) } else { String::new() };
            lines.push((cut(key), cut(&(shown.join(", ") + &more))));
        }
        value => lines.push((cut(key), cut(&text(value)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_becomes_lines() {
        let mut lines = Vec::new();
        let value = serde_json::json!({"a": {"b": 1, "none": null, "empty": [], "blank": ""}, "list": [1, 2], "long": (0..20).collect::<Vec<_>>(), "of": [{"x": "y"}]});
        flatten("", &value, &mut lines);
        let lines: Vec<_> = lines.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(lines, ["a.b=1", "list=1, 2", "long=0, 1, 2, 3, 4, 5, 6, 7, ... 20 in all", "of.0.x=y"]);
    }
}
