//! Token ids in files: raw streams (.u16, .u32) and NumPy arrays. Nothing is added to them and nothing is taken away.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::{npy, Content, CorpusConfig, Format, Pieces, MAX_DOCUMENT_BYTES};
use crate::error::{Error, Result};

const READ_TOKENS: usize = 16 << 10;

/// How ids are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Element {
    bytes: usize,
    signed: bool,
}

/// Where documents begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// At every occurrence of this id.
    Token(u32),
    /// Every so many ids.
    Blocks(usize),
}

/// A file of token ids being read.
pub(super) struct TokenFile {
    path: PathBuf,
    input: BufReader<File>,
    element: Element,
    rule: Rule,
    /// Ids in the file, and how many of them were read into `ahead`.
    len: u64,
    read: u64,
    data_at: u64,
    /// Ids read and not handed out yet, from `from` on.
    ahead: Vec<u32>,
    from: usize,
    seen_doc_token: bool,
}

impl TokenFile {
    pub(super) fn open(path: &Path, format: Format, config: &CorpusConfig) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        let bad = |problem: String, help: &str| Error::format("token file", path, problem, help);
        let mut input = BufReader::with_capacity(64 << 10, file);
        let (element, data_at, shape) = match format {
            Format::Npy => {
                let header = npy::header(&mut input, path)?;
                let (kind, size) = header.dtype.split_at(header.dtype.len().min(1));
                let element = match (kind, size.parse()) {
                    ("u" | "i", Ok(bytes @ (1 | 2 | 4 | 8))) => Element { bytes, signed: kind == "i" },
                    _ => {
                        return Err(bad(
                            format!("its elements are `{}`, not integers", header.dtype),
                            "save token ids as uint16, uint32, int32 or int64",
                        ))
                    }
                };
                if header.shape.is_empty() || header.shape.len() > 2 {
                    let problem = format!("its shape is {:?}", header.shape);
                    return Err(bad(problem, "save a 1-D stream of ids, or a 2-D array with one document per row"));
                }
                (element, header.data_at, header.shape)
            }
            format => {
                let element = Element { bytes: if format == Format::U16 { 2 } else { 4 }, signed: false };
                if bytes % element.bytes as u64 != 0 {
                    return Err(bad(
                        format!("its {bytes} bytes are no multiple of {}", element.bytes),
                        "check that it is the whole file, and its type",
                    ));
                }
                (element, 0, vec![bytes / element.bytes as u64])
            }
        };
        let len = shape
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(d))
            .filter(|&n| n.checked_mul(element.bytes as u64).is_some_and(|data| data.checked_add(data_at) == Some(bytes)));
        let len = len.ok_or_else(|| bad(format!("shape {shape:?} does not fit its {bytes} bytes"), "check that it is the whole file"))?;
        let rule = match (shape.as_slice(), config.doc_token, config.block_tokens) {
            // An empty row would be an endless document.
            ([_, width], _, _) => Rule::Blocks((*width as usize).max(1)),
            (_, Some(token), _) => Rule::Token(token),
            (_, None, Some(block)) => Rule::Blocks(block),
            (_, None, None) => {
                return Err(Error::config(
                    "corpus.doc_token",
                    format!("is not set, and {} is one stream of {len} ids", path.display()),
                    "set it to the id that begins a document, or corpus.block_tokens to cut the stream into blocks",
                ))
            }
        };
        Ok(Self {
            path: path.to_path_buf(),
            input,
            element,
            rule,
            len,
            read: 0,
            data_at,
            ahead: Vec::new(),
            from: 0,
            seen_doc_token: false,
        })
    }

    /// Reads up to `n` more ids into `ahead`.
    fn fill(&mut self, n: usize) -> Result<()> {
        self.ahead.drain(..self.from);
        self.from = 0;
        let n = (n as u64).min(self.len - self.read) as usize;
        let mut bytes = vec![0; n * self.element.bytes];
        self.input.read_exact(&mut bytes).map_err(|e| Error::io("read", &self.path, e))?;
        for element in bytes.chunks_exact(self.element.bytes) {
            let negative = self.element.signed && element[self.element.bytes - 1] & 0x80 != 0;
            let id = element.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
            let id = u32::try_from(id).ok().filter(|_| !negative).ok_or_else(|| {
                let at = self.read + self.ahead.len() as u64;
                let problem = format!("element {at} is no token id: it is negative or beyond 32 bits");
                Error::format("token file", &self.path, problem, "remove padding such as -100 before saving")
            })?;
            self.ahead.push(id);
        }
        self.read += n as u64;
        Ok(())
    }

    /// The end in `ahead` of the document that begins at `from`; reads until it is known. `None` at the end of the file.
    fn document(&mut self) -> Result<Option<usize>> {
        if self.from == self.ahead.len() {
            self.fill(READ_TOKENS)?;
            if self.ahead.is_empty() {
                return Ok(None);
            }
        }
        match self.rule {
            Rule::Blocks(n) => {
                if self.ahead.len() - self.from < n {
                    self.fill(n.max(READ_TOKENS))?;
                }
                Ok(Some((self.from + n).min(self.ahead.len())))
            }
            Rule::Token(token) => {
                let mut searched = 1;
                loop {
                    self.seen_doc_token |= self.ahead[self.from] == token;
                    if let Some(at) = self.ahead[self.from + searched..].iter().position(|&id| id == token) {
                        return Ok(Some(self.from + searched + at));
                    }
                    searched = self.ahead.len() - self.from;
                    if self.read == self.len {
                        if self.seen_doc_token {
                            return Ok(Some(self.ahead.len()));
                        }
                        let problem = format!("the id {token} that should begin its documents is not in it");
                        return Err(Error::format(
                            "token file",
                            &self.path,
                            problem,
                            "check corpus.doc_token, or leave it out to cut the stream into blocks",
                        ));
                    }
                    if searched > MAX_DOCUMENT_BYTES / 4 {
                        let problem = format!("{searched} ids without the id {token} that begins a document");
                        return Err(Error::format(
                            "token file",
                            &self.path,
                            problem,
                            "check corpus.doc_token, or leave it out to cut the stream into blocks",
                        ));
                    }
                    self.fill(READ_TOKENS.max(searched))?;
                }
            }
        }
    }
}

impl Pieces for TokenFile {
    fn next(&mut self) -> Result<Option<Content>> {
        let Some(end) = self.document()? else { return Ok(None) };
        let ids = self.ahead[self.from..end].to_vec();
        self.from = end;
        // The first document of a stream may lack the token; whether it is in the file at all shows at its end.
        self.seen_doc_token |= end < self.ahead.len();
        Ok(Some(Content::Tokens(ids)))
    }

    fn skip(&mut self, n: u64) -> Result<u64> {
        if let Rule::Blocks(block) = self.rule {
            let at = self.read - (self.ahead.len() - self.from) as u64;
            let left = (self.len - at).div_ceil(block as u64);
            let skipped = n.min(left);
            let to = (at + skipped * block as u64).min(self.len);
            let byte = self.data_at + to * self.element.bytes as u64;
            self.input.seek(SeekFrom::Start(byte)).map_err(|e| Error::io("seek in", &self.path, e))?;
            self.read = to;
            self.ahead.clear();
            self.from = 0;
            return Ok(skipped);
        }
        for skipped in 0..n {
            let Some(end) = self.document()? else { return Ok(skipped) };
            self.seen_doc_token |= end < self.ahead.len();
            self.from = end;
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((dict.len() as u16).to_le_bytes());
        bytes.extend(dict.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn all(path: &Path, format: Format, config: &CorpusConfig, skip: u64) -> Result<Vec<Vec<u32>>> {
        let mut file = TokenFile::open(path, format, config)?;
        file.skip(skip)?;
        let mut out = Vec::new();
        while let Some(Content::Tokens(ids)) = file.next()? {
            out.push(ids);
        }
        Ok(out)
    }

    #[test]
    fn arrays_of_every_integer_type() {
        let dir = tempfile::tempdir().unwrap();
        let config = CorpusConfig::default();
        let two = |descr: &str, data: &[u8]| all(&write(dir.path(), "x.npy", &npy(descr, "(2, 2)", data)), Format::Npy, &config, 0);
        let expected = vec![vec![1, 2], vec![3, 255]];
        assert_eq!(two("|u1", &[1, 2, 3, 255]).unwrap(), expected);
        assert_eq!(two("<i4", &[1, 2, 3, 255].map(i32::to_le_bytes).concat()).unwrap(), expected);
        assert_eq!(two("<i8", &[1, 2, 3, 255].map(i64::to_le_bytes).concat()).unwrap(), expected);
        assert!(two("<i8", &[1, -100, 3, 4].map(i64::to_le_bytes).concat()).unwrap_err().to_string().contains("element 1"));
        assert!(two("<f4", &[0; 16]).unwrap_err().to_string().contains("not integers"));
        assert!(two("<u2", &[0; 7]).unwrap_err().to_string().contains("does not fit"));
    }

    #[test]
    fn a_stream_needs_a_rule_and_a_rule_that_applies() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "x.u16", &[5u16, 6, 7].map(u16::to_le_bytes).concat());
        let with =
            |doc_token, block_tokens| all(&path, Format::U16, &CorpusConfig { doc_token, block_tokens, ..CorpusConfig::default() }, 0);
        assert!(matches!(with(None, None), Err(Error::Config { .. })));
        assert_eq!(with(None, Some(2)).unwrap(), [vec![5, 6], vec![7]]);
        assert_eq!(with(Some(6), Some(2)).unwrap(), [vec![5], vec![6, 7]], "the token decides where both are set");
        assert!(with(Some(9), None).unwrap_err().to_string().contains("not in it"));
        let odd = write(dir.path(), "y.u16", &[1, 2, 3]);
        assert!(all(&odd, Format::U16, &CorpusConfig::default(), 0).unwrap_err().to_string().contains("multiple"));
    }

    proptest! {
        #[test]
        fn streams_split_at_the_token(docs in prop::collection::vec(prop::collection::vec(2u32..50, 0..40), 1..30), skip in 0u64..32) {
            let dir = tempfile::tempdir().unwrap();
            let docs: Vec<Vec<u32>> = docs.into_iter().map(|d| [vec![1], d].concat()).collect();
            let flat: Vec<u32> = docs.concat();
            let path = write(dir.path(), "x.u32", &flat.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
            let config = CorpusConfig { doc_token: Some(1), ..CorpusConfig::default() };
            prop_assert_eq!(all(&path, Format::U32, &config, skip).unwrap(), docs[docs.len().min(skip as usize)..].to_vec());
            let blocks = CorpusConfig { block_tokens: Some(7), ..CorpusConfig::default() };
            let expected: Vec<Vec<u32>> = flat.chunks(7).skip(skip as usize).map(<[u32]>::to_vec).collect();
            prop_assert_eq!(all(&path, Format::U32, &blocks, skip).unwrap(), expected);
        }
    }
}
