//! Finds what can be drawn: run folders with a training log, a score, a table of latents, concepts or features.

use std::cmp::Ordering;
use std::fs;
use std::path::Path;

use super::slice::Sliced;
use super::tables::{self, Atlas, Concepts, Densities};
use crate::error::{Error, Result};
use crate::features::FEATURES_FILE;
use crate::score::concepts::CONCEPTS_FILE;
use crate::score::{ScoreReport, LATENTS_FILE, SCORE_FILE};
use crate::train::{read_log, LogRecord};

/// How deep folders are searched.
const DEPTH: usize = 8;

/// One run folder. What is not there is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Run {
    /// Its path from the folder that was searched, or that folder's own name.
    pub name: String,
    /// Number of latents, if a dictionary or a table of latents says.
    pub d_sae: Option<usize>,
    /// The training log.
    pub log: Option<Vec<LogRecord>>,
    /// The score.
    pub score: Option<ScoreReport>,
    /// The table of latents.
    pub densities: Option<Densities>,
    /// The recovery of concepts.
    pub concepts: Option<Concepts>,
    /// The map of atoms.
    pub atlas: Option<Atlas>,
    /// Cells in a plane. Never found in a folder: they are worked out of a dictionary for the chart.
    pub slice: Option<Sliced>,
}

impl Run {
    /// The name without its seed (`k16-d1024-s0` is one of `k16-d1024`): seeds of one setting belong together.
    pub fn setting(&self) -> &str {
        match self.name.rfind("-s").map(|at| self.name.split_at(at)) {
            Some((setting, seed)) if seed.len() > 2 && seed[2..].bytes().all(|b| b.is_ascii_digit()) => setting,
            _ => &self.name,
        }
    }
}

/// Runs of one setting, which differ in their seed, with what a chart shows of each.
#[derive(Debug)]
pub struct Setting<'a, T> {
    /// Its name; the run's own when there is one.
    pub name: &'a str,
    /// In the order of the runs.
    pub runs: Vec<T>,
}

impl<T> Setting<'_, T> {
    /// For a legend: with the number of seeds when there are several.
    pub fn label(&self) -> String {
        match self.runs.len() {
            1 => self.name.to_string(),
            n => format!("{} ({n} seeds)", self.name),
        }
    }
}

/// Runs that have something to show, by setting, in order of first appearance.
pub fn by_setting<'a, T>(runs: &'a [Run], show: impl Fn(&'a Run) -> Option<T>) -> Vec<Setting<'a, T>> {
    let mut settings: Vec<(&str, Setting<'a, T>)> = Vec::new();
    for run in runs {
        let Some(shown) = show(run) else { continue };
        match settings.iter_mut().find(|s| s.0 == run.setting()) {
            Some((key, setting)) => {
                setting.name = key;
                setting.runs.push(shown);
            }
            None => settings.push((run.setting(), Setting { name: &run.name, runs: vec![shown] })),
        }
    }
    settings.into_iter().map(|s| s.1).collect()
}

/// Every run at or below `dir`, by name (numbers in names by size).
///
/// # Errors
/// A folder that cannot be read; a damaged log, score or table.
pub fn collect(dir: &Path) -> Result<Vec<Run>> {
    if !dir.is_dir() {
        return Err(Error::request(format!("no folder at {}", dir.display()), "pass the folder of a run or of a sweep"));
    }
    let mut runs = Vec::new();
    visit(dir, dir, 0, &mut runs)?;
    runs.sort_by(|a, b| natural(&a.name, &b.name));
    Ok(runs)
}

fn visit(root: &Path, dir: &Path, depth: usize, runs: &mut Vec<Run>) -> Result<()> {
    if let Some(run) = read(root, dir)? {
        runs.push(run);
    }
    if depth == DEPTH {
        return Ok(());
    }
    let entries = fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        // Links are not followed: one to a parent would never end.
        if entry.file_type().map_err(|e| Error::io("look at", entry.path(), e))?.is_dir() {
            visit(root, &entry.path(), depth + 1, runs)?;
        }
    }
    Ok(())
}

/// Name of the run in `dir`, seen from `root`.
pub fn name_of(root: &Path, dir: &Path) -> String {
    let path = dir.strip_prefix(root).unwrap_or(dir);
    let name = if path.as_os_str().is_empty() { root.file_name().unwrap_or(root.as_os_str()) } else { path.as_os_str() };
    name.to_string_lossy().replace('\\', "/")
}

fn read(root: &Path, dir: &Path) -> Result<Option<Run>> {
    let file = |name: &str| Some(dir.join(name)).filter(|p| p.is_file());
    // The log that grows, not the copy at its end: an unfinished run can be looked at too.
    let log = file("log.jsonl").map(|_| read_log(dir)).transpose()?;
    let score = file(SCORE_FILE).map(|p| ScoreReport::load(&p)).transpose()?;
    let densities = file(LATENTS_FILE).map(|p| tables::densities(&p)).transpose()?;
    let concepts = file(CONCEPTS_FILE).map(|p| tables::concepts(&p)).transpose()?;
    let atlas = file(FEATURES_FILE).map(|p| tables::atlas(&p)).transpose()?;
    if log.is_none() && score.is_none() && densities.is_none() && concepts.is_none() && atlas.is_none() {
        return Ok(None);
    }
    let d_sae = densities.as_ref().map(|d| d.values.len()).or_else(|| width_of(&dir.join("dictionary.json")));
    Ok(Some(Run { name: name_of(root, dir), d_sae, log, score, densities, concepts, atlas, slice: None }))
}

/// `d_sae` of a dictionary's header; the dictionary itself is not needed to draw it.
fn width_of(path: &Path) -> Option<usize> {
    let header: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    header["d_sae"].as_u64().map(|d| d as usize)
}

/// Digits compare as numbers: k4 before k16.
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.chars().peekable(), b.chars().peekable());
    let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
        let mut digits = String::new();
        while let Some(c) = chars.next_if(char::is_ascii_digit) {
            digits.push(c);
        }
        let digits = digits.trim_start_matches('0').to_string();
        (digits.len(), digits)
    };
    loop {
        let order = match (a.peek(), b.peek()) {
            (None, None) => return Ordering::Equal,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => number(&mut a).cmp(&number(&mut b)),
            (x, y) => {
                let order = x.cmp(&y);
                a.next();
                b.next();
                order
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_people_count() {
        let mut names = ["k16-d1024-s0", "k4-d1024-s1", "k4-d1024-s0", "k8", "k4-d512-s10", "k4-d512-s9"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["k4-d512-s9", "k4-d512-s10", "k4-d1024-s0", "k4-d1024-s1", "k8", "k16-d1024-s0"]);
    }

    #[test]
    fn seeds_of_a_setting_belong_together() {
        let setting = |name: &str| Run { name: name.into(), ..Run::default() }.setting().to_string();
        assert_eq!(setting("sweep/k16-d1024-s12"), "sweep/k16-d1024");
        assert_eq!(setting("k16-small"), "k16-small");
        assert_eq!(setting("my-s"), "my-s");
    }
}
