//! JSON inside HTML: small numbers, and no byte that could end the script element it stands in.

use serde::{Serialize, Serializer};

/// A number at four significant digits; what is not finite becomes null.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Num(pub f64);

impl From<f32> for Num {
    fn from(x: f32) -> Self {
        Self(f64::from(x))
    }
}

impl Serialize for Num {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.0.is_finite() {
            return serializer.serialize_none();
        }
        // A count is a count, however long.
        if self.0.fract() == 0.0 && self.0.abs() < 1e15 {
            return serializer.serialize_i64(self.0 as i64);
        }
        // Through decimal text: the nearest double of the rounded number prints as the short form.
        let short: f64 = format!("{:.3e}", self.0).parse().unwrap_or(self.0);
        if short.fract() == 0.0 && short.abs() < 1e15 {
            serializer.serialize_i64(short as i64)
        } else {
            serializer.serialize_f64(short)
        }
    }
}

/// All of `values`.
pub(super) fn nums<T: Copy + Into<Num>>(values: &[T]) -> Vec<Num> {
    values.iter().map(|&v| v.into()).collect()
}

/// One where it is known; null otherwise.
pub(super) fn maybe(value: Option<impl Into<Num>>) -> Num {
    value.map_or(Num(f64::NAN), Into::into)
}

impl From<f64> for Num {
    fn from(x: f64) -> Self {
        Self(x)
    }
}

/// `value` as JSON that is safe in a script element and in a `.js` file: `<`, `>`, `&` and the line ends of JavaScript that JSON
/// does not know are written as `\uXXXX`. They occur in strings only, so the value stays the same.
pub(super) fn embed(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("plain data with string keys");
    let mut safe = String::with_capacity(json.len() + json.len() / 64);
    for c in json.chars() {
        match c {
            '<' => safe.push_str("\\u003c"),
            '>' => safe.push_str("\\u003e"),
            '&' => safe.push_str("\\u0026"),
            '\u{2028}' => safe.push_str("\\u2028"),
            '\u{2029}' => safe.push_str("\\u2029"),
            '\u{7f}' => safe.push_str("\\u007f"),
            c => safe.push(c),
        }
    }
    safe
}

/// Text between tags, or in a quoted attribute.
pub(super) fn html(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // NUL and other controls are errors in HTML.
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// Characters of [`digits`]: printable ASCII without what JSON or HTML would escape.
const DIGITS: usize = 90;

/// `indices` as text, `width` characters each, most significant first; the page's `data.js` reads it back.
pub(super) fn digits(indices: &[usize], width: usize) -> String {
    let alphabet: Vec<u8> = (b' '..=b'~').filter(|c| !b"\"\\<>&".contains(c)).collect();
    debug_assert_eq!(alphabet.len(), DIGITS);
    let mut out = vec![0u8; indices.len() * width];
    for (cell, &index) in out.chunks_mut(width).zip(indices) {
        let mut rest = index;
        for place in cell.iter_mut().rev() {
            *place = alphabet[rest % DIGITS];
            rest /= DIGITS;
        }
    }
    String::from_utf8(out).expect("the alphabet is ASCII")
}

/// Characters that each index below `n` needs.
pub(super) fn digits_width(n: usize) -> usize {
    let mut width = 1;
    let mut reach = DIGITS;
    while reach < n {
        width += 1;
        reach = reach.saturating_mul(DIGITS);
    }
    width
}

/// Standard base64 with padding (RFC 4648), as content security policies spell hashes.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0u32, |w, &b| (w << 8) | u32::from(b)) << (8 * (3 - group.len()));
        for i in 0..4 {
            out.push(if i <= group.len() { char::from(ALPHABET[(word >> (18 - 6 * i)) as usize & 63]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_short_and_whole_where_they_can() {
        let text = embed(&[0.0, 1.0, -3.0, 0.123_456_7, 1.0 / 3.0, 1e-7, 12345.678, 78619.0, f64::NAN, f64::INFINITY].map(Num).to_vec());
        assert_eq!(text, "[0,1,-3,0.1235,0.3333,1e-7,12350,78619,null,null]");
        assert_eq!(embed(&Num::from(0.1f32)), "0.1");
    }

    #[test]
    fn base64_agrees_with_the_rfc() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    proptest! {
        #[test]
        fn no_text_leaves_its_script_element(text in any::<String>(), hostile in "[</>&!\\-a-z\u{0}\u{2028}\u{2029}\u{7f}\"\\\\]{0,40}") {
            for s in [&text, &hostile] {
                let json = embed(s);
                prop_assert!(!json.contains(['<', '>', '&', '\u{2028}', '\u{2029}', '\0', '\n']), "{json}");
                prop_assert_eq!(&serde_json::from_str::<String>(&json).unwrap(), s);
                prop_assert!(!html(s).contains(['<', '>', '"', '\'', '\0']));
            }
        }

        #[test]
        fn digits_come_back(indices in proptest::collection::vec(0usize..800_000, 0..50)) {
            let width = digits_width(indices.iter().max().map_or(0, |m| m + 1));
            let text = digits(&indices, width);
            prop_assert_eq!(text.len(), width * indices.len());
            let alphabet: Vec<u8> = (b' '..=b'~').filter(|c| !b"\"\\<>&".contains(c)).collect();
            let back: Vec<usize> = text.as_bytes().chunks(width)
                .map(|c| c.iter().fold(0, |n, b| n * 90 + alphabet.iter().position(|a| a == b).unwrap())).collect();
            prop_assert_eq!(back, indices);
        }
    }
}
