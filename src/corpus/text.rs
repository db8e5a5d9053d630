//! Text files, split at a separator while streaming: a document and a read buffer are held, never the file.
//!
//! A line break directly before or after a separator belongs to it. Pieces of white space alone are no documents.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{too_long, Content, Pieces, MAX_DOCUMENT_BYTES};
use crate::error::{Error, Result};

const READ_BYTES: usize = 64 << 10;

/// A text file being read.
pub(super) struct TextFile<R = File> {
    path: PathBuf,
    input: R,
    separator: Vec<u8>,
    buffer: Vec<u8>,
    /// Offset of `buffer[0]` in the file.
    offset: u64,
    at_end: bool,
    after_separator: bool,
    done: bool,
}

impl TextFile {
    pub(super) fn open(path: &Path, separator: &str) -> Result<Self> {
        let input = File::open(path).map_err(|e| Error::io("open", path, e))?;
        Ok(Self::new(path, input, separator))
    }
}

impl<R: Read> TextFile<R> {
    fn new(path: &Path, input: R, separator: &str) -> Self {
        Self {
            path: path.to_path_buf(),
            input,
            separator: separator.as_bytes().to_vec(),
            buffer: Vec::new(),
            offset: 0,
            at_end: false,
            after_separator: false,
            done: false,
        }
    }

    /// Hands the next piece that is more than white space, with its offset, to `take`.
    fn piece<T>(&mut self, take: impl Fn(&[u8], u64) -> Result<T>) -> Result<Option<T>> {
        while !self.done {
            let mut scanned = 0;
            let end = loop {
                if let Some(at) = find(&self.buffer[scanned..], &self.separator) {
                    break Some(scanned + at);
                }
                // The tail may hold the beginning of a separator.
                scanned = self.buffer.len().saturating_sub(self.separator.len().saturating_sub(1));
                if self.at_end {
                    break None;
                }
                self.fill()?;
            };
            let body = &self.buffer[..end.unwrap_or(self.buffer.len())];
            let (start, body) = trim(body, self.offset, self.after_separator, end.is_some());
            let out = if body.iter().all(u8::is_ascii_whitespace) { None } else { Some(take(body, start)?) };
            match end {
                Some(end) => {
                    let used = end + self.separator.len();
                    self.buffer.drain(..used);
                    self.offset += used as u64;
                    self.after_separator = true;
                }
                None => self.done = true,
            }
            if out.is_some() {
                return Ok(out);
            }
        }
        Ok(None)
    }

    fn fill(&mut self) -> Result<()> {
        if self.buffer.len() > MAX_DOCUMENT_BYTES {
            let help = "set corpus.doc_separator to what stands between its documents (a line break will do), or split the file";
            return Err(too_long(&self.path, self.offset, help));
        }
        // Larger documents are read in larger steps, so that searching them again stays cheap.
        let want = READ_BYTES.max(self.buffer.len() / 2) as u64;
        let n = self.input.by_ref().take(want).read_to_end(&mut self.buffer).map_err(|e| Error::io("read", &self.path, e))?;
        self.at_end = (n as u64) < want;
        Ok(())
    }
}

impl<R: Read + Send> Pieces for TextFile<R> {
    fn next(&mut self) -> Result<Option<Content>> {
        let path = self.path.clone();
        self.piece(|bytes, offset| match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Content::Text(text.to_string())),
            Err(e) => Err(Error::format(
                "UTF-8 text",
                &path,
                format!("byte {} begins no character", offset + e.valid_up_to() as u64),
                "convert the file to UTF-8, or leave it out",
            )),
        })
    }

    fn skip(&mut self, n: u64) -> Result<u64> {
        for skipped in 0..n {
            if self.piece(|_, _| Ok(()))?.is_none() {
                return Ok(skipped);
            }
        }
        Ok(n)
    }
}

/// Takes off the byte order mark of a file and the line breaks that belong to the separators around a piece.
fn trim(mut body: &[u8], mut start: u64, after: bool, before: bool) -> (u64, &[u8]) {
    let first: &[&[u8]] = if after { &[b"\r\n", b"\n"] } else { &[b"\xEF\xBB\xBF"] };
    if after || start == 0 {
        if let Some(prefix) = first.iter().find(|p| body.starts_with(p)) {
            body = &body[prefix.len()..];
            start += prefix.len() as u64;
        }
    }
    if before {
        body = body.strip_suffix(b"\n").map_or(body, |b| b.strip_suffix(b"\r").unwrap_or(b));
    }
    (start, body)
}

/// Where `needle` begins in `hay`. An empty needle is nowhere.
fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    let (&first, rest) = needle.split_first()?;
    let mut from = 0;
    while let Some(at) = hay[from..].iter().position(|&b| b == first) {
        if hay[from + at + 1..].starts_with(rest) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives out few bytes at a time, so that separators meet the edges of reads.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let n = self.1.min(out.len()).min(self.0.len());
            out[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn split(text: &[u8], separator: &str, step: usize) -> Result<Vec<String>> {
        let mut file = TextFile::new(Path::new("t.txt"), Dribble(text, step), separator);
        let mut out = Vec::new();
        while let Some(Content::Text(t)) = file.next()? {
            out.push(t);
        }
        Ok(out)
    }

    #[test]
    fn line_breaks_at_separators_belong_to_them() {
        let text = "one\n\n<|endoftext|>\n two \r\n<|endoftext|>\r\n<|endoftext|>\n  \n<|endoftext|>three<|endoftext|>four\n";
        assert_eq!(split(text.as_bytes(), "<|endoftext|>", 7).unwrap(), ["one\n", " two ", "three", "four\n"]);
        assert_eq!(split(b"a\nb\n", "<|endoftext|>", 7).unwrap(), ["a\nb\n"]);
        assert_eq!(split("\u{feff}a".as_bytes(), "", 1).unwrap(), ["a"]);
        assert_eq!(split(b" \n", "|", 1).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn bad_utf8_is_told_by_its_offset() {
        let e = split(b"good|also\xFFbad", "|", 3).unwrap_err().to_string();
        assert!(e.contains("byte 9 "), "{e}");
    }

    proptest! {
        #[test]
        fn documents_joined_and_split_come_back(
            docs in prop::collection::vec("[a-z|<>é]{0,20}[a-zé]", 1..12),
            step in 1usize..9,
            separator in prop::sample::select(vec!["<|endoftext|>", "\n\n\n", "##", "§"]),
            skip in 0u64..14,
        ) {
            let joined = docs.join(separator);
            prop_assert_eq!(&split(joined.as_bytes(), separator, step).unwrap(), &docs);
            let mut file = TextFile::new(Path::new("t.txt"), Dribble(joined.as_bytes(), step), separator);
            prop_assert_eq!(file.skip(skip).unwrap(), skip.min(docs.len() as u64));
            let next = file.next().unwrap();
            prop_assert_eq!(next, docs.get(skip as usize).cloned().map(Content::Text));
        }
    }
}
