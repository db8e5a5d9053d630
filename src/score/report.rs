//! What `score` hands out: figures in a fixed order, as JSON and as a table to read. Both come from one value.

use std::fmt;
use std::path::Path;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::definition;
use crate::artefact;
use crate::error::{Error, Result};

/// File that [`ScoreReport::save`] writes.
pub const SCORE_FILE: &str = "score.json";

/// A map that keeps its order.
#[derive(Debug, Clone, PartialEq)]
pub struct Ordered<T>(Vec<(String, T)>);

/// Figures by metric id. One that is undefined (a ratio of zeros) is NaN here and null in JSON.
pub type Metrics = Ordered<f64>;

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Ordered<T> {
    /// Appends an entry, or replaces the one of that name.
    pub fn insert(&mut self, name: impl Into<String>, value: T) {
        let name = name.into();
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some(entry) => entry.1 = value,
            None => self.0.push((name, value)),
        }
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// Entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Values in order, to change.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    /// Is there no entry?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends all entries of `other`, replacing those of the same name.
    pub fn extend(&mut self, other: Self) {
        for (name, value) in other.0 {
            self.insert(name, value);
        }
    }
}

impl<T> FromIterator<(String, T)> for Ordered<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (name, value) in entries {
            map.insert(name, value);
        }
        map
    }
}

impl<T: Serialize> Serialize for Ordered<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// The scores of a dictionary beside those of baselines, on the same rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ScoreReport {
    /// Which rows: "held-out", "train" or "all".
    pub split: String,
    /// How many.
    pub rows: u64,
    /// By metric id.
    pub metrics: Metrics,
    /// Of nested dictionaries: the first latents alone, by how many, then by metric id.
    #[serde(skip_serializing_if = "Ordered::is_empty")]
    pub prefixes: Ordered<Metrics>,
    /// Of a pursuit: ended after fewer steps, by how many, then by metric id; its own number last.
    #[serde(skip_serializing_if = "Ordered::is_empty")]
    pub steps: Ordered<Metrics>,
    /// By baseline, then by metric id.
    pub baselines: Ordered<Metrics>,
}

impl ScoreReport {
    /// Writes `score.json` into `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// I/O errors.
    pub fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let mut json = serde_json::to_vec_pretty(self).expect("a report is plain data with string keys");
        json.push(b'\n');
        artefact::write(dir, SCORE_FILE, &json)
    }

    /// Reads a `score.json`.
    ///
    /// # Errors
    /// I/O errors, JSON that is no score.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let wrong = |problem: String| Error::format("score", path, problem, "run `score` again");
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        let map = |value: &Value, name: &str| match value.get(name) {
            Some(Value::Object(map)) => Ok(map.clone()),
            _ => Err(wrong(format!("it has no map `{name}`"))),
        };
        // Null is how JSON spells the NaN of an undefined figure.
        let metrics = |map: serde_json::Map<String, Value>| map.into_iter().map(|(id, v)| (id, v.as_f64().unwrap_or(f64::NAN))).collect();
        let text = |name: &str| value[name].as_str().map(str::to_string).ok_or_else(|| wrong(format!("it has no text `{name}`")));
        let beside = |name: &str| match value.get(name) {
            Some(Value::Object(all)) => all.iter().filter_map(|(name, m)| Some((name.clone(), metrics(m.as_object()?.clone())))).collect(),
            _ => Ordered::default(),
        };
        Ok(Self {
            split: text("split")?,
            rows: value["rows"].as_u64().ok_or_else(|| wrong("it has no number `rows`".into()))?,
            metrics: metrics(map(&value, "metrics")?),
            prefixes: beside("prefixes"),
            steps: beside("steps"),
            baselines: beside("baselines"),
        })
    }
}

/// A figure as a person reads it: five significant digits, counts whole, nothing pretending to more.
pub fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "undefined".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    let magnitude = value.abs().log10().floor() as i32;
    if (-4..=6).contains(&magnitude) {
        format!("{value:.*}", (4 - magnitude).max(0) as usize)
    } else {
        format!("{value:.4e}")
    }
}

/// A count with thousands separated: 51,200.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Figures of a shorter pursuit that a person wants to see beside each other.
const OF_STEPS: [&str; 3] = ["fvu", "l0", "cosine"];

impl ScoreReport {
    fn write_steps(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<&str> = OF_STEPS.into_iter().filter(|id| self.steps.iter().any(|(_, m)| m.get(id).is_some())).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let heads: Vec<String> = ids.iter().map(|id| format!("{id:>10}")).collect();
        writeln!(f, "  {:>6}{}   the same pursuit, ended early", "steps", heads.concat())?;
        for (steps, metrics) in self.steps.iter() {
            let cells: Vec<String> = ids.iter().map(|id| format!("{:>10}", metrics.get(id).map_or("-".into(), |&v| figure(v)))).collect();
            writeln!(f, "  {steps:>6}{}", cells.concat())?;
        }
        Ok(())
    }
}

impl fmt::Display for ScoreReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} rows of the {} split", thousands(self.rows), self.split)?;
        let mut head = vec!["metric".to_string(), "unit".into(), "dictionary".into()];
        let columns = || {
            let prefixes = self.prefixes.iter().map(|(width, m)| (format!("first {width}"), m));
            prefixes.chain(self.baselines.iter().map(|(name, m)| (name.to_string(), m)))
        };
        head.extend(columns().map(|(name, _)| name));
        let mut table = vec![head];
        for (id, &value) in self.metrics.iter() {
            let mut line = vec![id.to_string(), definition(id).map_or("", |d| d.unit).to_string(), figure(value)];
            line.extend(columns().map(|(_, m)| m.get(id).map_or_else(|| "-".into(), |&v| figure(v))));
            table.push(line);
        }
        let widths: Vec<usize> = (0..table[0].len()).map(|c| table.iter().map(|line| line[c].chars().count()).max().unwrap_or(0)).collect();
        for line in &table {
            let cells: Vec<String> = line
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(c, (cell, &w))| if c < 2 { format!("{cell:<w$}") } else { format!("{cell:>w$}") })
                .collect();
            writeln!(f, "  {}", cells.join("  ").trim_end())?;
        }
        self.write_steps(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ScoreReport {
        let metrics: Metrics = [("fvu".to_string(), 0.123_456_789), ("l0".into(), 16.0), ("cosine".into(), f64::NAN)].into_iter().collect();
        let pca: Metrics = [("fvu".to_string(), 0.5)].into_iter().collect();
        ScoreReport {
            split: "held-out".into(),
            rows: 51_200,
            metrics,
            baselines: [("pca".to_string(), pca)].into_iter().collect(),
            ..ScoreReport::default()
        }
    }

    #[test]
    fn json_has_the_promised_shape_and_comes_back() {
        let json = serde_json::to_string(&sample()).unwrap();
        assert_eq!(
            json,
            r#"{"split":"held-out","rows":51200,"metrics":{"fvu":0.123456789,"l0":16.0,"cosine":null},"baselines":{"pca":{"fvu":0.5}}}"#
        );
        let dir = tempfile::tempdir().unwrap();
        sample().save(dir.path()).unwrap();
        let back = ScoreReport::load(&dir.path().join(SCORE_FILE)).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), json);
    }

    #[test]
    fn the_table_is_aligned_and_states_units() {
        let text = sample().to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "51,200 rows of the held-out split");
        assert_eq!(lines[1], "  metric  unit         dictionary      pca");
        assert_eq!(lines[2], "  fvu     ratio           0.12346  0.50000");
        assert_eq!(lines[3], "  l0      latents/row          16        -");
        assert_eq!(lines[4], "  cosine  cosine        undefined        -");
    }

    #[test]
    fn steps_have_a_table_of_their_own_and_come_back() {
        let of = |fvu: f64, l0: f64| -> Metrics { [("fvu".to_string(), fvu), ("l0".into(), l0)].into_iter().collect() };
        let report =
            ScoreReport { steps: [("1".to_string(), of(0.5, 1.0)), ("12".into(), of(0.25, 11.5))].into_iter().collect(), ..sample() };
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().skip(5).collect();
        assert_eq!(lines[0], "   steps       fvu        l0   the same pursuit, ended early");
        assert_eq!(lines[2], "      12   0.25000    11.500");
        let dir = tempfile::tempdir().unwrap();
        report.save(dir.path()).unwrap();
        assert_eq!(ScoreReport::load(&dir.path().join(SCORE_FILE)).unwrap().steps, report.steps);
    }

    #[test]
    fn figures() {
        for (value, text) in
            [(1234.567, "1234.6"), (0.000_012_345_6, "1.2346e-5"), (-0.5, "-0.50000"), (3e7, "30000000"), (f64::NAN, "undefined")]
        {
            assert_eq!(figure(value), text);
        }
    }
}
