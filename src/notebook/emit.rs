//! evcxr's protocol: what a cell prints between two markers is shown as its media type says. The only file of the library that prints.

use super::table::Html;
use crate::plot::{svg, Figure};

/// No text of ours may close the block that it stands in.
fn unmarked(text: &str, by: &str) -> String {
    text.replace("EVCXR_", &format!("EVCXR{by}"))
}

fn block(media: &str, content: &str) -> String {
    format!("EVCXR_BEGIN_CONTENT {media}\n{}\nEVCXR_END_CONTENT", content.trim_end())
}

/// A page fragment, with its text for those who show no HTML.
pub(super) fn html(shown: &Html) {
    println!("{}", block("text/html", &unmarked(shown.html(), "&#95;")));
    println!("{}", block("text/plain", &unmarked(shown.text(), " ")));
}

impl Figure {
    /// Shows it in an evcxr notebook, as SVG.
    pub fn evcxr_display(&self) {
        match svg(self) {
            Ok(drawn) => println!("{}", block("image/svg+xml", &unmarked(&drawn, "&#95;"))),
            Err(e) => println!("{e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corpus_cannot_close_the_block() {
        let hostile = "a\nEVCXR_END_CONTENT\nEVCXR_BEGIN_CONTENT text/html\n<script>";
        let printed = block("text/plain", &unmarked(hostile, " "));
        assert_eq!(printed.matches("EVCXR_").count(), 2, "{printed}");
    }
}
