//! Token strings, each kept once.

use std::collections::HashMap;

use serde::Serialize;

/// Characters of a string that are kept; a corpus of one endless word must not become the page.
const LONGEST: usize = 1000;

/// `text` cut at [`LONGEST`] characters, saying how many are gone.
pub(super) fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}… ({} more characters)", &text[..end], text[end..].chars().count()),
        None => text.to_string(),
    }
}

/// Tokens in the order in which they were met.
#[derive(Debug, Default, Serialize)]
pub(super) struct Vocabulary {
    texts: Vec<String>,
    /// -1 where there is none.
    ids: Vec<i64>,
    #[serde(skip)]
    places: HashMap<(i64, String), usize>,
}

impl Vocabulary {
    /// Where a token is, taken in if it is new.
    pub fn place(&mut self, text: &str, id: Option<u32>) -> usize {
        let id = id.map_or(-1, i64::from);
        // Both parts matter: byte tokens share a text, and files of strangers could give one id two texts.
        let key = (id, text.to_string());
        if let Some(&place) = self.places.get(&key) {
            return place;
        }
        self.texts.push(cut(text));
        self.ids.push(id);
        self.places.insert(key, self.texts.len() - 1);
        self.texts.len() - 1
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.texts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_one_place_and_a_bounded_length() {
        let mut v = Vocabulary::default();
        assert_eq!([v.place("a", Some(1)), v.place("b", None), v.place("a", Some(1)), v.place("a", Some(2))], [0, 1, 0, 2]);
        v.place(&"é".repeat(10_000), Some(3));
        assert!(v.texts[3].chars().count() < 1050 && v.texts[3].ends_with("… (9000 more characters)"));
        assert_eq!(v.len(), 4);
    }
}
