//! Which files of a dataset hold which split of which configuration, told by their names alone.
//!
//! Two layouts: the hub's own conversion, `CONFIG/SPLIT/0000.parquet` (or `CONFIG/partial-SPLIT/...`), and what people upload:
//! `data/train-00000-of-00002.parquet`, `CONFIG/test-00000-of-00001.parquet`, `train.jsonl`, `validation/part3.jsonl`, `stories.txt`.
//! A file whose name tells no split belongs to `train`.

use std::collections::BTreeSet;

/// A file and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    pub name: String,
    /// "default" where the name tells none.
    pub config: String,
    pub split: String,
    /// The conversion holds only the beginning of the split.
    pub partial: bool,
}

/// Words for a split, and the split.
const WORDS: [(&str, &str); 11] = [
    ("train", "train"),
    ("training", "train"),
    ("validation", "validation"),
    ("valid", "validation"),
    ("val", "validation"),
    ("dev", "validation"),
    ("test", "test"),
    ("testing", "test"),
    ("eval", "test"),
    ("evaluation", "test"),
    ("heldout", "test"),
];

/// Files that lie beside data and are none.
const NO_DATA: [&str; 10] = [
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "metadata.json",
    "readme.txt",
    "license.txt",
    "licence.txt",
    "requirements.txt",
];

/// The data files with one of the first group of endings that any file has, in name order.
pub(super) fn place<'a>(names: impl Iterator<Item = &'a str> + Clone, endings: &[&[&str]]) -> Vec<Placed> {
    let is_data = |name: &str| {
        let hidden = name.split('/').any(|part| part.starts_with('.'));
        let lower = name.to_lowercase();
        !hidden && !NO_DATA.contains(&lower.rsplit('/').next().unwrap_or(&lower))
    };
    let ends = |name: &str, group: &[&str]| group.iter().any(|e| name.to_lowercase().ends_with(e));
    let group = endings.iter().find(|group| names.clone().any(|n| is_data(n) && ends(n, group)));
    let Some(group) = group else { return Vec::new() };
    let mut names: Vec<&str> = names.filter(|n| is_data(n) && ends(n, group)).collect();
    names.sort_unstable();
    if names.iter().all(|n| converted(n).is_some()) {
        return names.iter().filter_map(|n| converted(n)).collect();
    }
    names.iter().map(|n| uploaded(n)).collect()
}

/// `CONFIG/SPLIT/0000.parquet`.
fn converted(name: &str) -> Option<Placed> {
    let mut parts = name.split('/');
    let (config, split, file) = (parts.next()?, parts.next()?, parts.next()?);
    let number = file.strip_suffix(".parquet")?;
    if parts.next().is_some() || number.len() < 4 || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole = split.strip_prefix("partial-");
    Some(Placed { name: name.to_string(), config: config.to_string(), split: whole.unwrap_or(split).to_string(), partial: whole.is_some() })
}

fn uploaded(name: &str) -> Placed {
    let (folders, file) = name.rsplit_once('/').map_or((Vec::new(), name), |(dir, file)| (dir.split('/').collect(), file));
    let stem = file.split('.').next().unwrap_or(file);
    // `anything-00000-of-00002` is a shard of the split `anything`.
    let sharded = stem.split_once("-of-").and_then(|(left, n)| {
        let (split, i) = left.rsplit_once('-')?;
        let digits = |s: &str| s.len() >= 4 && s.bytes().take(4).all(|b| b.is_ascii_digit());
        (digits(i) && digits(n)).then_some(split)
    });
    let named = sharded.filter(|s| s.chars().all(|c| c.is_alphanumeric() || "_.".contains(c))).map(|s| word(s).unwrap_or(s).to_string());
    let in_folder = folders.iter().rposition(|f| word(f).is_some());
    let split = named.or_else(|| word(stem).map(str::to_string));
    let mut config: Vec<&str> = folders.clone();
    let split = match (split, in_folder) {
        (Some(split), _) => split,
        (None, Some(i)) => {
            config.remove(i);
            word(folders[i]).unwrap_or("train").to_string()
        }
        (None, None) => "train".to_string(),
    };
    config.retain(|f| *f != "data");
    let config = if config.is_empty() { "default".to_string() } else { config.join("/") };
    Placed { name: name.to_string(), config, split, partial: false }
}

/// The split that a name speaks of, as whole words between `-`, `_`, `.`, digits.
fn word(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase();
    lower.split(|c: char| !c.is_alphabetic()).find_map(|w| WORDS.iter().find(|(word, _)| *word == w).map(|(_, split)| *split))
}

/// What was asked for and is not there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unmet {
    /// No such configuration, or several to choose from; those that exist.
    Config(Vec<String>),
    /// No such split; those that exist.
    Split(Vec<String>),
}

/// The files of one split of one configuration, and their names. Without a wish, the configuration is the only one, or `default`.
pub(super) fn choose(placed: Vec<Placed>, config: Option<&str>, split: &str) -> Result<(String, Vec<Placed>), Unmet> {
    let configs: BTreeSet<String> = placed.iter().map(|p| p.config.clone()).collect();
    let config = match config {
        Some(config) => configs.get(config),
        None if configs.len() == 1 => configs.first(),
        None => configs.get("default"),
    };
    let Some(config) = config.cloned() else { return Err(Unmet::Config(configs.into_iter().collect())) };
    let mut of_config: Vec<Placed> = placed.into_iter().filter(|p| p.config == config).collect();
    let splits: BTreeSet<String> = of_config.iter().map(|p| p.split.clone()).collect();
    of_config.retain(|p| p.split == split);
    if of_config.is_empty() {
        return Err(Unmet::Split(splits.into_iter().collect()));
    }
    Ok((config, of_config))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDINGS: [&[&str]; 4] = [&[".parquet"], &[".jsonl"], &[".json"], &[".txt"]];

    fn table(names: &[&str]) -> Vec<(String, String, String)> {
        place(names.iter().copied(), &ENDINGS).into_iter().map(|p| (p.name, p.config, p.split)).collect()
    }

    #[test]
    fn the_layouts_people_use() {
        let one = |name: &str| {
            let all = table(&[name]);
            (all[0].1.clone(), all[0].2.clone())
        };
        let is = |config: &str, split: &str| (config.to_string(), split.to_string());
        assert_eq!(one("plain/validation/0000.parquet"), is("plain", "validation"));
        assert_eq!(one("plain/partial-train/0012.parquet"), is("plain", "train"));
        assert_eq!(one("data/train-00000-of-00002.parquet"), is("default", "train"));
        assert_eq!(one("data/train-00000-of-00002-a1b2c3.parquet"), is("default", "train"));
        assert_eq!(one("data/sft_odd-00000-of-00002.parquet"), is("default", "sft_odd"));
        assert_eq!(one("wikitext-2-raw-v1/test-00000-of-00001.parquet"), is("wikitext-2-raw-v1", "test"));
        assert_eq!(one("train.jsonl"), is("default", "train"));
        assert_eq!(one("en/dev.jsonl"), is("en", "validation"));
        assert_eq!(one("validation/part3.jsonl"), is("default", "validation"));
        assert_eq!(one("sample/10BT/000_00000.parquet"), is("sample/10BT", "train"));
        assert_eq!(one("TinyStories-valid.txt"), is("default", "validation"));
        assert_eq!(one("contest.txt"), is("default", "train"));
    }

    #[test]
    fn better_formats_win_and_other_files_are_no_data() {
        let names = ["b.jsonl", "a.jsonl", "x.txt", "dataset_infos.json", "README.txt", ".github/a.parquet"];
        let found: Vec<String> = table(&names).into_iter().map(|t| t.0).collect();
        assert_eq!(found, ["a.jsonl", "b.jsonl"]);
        assert!(table(&["README.md", "dataset_infos.json"]).is_empty());
    }

    #[test]
    fn a_wish_that_cannot_be_met_says_what_there_is() {
        let placed = || place(["a/train/0000.parquet", "b/test/0000.parquet", "b/train/0000.parquet"].into_iter(), &ENDINGS);
        assert_eq!(choose(placed(), None, "train").unwrap_err(), Unmet::Config(vec!["a".into(), "b".into()]));
        assert_eq!(choose(placed(), Some("c"), "train").unwrap_err(), Unmet::Config(vec!["a".into(), "b".into()]));
        assert_eq!(choose(placed(), Some("b"), "dev").unwrap_err(), Unmet::Split(vec!["test".into(), "train".into()]));
        let (config, files) = choose(placed(), Some("b"), "test").unwrap();
        assert_eq!((config.as_str(), files[0].name.as_str()), ("b", "b/test/0000.parquet"));
        let with_default = place(["train.jsonl", "fr/train.jsonl"].into_iter(), &ENDINGS);
        assert_eq!(choose(with_default, None, "train").unwrap().1.len(), 1);
    }
}
