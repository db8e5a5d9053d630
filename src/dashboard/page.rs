//! The HTML around the data: one script and one style, named by their hashes in the policy that forbids all others.

use sha2::{Digest, Sha256};

use super::json::{base64, html};

const BODY: &str = include_str!("assets/body.html");
const STYLE: &str = include_str!("assets/style.css");
/// In the order in which they use each other.
const SCRIPTS: &[&str] = &[
    include_str!("assets/dom.js"),
    include_str!("assets/text.js"),
    include_str!("assets/data.js"),
    include_str!("assets/query.js"),
    include_str!("assets/charts.js"),
    include_str!("assets/filters.js"),
    include_str!("assets/list.js"),
    include_str!("assets/contexts.js"),
    include_str!("assets/latent.js"),
    include_str!("assets/atlas.js"),
    include_str!("assets/overview.js"),
    include_str!("assets/app.js"),
];

/// The program, as one script element holds it.
fn script() -> String {
    format!("\n\"use strict\";\n(() => {{\n{}}})();\n", SCRIPTS.concat())
}

fn hash(text: &str) -> String {
    format!("'sha256-{}'", base64(&Sha256::digest(text.as_bytes())))
}

/// Nothing is fetched, nothing is framed, nothing runs but our script. Where chunks are files, that script may add script elements
/// (`strict-dynamic`), and only with addresses that pass its one Trusted Types policy.
fn policy(script: &str, style: &str, files: bool) -> String {
    let (dynamic, types) = if files { (" 'strict-dynamic'", "lapidary") } else { ("", "'none'") };
    format!(
        "default-src 'none'; script-src {}{dynamic}; style-src {}; img-src data:; base-uri 'none'; form-action 'none'; \
         require-trusted-types-for 'script'; trusted-types {types}",
        hash(script),
        hash(style)
    )
}

/// The page. `index` and `chunks` are JSON made by [`super::json::embed`]; no chunks where they are files.
pub(super) fn page(title: &str, index: &str, chunks: &[String]) -> String {
    let script = script();
    let style = format!("\n{STYLE}");
    let mut out =
        String::with_capacity(index.len() + chunks.iter().map(|c| c.len() + 64).sum::<usize>() + script.len() + style.len() + 8192);
    out.push_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str(&format!("<meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n", policy(&script, &style, chunks.is_empty())));
    out.push_str(
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n",
    );
    out.push_str("<meta name=\"referrer\" content=\"no-referrer\">\n<link rel=\"icon\" href=\"data:,\">\n");
    out.push_str(&format!("<title>{}</title>\n<style>{style}</style>\n</head>\n", html(title)));
    out.push_str(BODY);
    out.push_str(&format!("<script type=\"application/json\" id=\"index\">{index}</script>\n"));
    for (i, chunk) in chunks.iter().enumerate() {
        out.push_str(&format!("<script type=\"application/json\" id=\"chunk-{i}\">{chunk}</script>\n"));
    }
    out.push_str(&format!("<script>{script}</script>\n</body>\n</html>\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes between `open` and the next `close`.
    fn between<'a>(page: &'a str, open: &str, close: &str) -> &'a str {
        let from = page.find(open).unwrap() + open.len();
        &page[from..from + page[from..].find(close).unwrap()]
    }

    #[test]
    fn the_policy_names_what_is_there() {
        for chunks in [vec![], vec!["{}".to_string()]] {
            let page = page("t", "{}", &chunks);
            let policy = between(&page, "Content-Security-Policy\" content=\"", "\"");
            assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"));
            assert!(policy.contains(&hash(between(&page, "<script>", "</script>"))));
            assert!(policy.contains(&hash(between(&page, "<style>", "</style>"))));
            assert_eq!(policy.contains("strict-dynamic"), chunks.is_empty());
        }
    }

    #[test]
    fn the_program_has_no_way_to_make_markup() {
        let script = script();
        for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "fetch(", "XMLHttp", "</"] {
            assert!(!script.contains(sink), "{sink}");
        }
        assert!(!BODY.contains(" style=") && !BODY.contains(" onclick") && !script.contains("\r"));
    }
}
