//! What came of the claims: rows with a verdict, the figures behind them, and the page that shows both.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::artefact;
use crate::error::{Error, Result};
use crate::plot::{draw, Figure};

/// One figure, measured once per seed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measure {
    /// In the order of the seeds.
    pub values: Vec<f64>,
}

impl Measure {
    /// The mean; NaN without values.
    pub fn mean(&self) -> f64 {
        self.values.iter().sum::<f64>() / self.values.len() as f64
    }

    /// Sample standard deviation; 0 for fewer than two values.
    pub fn std(&self) -> f64 {
        if self.values.len() < 2 {
            return 0.0;
        }
        let mean = self.mean();
        (self.values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (self.values.len() - 1) as f64).sqrt()
    }
}

/// `0.207 ± 0.003`: three significant digits of the mean, the spread to as many places (one more where it would read 0).
impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mean, std) = (self.mean(), self.std());
        if !mean.is_finite() {
            return f.write_str("-");
        }
        // Too small to matter where all else is near 1.
        let near_zero = mean != 0.0 && mean.abs() < 1e-4;
        if near_zero {
            return if std == 0.0 { write!(f, "{mean:.1e}") } else { write!(f, "{mean:.1e} ± {std:.1e}") };
        }
        let places = if mean == 0.0 { 0 } else { (2 - mean.abs().log10().floor() as i32).clamp(0, 5) } as usize;
        if self.values.len() < 2 || std == 0.0 {
            return write!(f, "{mean:.places$}");
        }
        let more = if std < 0.5 * 10f64.powi(-(places as i32)) { (places + 1).min(6) } else { places };
        write!(f, "{mean:.places$} ± {std:.more$}")
    }
}

impl Serialize for Measure {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("Measure", 3)?;
        s.serialize_field("mean", &self.mean())?;
        s.serialize_field("std", &self.std())?;
        s.serialize_field("values", &self.values)?;
        s.end()
    }
}

/// Figures by line and column.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Table {
    /// Claims that it belongs to.
    pub claims: Vec<&'static str>,
    /// What is measured, on what.
    pub title: String,
    /// Names of the columns, in order.
    pub columns: Vec<String>,
    /// Name and cells of each line; a cell without values was not measured.
    pub lines: Vec<(String, Vec<Measure>)>,
}

impl Table {
    /// Empty.
    pub fn new(claims: &[&'static str], title: impl Into<String>) -> Self {
        Self { claims: claims.to_vec(), title: title.into(), ..Self::default() }
    }

    /// One more seed's value of a cell.
    pub fn add(&mut self, line: &str, column: &str, value: f64) {
        let c = self.columns.iter().position(|c| c == column).unwrap_or_else(|| {
            self.columns.push(column.to_string());
            self.columns.len() - 1
        });
        let l = self.lines.iter().position(|(name, _)| name == line).unwrap_or_else(|| {
            self.lines.push((line.to_string(), Vec::new()));
            self.lines.len() - 1
        });
        let cells = &mut self.lines[l].1;
        if cells.len() <= c {
            cells.resize(c + 1, Measure::default());
        }
        cells[c].values.push(value);
    }

    /// A cell; without values where nothing was measured.
    pub fn get(&self, line: &str, column: &str) -> Measure {
        let c = self.columns.iter().position(|c| c == column);
        let cells = self.lines.iter().find(|(name, _)| name == line).map(|(_, cells)| cells);
        c.zip(cells).and_then(|(c, cells)| cells.get(c)).cloned().unwrap_or_default()
    }

    /// One seed's values of a line, in the order of `columns`.
    pub fn of_seed(&self, line: &str, columns: &[String], seed: usize) -> Vec<f64> {
        columns.iter().map(|c| self.get(line, c).values.get(seed).copied().unwrap_or(f64::NAN)).collect()
    }

    /// Title and figures as a Markdown table.
    pub(super) fn markdown(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{}\n", self.title);
        let _ = writeln!(out, "| |{}", self.columns.iter().map(|c| format!(" {c} |")).collect::<String>());
        let _ = writeln!(out, "|---|{}", "---|".repeat(self.columns.len()));
        for (name, cells) in &self.lines {
            let cell = |c: usize| cells.get(c).map_or("-".to_string(), Measure::to_string);
            let _ = writeln!(out, "| {name} |{}", (0..self.columns.len()).map(|c| format!(" {} |", cell(c))).collect::<String>());
        }
        out.push('\n');
        out
    }
}

/// What a run says of an assertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// On every seed.
    Holds,
    /// Not on every seed.
    Fails,
    /// It was not tried.
    Skipped,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Holds => "holds",
            Self::Fails => "FAILS",
            Self::Skipped => "skipped",
        })
    }
}

/// One assertion with what was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Short name of the claim: `2a`.
    pub claim: &'static str,
    /// What is asserted.
    pub assertion: String,
    /// Our numbers, mean ± standard deviation over seeds.
    pub measured: String,
    /// What the claim expects.
    pub expected: String,
    /// Whether it holds.
    pub verdict: Verdict,
    /// On how many seeds it holds.
    pub seeds_held: usize,
    /// Under which condition, or why it was skipped.
    pub condition: String,
}

impl Row {
    /// Judged seed by seed: it holds when it holds on each.
    pub fn judged(claim: &'static str, assertion: &str, expected: &str, measured: String, held: &[bool], condition: &str) -> Self {
        let verdict = if !held.is_empty() && held.iter().all(|h| *h) { Verdict::Holds } else { Verdict::Fails };
        Self {
            claim,
            assertion: assertion.into(),
            measured,
            expected: expected.into(),
            verdict,
            seeds_held: held.iter().filter(|h| **h).count(),
            condition: condition.into(),
        }
    }

    /// Not tried.
    pub fn skipped(claim: &'static str, assertion: &str, why: &str) -> Self {
        Self {
            claim,
            assertion: assertion.into(),
            measured: "-".into(),
            expected: "-".into(),
            verdict: Verdict::Skipped,
            seeds_held: 0,
            condition: why.into(),
        }
    }
}

/// Everything that a run found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Of data and initialisation.
    pub seeds: Vec<u64>,
    /// Share of the steps that were run; below 1 the verdicts are no evidence.
    pub steps: f64,
    /// The assertions.
    pub rows: Vec<Row>,
    /// The figures behind them.
    pub tables: Vec<Table>,
    /// Pictures, by name.
    #[serde(skip)]
    pub figures: Vec<(String, Figure)>,
}

impl Report {
    /// How many rows have a verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|r| r.verdict == verdict).count()
    }

    fn summary(&self) -> String {
        let seeds = self.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let count = |v| self.count(v);
        let quick = if self.steps < 1.0 { format!(" ONLY {} OF THE STEPS WERE RUN: no evidence.", self.steps) } else { String::new() };
        format!(
            "{} hold, {} fail, {} skipped; seeds {seeds}. A row holds when it holds on every seed.{quick}",
            count(Verdict::Holds),
            count(Verdict::Fails),
            count(Verdict::Skipped)
        )
    }

    fn held(&self, row: &Row) -> String {
        match row.verdict {
            Verdict::Skipped => row.verdict.to_string(),
            v => format!("{v} ({}/{})", row.seeds_held, self.seeds.len()),
        }
    }

    /// The page: the table of assertions, then the figures behind them.
    pub fn markdown(&self) -> String {
        let mut out =
            format!("{}\n\n| claim | assertion | measured | expected | verdict | condition |\n|---|---|---|---|---|---|\n", self.summary());
        for r in &self.rows {
            let _ =
                writeln!(out, "| {} | {} | {} | {} | {} | {} |", r.claim, r.assertion, r.measured, r.expected, self.held(r), r.condition);
        }
        out.push_str("\n## Figures\n\n");
        for table in &self.tables {
            let _ = write!(out, "**{}** {}", table.claims.join(", "), table.markdown());
        }
        out
    }

    /// Writes `claims.json`, `claims.md` and each picture as SVG and PNG into `dir`, which is made if it is not there; returns the paths.
    ///
    /// # Errors
    /// I/O errors.
    pub fn save(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let mut json = serde_json::to_vec_pretty(self).expect("a report is plain data with string keys");
        json.push(b'\n');
        artefact::write(dir, "claims.json", &json)?;
        artefact::write(dir, "claims.md", self.markdown().as_bytes())?;
        let mut written = vec![dir.join("claims.json"), dir.join("claims.md")];
        for (name, figure) in &self.figures {
            for extension in ["svg", "png"] {
                let path = dir.join(format!("claim-{name}.{extension}"));
                draw(figure, &path)?;
                written.push(path);
            }
        }
        Ok(written)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for r in &self.rows {
            writeln!(f, "{:<4} {:<13} {}", r.claim, self.held(r), r.assertion)?;
            if r.verdict != Verdict::Skipped {
                writeln!(f, "{:19}measured {}", "", r.measured)?;
                writeln!(f, "{:19}expected {}", "", r.expected)?;
            }
            if !r.condition.is_empty() {
                writeln!(f, "{:19}{}", "", r.condition)?;
            }
        }
        write!(f, "{}", self.summary())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(values: &[f64]) -> String {
        Measure { values: values.to_vec() }.to_string()
    }

    #[test]
    fn measures_show_mean_and_spread() {
        assert_eq!(measure(&[0.2, 0.21, 0.22]), "0.210 ± 0.010");
        assert_eq!(measure(&[0.5]), "0.500");
        assert_eq!(measure(&[1.0, 1.0]), "1.00");
        assert_eq!(measure(&[0.3331, 0.3332]), "0.333 ± 0.0001");
        assert_eq!(measure(&[4000.0, 4000.0]), "4000");
        assert_eq!(measure(&[3e-7, 5e-7]), "4.0e-7 ± 1.4e-7");
        assert_eq!(measure(&[]), "-");
    }

    #[test]
    fn a_claim_holds_on_every_seed_or_fails() {
        let row = |held: &[bool]| Row::judged("2a", "a", "b", "c".into(), held, "");
        assert_eq!(row(&[true, true]).verdict, Verdict::Holds);
        assert_eq!((row(&[true, false]).verdict, row(&[true, false]).seeds_held), (Verdict::Fails, 1));
        assert_eq!(row(&[]).verdict, Verdict::Fails, "nothing measured is nothing shown");
    }

    #[test]
    fn tables_fill_by_name_and_reports_tell() {
        let mut table = Table::new(&["7"], "FVU by k");
        for seed in 0..2 {
            table.add("topk", "4", 0.4 + seed as f64 * 0.1);
            table.add("topk", "8", 0.2);
        }
        table.add("true", "8", 0.1);
        assert_eq!(table.get("topk", "4").values, [0.4, 0.5]);
        assert!(table.get("true", "4").values.is_empty());
        assert_eq!(table.of_seed("topk", &["4".into(), "8".into()], 1), [0.5, 0.2]);
        let rows = vec![
            Row::judged("7", "falls", "monotone", "0.4, 0.2".into(), &[true, true], ""),
            Row::skipped("1b", "order", "pass --mnist DIR"),
        ];
        let report = Report { seeds: vec![0, 1], steps: 1.0, rows, tables: vec![table], figures: Vec::new() };
        let page = report.markdown();
        assert!(page.contains("| 7 | falls | 0.4, 0.2 | monotone | holds (2/2) |  |"), "{page}");
        assert!(page.contains("| topk | 0.450 ± 0.071 | 0.200 |") && page.contains("| true | - | 0.100 |"), "{page}");
        assert!(page.contains("1 hold, 0 fail, 1 skipped") && !page.contains("no evidence"));
        assert!(Report { steps: 0.1, ..report.clone() }.to_string().contains("no evidence"));
        let dir = tempfile::tempdir().unwrap();
        let written = report.save(&dir.path().join("new")).unwrap();
        assert_eq!(written.len(), 2);
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&written[0]).unwrap()).unwrap();
        assert_eq!(json["rows"][0]["verdict"], "holds");
        assert_eq!(json["tables"][0]["lines"][0][1][0]["values"][1], 0.5);
    }
}
