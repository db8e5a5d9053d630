//! Pages of made-up tables: what is in the files. What a browser makes of them: tests/browser/dashboard.py.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lapidary::dashboard::{self, Extra};
use serde_json::Value;

use crate::synthetic;

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|(n, b)| (format!("{name}/{n}"), b)));
        } else {
            found.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// Contents of the script elements, by their attributes.
fn scripts(page: &str) -> Vec<(String, String)> {
    page.split("<script")
        .skip(1)
        .map(|s| {
            let (attributes, rest) = s.split_once('>').unwrap();
            (attributes.trim().to_string(), rest.split_once("</script>").unwrap().0.to_string())
        })
        .collect()
}

#[test]
fn one_file_holds_every_latent_and_no_markup_of_the_corpus() {
    let dir = tempfile::tempdir().unwrap();
    let (table, examples) = synthetic::table(130, 1, true);
    let out = dir.path().join("page.html");
    let written = dashboard::write(&table, &examples, &Extra::default(), &out, false).unwrap();
    assert_eq!((written.latents, written.files), (130, 1));
    let page = fs::read_to_string(&out).unwrap();
    let found = scripts(&page);
    // The index, three chunks, the program: a token that opened or closed an element would make it more.
    assert_eq!(found.len(), 5, "{:?}", found.iter().map(|f| &f.0).collect::<Vec<_>>());
    assert_eq!(page.matches("</script").count(), 5);
    let chunks: Vec<Value> = found[1..4].iter().map(|(_, json)| serde_json::from_str(json).unwrap()).collect();
    assert_eq!(chunks.iter().map(|c| c["latents"].as_array().unwrap().len()).sum::<usize>(), 130);
    for (_, json) in &found[..4] {
        assert!(!json.contains(['<', '>', '&', '\0', '\u{2028}']));
    }
    // The texts themselves survive.
    let texts = chunks[0]["vocabulary"]["texts"].as_array().unwrap();
    for hostile in synthetic::HOSTILE {
        assert!(texts.iter().any(|t| t == hostile), "{hostile:?}");
    }
    assert!(page.contains("<title>&lt;b&gt;hostile&lt;/b&gt; · blocks.2.hook_resid_post</title>"));
}

#[test]
fn a_folder_has_a_chunk_for_every_latent_and_the_same_bytes_again() {
    let dir = tempfile::tempdir().unwrap();
    let (table, examples) = synthetic::table(200, 2, true);
    let extra = Extra { title: Some("</title><script>".into()), ..Extra::default() };
    let [a, b] = ["a", "b"].map(|name| {
        let out = dir.path().join(name);
        dashboard::write(&table, &examples, &extra, &out, false).unwrap();
        files(&out)
    });
    assert_eq!(a, b);
    assert_eq!(a.keys().collect::<Vec<_>>(), ["data/000.js", "data/001.js", "data/002.js", "data/003.js", "index.html"]);
    let mut latents = 0;
    for (i, bytes) in a.values().take(4).enumerate() {
        let text = std::str::from_utf8(bytes).unwrap();
        let json = text.strip_prefix(&format!("lapidaryChunk({i},")).unwrap().strip_suffix(");\n").unwrap();
        latents += serde_json::from_str::<Value>(json).unwrap()["latents"].as_array().unwrap().len();
    }
    assert_eq!(latents, 200);
    assert_eq!(scripts(std::str::from_utf8(&a["index.html"]).unwrap()).len(), 2);

    // A smaller table over it leaves no chunk of the larger one, and nothing is replaced unasked.
    let (table, examples) = synthetic::table(70, 2, false);
    let out = dir.path().join("a");
    let refused = dashboard::write(&table, &examples, &extra, &out, false).unwrap_err();
    assert_eq!(refused.exit_code(), 2);
    assert!(refused.to_string().contains("--overwrite"));
    dashboard::write(&table, &examples, &extra, &out, true).unwrap();
    assert_eq!(files(&out).keys().collect::<Vec<_>>(), ["data/000.js", "data/001.js", "index.html"]);
}

#[test]
fn a_thousand_latents_stay_below_ten_megabytes() {
    let dir = tempfile::tempdir().unwrap();
    let (table, examples) = synthetic::table(1024, 3, false);
    let written = dashboard::write(&table, &examples, &Extra::default(), &dir.path().join("page.html"), false).unwrap();
    assert!(written.bytes < 10_000_000, "{} bytes", written.bytes);
}

#[test]
fn a_table_without_examples_or_tokens_still_makes_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let (mut table, mut examples) = synthetic::table(10, 4, false);
    for f in &mut table.features {
        f.top_tokens.clear();
        f.top_token_ids.clear();
        f.logit_histogram.clear();
        (f.logit_min, f.logit_max, f.enc_dec_cos) = (None, None, None);
    }
    for e in &mut examples.0 {
        e.tokens.iter_mut().for_each(String::clear);
        e.token_ids.clear();
    }
    dashboard::write(&table, &examples, &Extra::default(), &dir.path().join("a.html"), false).unwrap();
    dashboard::write(&table, &Default::default(), &Extra::default(), &dir.path().join("b.html"), false).unwrap();
}

/// A browser to look with, if there is one: `CHROMIUM`, or a usual name on the path.
fn chromium() -> Option<std::path::PathBuf> {
    let named = std::env::var_os("CHROMIUM").map(std::path::PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .flat_map(|dir| ["chromium", "chromium-browser", "google-chrome"].map(|name| dir.join(name)))
        .find(|file| file.is_file());
    named.or(found)
}

/// The page as the browser has it after the program ran. `None`, with the reason printed, where there is no browser that runs.
fn rendered(page: &Path, at: &str) -> Option<String> {
    let Some(chromium) = chromium() else {
        crate::support::skip("there is no Chromium (CHROMIUM names one)");
        return None;
    };
    let profile = tempfile::tempdir().unwrap();
    let out = std::process::Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--virtual-time-budget=10000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}{at}", page.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() || !dom.contains("<html") {
        crate::support::skip(&format!(
            "Chromium does not run here: {}",
            String::from_utf8_lossy(&out.stderr).lines().last().unwrap_or_default()
        ));
        return None;
    }
    Some(dom)
}

#[test]
fn a_browser_shows_a_latent_of_a_hostile_corpus_as_text() {
    let dir = tempfile::tempdir().unwrap();
    let (table, examples) = synthetic::table(80, 0, true);
    let latent = table.features.iter().position(|f| !f.dead && f.latent >= 64).unwrap();
    for name in ["page.html", "site"] {
        let written = dashboard::write(&table, &examples, &Extra::default(), &dir.path().join(name), false).unwrap();
        let page = fs::canonicalize(&written.page).unwrap();
        let Some(dom) = rendered(&page, &format!("#/latent/{latent}")) else { return };
        let main = dom.split_once("<main").unwrap().1.split_once("</main>").unwrap().0;
        assert!(main.contains(&format!("Latent {latent}")), "{name}");
        assert_eq!(main.matches("class=\"context\"").count(), examples.of(latent as u32).len(), "{name}");
        assert!(main.contains("&lt;script&gt;") || main.contains("&lt;img src=x"), "{name}");
        assert!(!main.contains("<script") && !main.contains("<img"), "{name}");
        assert!(!dom.contains("window.pwned=1;alert(1)</script>"), "{name}");
    }
}
