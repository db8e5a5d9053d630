//! Parquet tables with a text column: every record is a document.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::DataType;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::ProjectionMask;

use super::{Content, Pieces};
use crate::error::{Error, Result};

const BATCH_ROWS: usize = 256;

/// A .parquet file being read.
pub(super) struct Table {
    path: PathBuf,
    field: String,
    rows: u64,
    /// Record that comes next.
    at: u64,
    reader: Option<ParquetRecordBatchReader>,
    batch: Option<(ArrayRef, usize)>,
}

impl Table {
    pub(super) fn open(path: &Path, field: &str) -> Result<Self> {
        let builder = builder(path)?;
        let schema = builder.schema();
        let Some((_, column)) = schema.column_with_name(field) else {
            let names = schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
            let problem = format!("it has no column `{field}`; it has: {names}");
            return Err(Error::format("text table", path, problem, "name the column with the text in corpus.text_field"));
        };
        if !matches!(column.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
            let problem = format!("column `{field}` holds {}, not text", column.data_type());
            return Err(Error::format("text table", path, problem, "name another column in corpus.text_field"));
        }
        let rows = builder.metadata().file_metadata().num_rows().max(0) as u64;
        Ok(Self { path: path.to_path_buf(), field: field.to_string(), rows, at: 0, reader: None, batch: None })
    }

    fn bad(&self, problem: impl Into<String>) -> Error {
        Error::format("text table", &self.path, problem, "check the file, or leave it out")
    }
}

fn builder(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    ParquetRecordBatchReaderBuilder::try_new(file)
        .map_err(|e| Error::format("Parquet file", path, e.to_string(), "check the file, or leave it out"))
}

impl Pieces for Table {
    fn next(&mut self) -> Result<Option<Content>> {
        if self.at >= self.rows {
            return Ok(None);
        }
        loop {
            if let Some((array, i)) = &mut self.batch {
                if *i < array.len() {
                    let text = if array.is_null(*i) { "" } else { text_at(array, *i) };
                    let content = Content::Text(text.to_string());
                    *i += 1;
                    self.at += 1;
                    return Ok(Some(content));
                }
            }
            if self.reader.is_none() {
                let builder = builder(&self.path)?;
                let mask = ProjectionMask::columns(builder.parquet_schema(), [self.field.as_str()]);
                let reader = builder.with_projection(mask).with_batch_size(BATCH_ROWS).with_offset(self.at as usize).build();
                self.reader = Some(reader.map_err(|e| self.bad(e.to_string()))?);
            }
            let next = self.reader.as_mut().and_then(Iterator::next).ok_or_else(|| self.bad("it ends before its last record"))?;
            let batch = next.map_err(|e| self.bad(e.to_string()))?;
            self.batch = Some((batch.column(0).clone(), 0));
        }
    }

    fn skip(&mut self, n: u64) -> Result<u64> {
        let skipped = n.min(self.rows - self.at);
        self.at += skipped;
        // The next read opens the file again at the right record, passing over whole row groups.
        self.reader = None;
        self.batch = None;
        Ok(skipped)
    }
}

fn text_at(array: &ArrayRef, i: usize) -> &str {
    match array.data_type() {
        DataType::LargeUtf8 => array.as_string::<i64>().value(i),
        DataType::Utf8View => array.as_string_view().value(i),
        _ => array.as_string::<i32>().value(i),
    }
}
