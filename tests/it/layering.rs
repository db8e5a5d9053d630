//! Who may import whom, as ARCHITECTURE.md's table says. Reads `crate::module` paths from the sources; nothing is compiled.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Everyone may use these; they use no stage.
const FOUNDATION: &[&str] =
    &["artefact", "codes", "error", "hook", "progress", "rng", "Codes", "Error", "Result", "HookPoint", "Site", "Progress"];

/// Module -> what else it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("kernels", &[]),
    ("dist", &[]),
    ("hub", &[]),
    ("corpus", &["hub"]),
    ("host", &[]),
    ("shard", &[]),
    ("harvest", &["corpus", "host", "shard", "dist"]),
    ("dictionary", &["kernels"]),
    ("sae", &["kernels", "dictionary"]),
    ("train", &["sae", "dictionary", "shard", "dist", "kernels"]),
    ("stream", &["harvest", "train", "shard"]),
    ("encode", &["dictionary", "shard", "dist", "kernels"]),
    ("features", &["corpus", "dictionary", "encode", "host", "kernels", "score", "shard"]),
    ("score", &["dictionary", "encode", "shard", "host", "corpus", "kernels"]),
    ("plot", &["score", "encode", "dictionary", "train", "features"]),
    ("dashboard", &["features", "score", "dictionary"]),
    ("trace", &["corpus", "host", "dictionary"]),
    ("steer", &["trace", "corpus", "host", "dictionary"]),
    ("claims", &["corpus", "host", "harvest", "steer", "shard", "sae", "train", "dictionary", "score", "kernels", "plot"]),
    ("bench", &["corpus", "harvest", "shard", "sae", "train", "dictionary", "kernels"]),
    ("formats", &["dictionary", "kernels", "shard", "features"]),
    ("config", &["corpus", "host", "features", "harvest", "shard", "sae", "train", "score", "kernels"]),
    ("sweep", &["config", "dictionary", "sae", "shard", "train"]),
    ("notebook", &["dictionary", "features", "formats", "harvest", "host", "plot", "score", "shard", "steer", "trace", "train"]),
    ("codes", &[]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Identifiers right after `crate::`, grouped imports included; test modules are not part of the layering.
fn imports(text: &str) -> BTreeSet<String> {
    let code: String = text.lines().filter(|l| !l.trim_start().starts_with("//")).map(|l| format!("{l}\n")).collect();
    let code = code.split("#[cfg(test)]").next().unwrap_or_default();
    let word = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 || (c == ',' && depth == 1) {
                    found.insert(word(item.trim()));
                    item.clear();
                } else {
                    item.push(c);
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            found.insert(word(rest));
        }
    }
    found.remove("");
    found
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let allowed: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for file in files {
        let relative = file.strip_prefix(&src).unwrap();
        let module = relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_string();
        if ["lib", "main", "cli"].contains(&module.as_str()) || relative.file_name().is_some_and(|n| n == "tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for import in imports(&text) {
            checked += 1;
            let may = import == module
                || FOUNDATION.contains(&import.as_str())
                || allowed.get(module.as_str()).is_some_and(|list| list.contains(&import.as_str()));
            if !may {
                wrong.push(format!("{} imports crate::{import}", relative.display()));
            }
        }
    }
    assert!(checked > 50, "the scan found only {checked} imports: it is broken");
    assert!(wrong.is_empty(), "ARCHITECTURE.md's import table does not allow:\n{}", wrong.join("\n"));
}

#[test]
fn the_scan_sees_groups_and_paths() {
    let found = imports("use crate::{shard::{Batch, Rows}, hook::HookPoint};\nfn f() { crate::train::g() }\n// crate::comment\n#[cfg(test)]\nuse crate::hidden;");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["hook", "shard", "train"]);
}

#[test]
fn the_command_line_stays_in_its_folder() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    for file in files.iter().filter(|f| !f.starts_with(src.join("cli"))) {
        let text = fs::read_to_string(file).unwrap();
        for name in ["clap::", "indicatif::", "println!(", "eprintln!(", "std::env::var"] {
            // evcxr's protocol is standard output.
            if name == "println!(" && file.ends_with("notebook/emit.rs") {
                continue;
            }
            let at = text.lines().find(|l| l.contains(name) && !l.trim_start().starts_with("//"));
            assert!(
                at.is_none()
                    || file.ends_with("tests.rs")
                    || file.parent().is_some_and(|p| p.ends_with("tests"))
                    || text.find("#[cfg(test)]").is_some_and(|t| text.find(name) > Some(t)),
                "{}: {at:?}",
                file.display()
            );
        }
    }
}
