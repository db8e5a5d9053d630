//! JSON lines: every record is a document, its text in one field. Blank lines are no records.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{too_long, Content, Pieces, MAX_DOCUMENT_BYTES};
use crate::error::{Error, Result};

/// A .jsonl file being read.
pub(super) struct JsonLines {
    path: PathBuf,
    field: String,
    input: BufReader<File>,
    line: Vec<u8>,
    line_number: u64,
    offset: u64,
}

impl JsonLines {
    pub(super) fn open(path: &Path, field: &str) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let (path, field) = (path.to_path_buf(), field.to_string());
        Ok(Self { path, field, input: BufReader::with_capacity(64 << 10, file), line: Vec::new(), line_number: 0, offset: 0 })
    }

    /// Reads the next line that is not blank.
    fn advance(&mut self) -> Result<bool> {
        loop {
            self.line.clear();
            let most = MAX_DOCUMENT_BYTES as u64;
            let n = self.input.by_ref().take(most).read_until(b'\n', &mut self.line).map_err(|e| Error::io("read", &self.path, e))?;
            if n == 0 {
                return Ok(false);
            }
            if n as u64 == most && self.line.last() != Some(&b'\n') {
                return Err(too_long(&self.path, self.offset, "write one record per line"));
            }
            self.line_number += 1;
            self.offset += n as u64;
            if !self.line.iter().all(u8::is_ascii_whitespace) {
                return Ok(true);
            }
        }
    }
}

impl Pieces for JsonLines {
    fn next(&mut self) -> Result<Option<Content>> {
        if !self.advance()? {
            return Ok(None);
        }
        let bad = |problem: String, help: &str| Error::format("JSON lines file", &self.path, problem, help);
        let record: Value = serde_json::from_slice(&self.line)
            .map_err(|e| bad(format!("line {} is not JSON: {e}", self.line_number), "every line must be one JSON object"))?;
        match record.get(&self.field) {
            Some(Value::String(text)) => Ok(Some(Content::Text(text.clone()))),
            Some(_) => Err(bad(
                format!("line {}: field `{}` is no string", self.line_number, self.field),
                "name another field in corpus.text_field",
            )),
            None => {
                let fields = record.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>().join(", ")).unwrap_or_default();
                let problem = format!("line {} has no field `{}`; it has: {fields}", self.line_number, self.field);
                Err(bad(problem, "name the field with the text in corpus.text_field"))
            }
        }
    }

    fn skip(&mut self, n: u64) -> Result<u64> {
        for skipped in 0..n {
            if !self.advance()? {
                return Ok(skipped);
            }
        }
        Ok(n)
    }
}
