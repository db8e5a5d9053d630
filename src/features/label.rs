//! What to call a latent.

use std::collections::HashMap;
use std::path::Path;

use super::examples::Example;
use super::parquet;
use super::table::{Feature, FEATURES_FILE};
use crate::error::{Error, Result};

/// F1 from which a concept names a latent.
const NAMED: f64 = 0.7;
/// Tokens in a label, and characters of one.
const TOKENS: usize = 3;
const CHARACTERS: usize = 24;

/// Names a latent: by its concept where it finds one, else by the tokens that it is most active on.
pub(super) fn name(feature: &mut Feature, examples: &[Example]) {
    if let (Some(concept), Some(true)) = (&feature.concept, feature.concept_f1.map(|f1| f1 >= NAMED)) {
        feature.label = Some(concept.clone());
        feature.label_source = Some("concept".into());
        return;
    }
    let top: Vec<&Example> = examples.iter().filter(|e| e.group == "top").collect();
    let tokens = counted(top.iter().filter_map(|e| e.tokens.get(e.peak as usize)).map(|t| t.trim().to_string()));
    let words = counted(top.iter().map(|e| word(e)));
    // A piece of a few words is better called by them (`faucet`, not `c`); a piece of many words is itself.
    let share = |of: &[(String, usize)], n: usize| of.iter().take(n).map(|c| c.1).sum::<usize>() as f64 / top.len().max(1) as f64;
    let shown = if share(&words, TOKENS) >= 0.5 { &words } else { &tokens };
    if !shown.is_empty() {
        let names: Vec<String> = shown.iter().take(TOKENS).map(|(t, _)| cut(t, CHARACTERS)).collect();
        let more = if shown.len() > TOKENS { " …" } else { "" };
        feature.label = Some(format!("{}{more}", names.join(" | ")));
        feature.label_source = Some("tokens".into());
    }
}

/// Texts with how often each occurs, most often first, then in order of first appearance; without empty ones.
fn counted(texts: impl Iterator<Item = String>) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for text in texts.filter(|t| !t.is_empty()) {
        match counts.iter_mut().find(|(t, _)| *t == text) {
            Some((_, n)) => *n += 1,
            None => counts.push((text, 1)),
        }
    }
    counts.sort_by_key(|c| std::cmp::Reverse(c.1));
    counts
}

/// The word around the peak: tokens up to the next space or sign of punctuation.
fn word(e: &Example) -> String {
    let peak = e.peak as usize;
    let Some(token) = e.tokens.get(peak) else { return String::new() };
    let is_inside = |c: char| c.is_alphanumeric() || c == '\'' || c == '’' || c == '-';
    let goes_on = |t: &str| t.chars().next().is_some_and(is_inside);
    let open = |t: &str| t.chars().next_back().is_some_and(is_inside);
    let mut text = token.clone();
    let mut first = peak;
    while first > 0 && goes_on(&text) && open(&e.tokens[first - 1]) && e.positions[first - 1] + 1 == e.positions[first] {
        first -= 1;
        text.insert_str(0, &e.tokens[first]);
    }
    for next in peak + 1..e.tokens.len() {
        if !open(&text) || !goes_on(&e.tokens[next]) || text.len() > 100 {
            break;
        }
        text.push_str(&e.tokens[next]);
    }
    text.trim().to_string()
}

/// The first characters of a text, with a sign where more follow.
pub(super) fn cut(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        None => text.to_string(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Two columns of `features.parquet`.
#[derive(serde::Serialize, serde::Deserialize)]
struct Labelled {
    latent: u32,
    label: Option<String>,
}

/// The labels of a feature table by latent, without reading the rest of it.
///
/// # Errors
/// A file that is missing or damaged, or whose rows are not the latents in order.
pub fn labels_of(dir: &Path) -> Result<Vec<Option<String>>> {
    let path = dir.join(FEATURES_FILE);
    let rows: Vec<Labelled> = parquet::read(&path)?;
    if let Some((i, row)) = rows.iter().enumerate().find(|(i, row)| row.latent as usize != *i) {
        let problem = format!("row {i} is of latent {}", row.latent);
        return Err(Error::format("feature table", path, problem, "run `lapidary features` again"));
    }
    Ok(rows.into_iter().map(|row| row.label).collect())
}

/// Labels from a file: a JSON object (`{"12": "names of colours"}`), or lines of `latent<TAB>label`.
///
/// # Errors
/// A file that cannot be read or is neither; a latent that does not exist.
pub fn read_labels(path: &Path, d_sae: usize) -> Result<HashMap<u32, String>> {
    const HELP: &str = "write a JSON object {\"12\": \"label\"}, or one `12<TAB>label` per line";
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let wrong = |problem: String| Error::format("file of labels", path, problem, HELP);
    let pairs: Vec<(String, String)> = if text.trim_start().starts_with('{') {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        let label = |v: serde_json::Value| v.as_str().map(str::to_string);
        object
            .into_iter()
            .map(|(k, v)| Ok((k.clone(), label(v).ok_or_else(|| wrong(format!("the label of {k} is no text")))?)))
            .collect::<Result<_>>()?
    } else {
        let lines = text.lines().filter(|l| !l.trim().is_empty());
        lines
            .map(|l| {
                l.split_once('\t').map(|(k, v)| (k.to_string(), v.to_string())).ok_or_else(|| wrong(format!("no tab in `{}`", cut(l, 60))))
            })
            .collect::<Result<_>>()?
    };
    pairs
        .into_iter()
        .map(|(k, v)| match k.trim().parse::<u32>() {
            Ok(latent) if (latent as usize) < d_sae => Ok((latent, v.trim().to_string())),
            _ => Err(wrong(format!("`{}` is no latent of 0..{d_sae}", cut(&k, 30)))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of words are called by the words, where these are few.
    #[test]
    fn pieces_are_called_by_their_words() {
        let pieces = |before: &str, after: &str| {
            let mut e = example("c");
            e.tokens = vec![" my".into(), before.into(), "c".into(), after.into(), ".".into()];
            (e.peak, e.positions) = (2, (0..5).collect());
            e
        };
        let mut feature = Feature::default();
        name(&mut feature, &[pieces(" fau", "et"), pieces(" kit", "hen"), pieces(" fau", "et")]);
        assert_eq!(feature.label.as_deref(), Some("faucet | kitchen"));
        let many: Vec<Example> = (0..20).map(|i| pieces(&format!(" {}", "x".repeat(i + 1)), "e")).collect();
        name(&mut feature, &many);
        assert_eq!(feature.label.as_deref(), Some("c"));
    }

    fn example(peak: &str) -> Example {
        Example {
            latent: 0,
            group: "top".into(),
            rank: 0,
            quantile: None,
            doc_id: 0,
            position: 1,
            value: 1.0,
            peak: 1,
            tokens: vec!["the".into(), peak.into()],
            token_ids: vec![0, 1],
            positions: vec![0, 1],
            values: vec![0.0, 1.0],
        }
    }

    #[test]
    fn a_found_concept_names_it_else_the_tokens_do() {
        let mut feature = Feature { concept: Some("colour".into()), concept_f1: Some(0.9), ..Feature::default() };
        let examples: Vec<Example> = [" red", " blue", " red ", " green", " pink", &" x".repeat(99)].iter().map(|t| example(t)).collect();
        name(&mut feature, &examples);
        assert_eq!(feature.label.as_deref(), Some("colour"));
        feature.concept_f1 = Some(0.5);
        name(&mut feature, &examples);
        assert_eq!((feature.label.as_deref(), feature.label_source.as_deref()), (Some("red | blue | green …"), Some("tokens")));
        let mut dead = Feature::default();
        name(&mut dead, &[]);
        assert_eq!(dead.label, None);
    }

    #[test]
    fn labels_come_as_json_or_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("labels");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_labels(&path, 10)
        };
        assert_eq!(read("{\"3\": \" a \", \"9\": \"b\"}").unwrap()[&3], "a");
        assert_eq!(read("3\ta\n\n9\tb c\n").unwrap()[&9], "b c");
        for bad in ["{\"3\": 4}", "3 a", "10\ta", "-1\ta", "{"] {
            assert!(read(bad).unwrap_err().to_string().contains("12<TAB>label"), "{bad}");
        }
    }
}
