//! Structs to Parquet and back.

use std::fs::File;
use std::path::Path;

use arrow::datatypes::FieldRef;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_arrow::schema::{SchemaLike, TracingOptions};

use crate::artefact;
use crate::error::{Error, Result};

/// Rows that are turned into Arrow at once.
const ROWS: usize = 8192;

/// Writes `rows` as `dir/name`; the columns are the fields of `T`.
pub(super) fn write<T: Serialize + DeserializeOwned>(dir: &Path, name: &str, rows: &[T]) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    let path = dir.join(name);
    // `List` and `Utf8` rather than their 64-bit forms: every reader knows them.
    let options = TracingOptions::default().strings_as_large_utf8(false).sequence_as_large_list(false);
    let report = |e: serde_arrow::Error| Error::request(format!("the table {name} cannot be built: {e}"), "report this");
    let fields = Vec::<FieldRef>::from_type::<T>(options).map_err(report)?;
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let failed = |e: parquet::errors::ParquetError| artefact::write_error(&path, &e);
    let mut temp = tempfile::NamedTempFile::new_in(dir).map_err(|e| Error::io("create a file in", dir, e))?;
    let schema = std::sync::Arc::new(arrow::datatypes::Schema::new(fields.clone()));
    let mut writer = ArrowWriter::try_new(temp.as_file_mut(), schema, Some(properties)).map_err(failed)?;
    for chunk in rows.chunks(ROWS) {
        let batch = serde_arrow::to_record_batch(&fields, &chunk).map_err(report)?;
        writer.write(&batch).map_err(failed)?;
    }
    writer.close().map_err(failed)?;
    artefact::persist(temp, &path)
}

/// Reads what [`write`] wrote; columns that `T` does not know are left out.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let wrong = |problem: String| Error::format("feature table", path, problem, "run `lapidary features` again");
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| wrong(e.to_string()))?;
    let mut rows = Vec::new();
    for batch in reader.with_batch_size(ROWS).build().map_err(|e| wrong(e.to_string()))? {
        let batch = batch.map_err(|e| wrong(e.to_string()))?;
        rows.extend(serde_arrow::from_record_batch::<Vec<T>>(&batch).map_err(|e| wrong(e.to_string()))?);
    }
    Ok(rows)
}
