//! Parquet tables with a list column of floats, and perhaps doc_id, position and token_id.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, UInt32Type, UInt64Type};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::{Chunk, Vectors};
use crate::error::{Error, Result};

/// A table being read.
pub(super) struct Lists {
    path: PathBuf,
    column: String,
    reader: ParquetRecordBatchReader,
    rows: u64,
    width: usize,
    first: Option<RecordBatch>,
}

const HELP: &str = "write one list of floats per row, all of one length (FixedSizeList or List)";

impl Lists {
    pub(super) fn open(path: &Path, name: Option<&str>) -> Result<Self> {
        let bad = |problem: String| Error::format("table of vectors", path, problem, HELP);
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| bad(e.to_string()))?;
        let rows = builder.metadata().file_metadata().num_rows().max(0) as u64;
        let schema = builder.schema().clone();
        let lists: Vec<&str> = schema.fields().iter().filter(|f| is_float_list(f.data_type())).map(|f| f.name().as_str()).collect();
        let column = match (name, lists.as_slice()) {
            (Some(name), _) if lists.contains(&name) => name,
            (None, [only]) => only,
            _ => {
                let problem = match name {
                    Some(name) => format!("{} has no list column `{name}`", path.display()),
                    None => format!("{} has {} list columns of floats and none is named", path.display(), lists.len()),
                };
                return Err(Error::request(problem, format!("set ingest.tensor to one of: {}", lists.join(", "))));
            }
        };
        let column = column.to_string();
        let has = |name: &str| schema.column_with_name(name).is_some();
        if has("position") && !has("doc_id") {
            return Err(bad("it has positions and no doc_id".to_string()));
        }
        let mut reader = builder.with_batch_size(super::CHUNK_ROWS).build().map_err(|e| bad(e.to_string()))?;
        let first = reader.next().transpose().map_err(|e| bad(e.to_string()))?;
        let mut lists = Self { path: path.to_path_buf(), column, reader, rows, width: 0, first: None };
        if let Some(batch) = first {
            let (x, n) = lists.values(&batch)?;
            lists.width = x.len() / n.max(1);
            lists.first = Some(batch);
        }
        Ok(lists)
    }

    fn bad(&self, problem: impl Into<String>) -> Error {
        Error::format("table of vectors", &self.path, problem, HELP)
    }

    /// Values and number of rows; every row has the same length.
    fn values(&self, batch: &RecordBatch) -> Result<(Vec<f32>, usize)> {
        let column = batch.column_by_name(&self.column).ok_or_else(|| self.bad("the column is gone"))?;
        if column.null_count() > 0 {
            return Err(self.bad(format!("{} rows of `{}` are null", column.null_count(), self.column)));
        }
        let n = column.len();
        let values = match column.data_type() {
            DataType::FixedSizeList(_, width) => {
                let list = column.as_fixed_size_list();
                list.values().slice(list.offset() * *width as usize, n * *width as usize)
            }
            DataType::List(_) => even(column.as_list::<i32>().offsets().iter().map(|&o| o as usize))
                .map(|(from, length)| column.as_list::<i32>().values().slice(from, length))
                .ok_or_else(|| self.bad("its lists differ in length"))?,
            _ => even(column.as_list::<i64>().offsets().iter().map(|&o| o as usize))
                .map(|(from, length)| column.as_list::<i64>().values().slice(from, length))
                .ok_or_else(|| self.bad("its lists differ in length"))?,
        };
        if values.null_count() > 0 {
            return Err(self.bad(format!("{} values of `{}` are null", values.null_count(), self.column)));
        }
        let floats = cast(&values, &DataType::Float32).map_err(|e| self.bad(e.to_string()))?;
        let x = floats.as_primitive::<Float32Type>().values().to_vec();
        if n > 0 && (x.is_empty() || (self.width > 0 && x.len() != n * self.width)) {
            return Err(self.bad("its lists differ in length, or are empty"));
        }
        Ok((x, n))
    }

    /// An id column as u64, if the table has it.
    fn ids(&self, batch: &RecordBatch, name: &str, to: &DataType) -> Result<Option<ArrayRef>> {
        let Some(column) = batch.column_by_name(name) else { return Ok(None) };
        if column.null_count() == column.len() {
            return Ok(None);
        }
        let ids = cast(column, to).map_err(|e| self.bad(format!("`{name}`: {e}")))?;
        if ids.null_count() > 0 {
            return Err(self.bad(format!("`{name}` has values that are null, negative or too large")));
        }
        Ok(Some(ids))
    }
}

fn is_float_list(of: &DataType) -> bool {
    let (DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _)) = of else { return false };
    matches!(item.data_type(), DataType::Float16 | DataType::Float32 | DataType::Float64)
}

/// Start and length of the values, if all lists have the same length.
fn even(offsets: impl Iterator<Item = usize>) -> Option<(usize, usize)> {
    let offsets: Vec<usize> = offsets.collect();
    let mut lengths = offsets.windows(2).map(|w| w[1] - w[0]);
    let first = lengths.next()?;
    lengths.all(|l| l == first).then(|| (offsets[0], offsets[offsets.len() - 1] - offsets[0]))
}

impl Vectors for Lists {
    fn rows(&self) -> u64 {
        self.rows
    }

    fn width(&self) -> usize {
        self.width
    }

    /// A batch as the table gives it: at most the rows that it was opened for.
    fn next(&mut self, _n: usize) -> Result<Chunk> {
        let batch = match self.first.take() {
            Some(batch) => Some(batch),
            None => self.reader.next().transpose().map_err(|e| self.bad(e.to_string()))?,
        };
        let Some(batch) = batch else { return Ok(Chunk::default()) };
        let (x, n) = self.values(&batch)?;
        let u32s = |name: &str| -> Result<Option<Vec<u32>>> {
            Ok(self.ids(&batch, name, &DataType::UInt32)?.map(|a| a.as_primitive::<UInt32Type>().values().to_vec()))
        };
        let doc_id = self.ids(&batch, "doc_id", &DataType::UInt64)?.map(|a| a.as_primitive::<UInt64Type>().values().to_vec());
        Ok(Chunk { x, n, doc_id, position: u32s("position")?, token_id: u32s("token_id")? })
    }
}
