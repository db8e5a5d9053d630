//! The Arrow schema of a shard file, from its columns; and the writer's properties, which fix every byte that is not data.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;

use super::{Column, Dtype};

/// Columns before the hook points: `doc_id`, `position`, `token_id`, `split`.
pub(super) const N_ID_COLUMNS: usize = 4;
/// Field metadata key with the stored type's name.
pub(super) const DTYPE_KEY: &str = "lapidary.dtype";
/// File metadata key with the harvest's id.
pub(super) const HARVEST_KEY: &str = "lapidary.harvest";
/// File metadata key with the format's name and version.
pub(super) const FORMAT_KEY: &str = "lapidary.format";

/// The schema of every file with these columns.
pub(super) fn arrow_schema(columns: &[Column]) -> SchemaRef {
    let mut fields = vec![
        Field::new("doc_id", DataType::UInt64, false),
        Field::new("position", DataType::UInt32, false),
        Field::new("token_id", DataType::UInt32, true),
        Field::new("split", DataType::Utf8, false),
    ];
    for column in columns {
        let item = match column.dtype {
            Dtype::F32 => DataType::Float32,
            Dtype::F16 => DataType::Float16,
            Dtype::Bf16 => DataType::UInt16,
        };
        let list = DataType::FixedSizeList(Arc::new(Field::new("element", item, false)), column.width as i32);
        // One key only: a map of two would be written in no fixed order.
        let metadata = HashMap::from([(DTYPE_KEY.to_string(), column.dtype.name().to_string())]);
        fields.push(Field::new(&column.name, list, false).with_metadata(metadata));
    }
    Arc::new(Schema::new(fields))
}

/// Properties under which the same rows give the same bytes: no dates, no library versions.
pub(super) fn properties(columns: &[Column], harvest_id: &str) -> WriterProperties {
    let delta = |p: parquet::file::properties::WriterPropertiesBuilder, name: &str| {
        let path = ColumnPath::from(name);
        p.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, Encoding::DELTA_BINARY_PACKED)
    };
    let mut p = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by("lapidary version 1.0.0 (build shards)".to_string())
        .set_compression(Compression::SNAPPY)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        .set_max_row_group_row_count(None)
        .set_key_value_metadata(Some(vec![
            KeyValue::new(FORMAT_KEY.to_string(), format!("{} {}", super::KIND, super::VERSION)),
            KeyValue::new(HARVEST_KEY.to_string(), harvest_id.to_string()),
        ]));
    p = delta(p, "doc_id");
    p = delta(p, "position");
    for column in columns.iter().filter(|c| c.dtype == Dtype::Bf16) {
        // u16 is a 4-byte INT32 in Parquet; the dictionary brings it back to two bytes or less.
        let path = ColumnPath::new(vec![column.name.clone(), "list".to_string(), "element".to_string()]);
        p = p.set_column_compression(path.clone(), Compression::UNCOMPRESSED).set_column_statistics_enabled(path, EnabledStatistics::None);
    }
    p.build()
}
