//! Column chunks of f32 and f16 lists, encoded and decoded at memory speed.
//!
//! The chunks are ordinary Parquet (data pages v1, PLAIN, uncompressed, with page checksums): any reader takes them. They are written
//! here because the general writer allocates per f16 value and both general paths build a repetition level per value, 20 to 50 times
//! slower than copying. Whatever does not have exactly this layout is read by the general path in `reader.rs`, which is also the oracle.

use std::sync::Arc;

use bytes::Bytes;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageReader};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescPtr;

use super::chunk::Chunks;
use super::crc::crc32;
use super::Dtype;

/// Pages hold whole rows, about this many bytes of them.
const PAGE_BYTES: usize = 1 << 20;

/// Encodes little-endian `values`, `n` rows of `width`, as one column chunk starting at offset 0.
pub(super) fn encode(descr: ColumnDescPtr, values: &[u8], n: usize, width: usize, dtype: Dtype) -> Result<(Bytes, ColumnCloseResult)> {
    let row_bytes = width * dtype.bytes();
    debug_assert_eq!(values.len(), n * row_bytes);
    let page_rows = (PAGE_BYTES / row_bytes.max(1)).clamp(1, n.max(1));
    let mut out = Vec::with_capacity(values.len() + n * 8 + 64 * n.div_ceil(page_rows));
    let mut body = Vec::with_capacity(page_rows * (row_bytes + 8));
    for page in values.chunks(page_rows * row_bytes) {
        let rows = page.len() / row_bytes;
        body.clear();
        with_length(&mut body, |b| repetition_levels(b, rows, width));
        with_length(&mut body, |b| rle_run(b, rows * width, 1));
        body.extend_from_slice(page);
        page_header(&mut out, &body, rows * width);
        out.extend_from_slice(&body);
    }
    let metadata = ColumnChunkMetaData::builder(descr)
        .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
        .set_compression(Compression::UNCOMPRESSED)
        .set_num_values((n * width) as i64)
        .set_total_compressed_size(out.len() as i64)
        .set_total_uncompressed_size(out.len() as i64)
        .set_data_page_offset(0)
        .build()?;
    let close = ColumnCloseResult {
        bytes_written: out.len() as u64,
        rows_written: n as u64,
        metadata,
        bloom_filter: None,
        column_index: None,
        offset_index: None,
    };
    Ok((Bytes::from(out), close))
}

/// Appends what `write` writes, preceded by its length.
fn with_length(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let n = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&n.to_le_bytes());
}

/// A row of width w is one 0 and w - 1 ones.
fn repetition_levels(out: &mut Vec<u8>, rows: usize, width: usize) {
    if width == 1 {
        return rle_run(out, rows, 0);
    }
    let mut row = Vec::with_capacity(8);
    rle_run(&mut row, 1, 0);
    rle_run(&mut row, width - 1, 1);
    for _ in 0..rows {
        out.extend_from_slice(&row);
    }
}

/// One run of the RLE / bit-packing hybrid at bit width 1.
fn rle_run(out: &mut Vec<u8>, count: usize, value: u8) {
    varint(out, (count as u64) << 1);
    out.push(value);
}

fn varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// The page header in Thrift's compact protocol: each field is (id step << 4 | type), then the value; 5 = i32 (zigzag), 12 = struct.
fn page_header(out: &mut Vec<u8>, body: &[u8], n_values: usize) {
    const DATA_PAGE: i32 = 0;
    const PLAIN: i32 = 0;
    const RLE: i32 = 3;
    let mut i32_field = |v: i32| {
        out.push(0x15);
        varint(out, u64::from(((v << 1) ^ (v >> 31)) as u32));
    };
    i32_field(DATA_PAGE);
    i32_field(body.len() as i32); // uncompressed
    i32_field(body.len() as i32); // compressed
    i32_field(crc32(body) as i32);
    out.push(0x1C); // data_page_header
    let mut i32_field = |v: i32| {
        out.push(0x15);
        varint(out, u64::from(((v << 1) ^ (v >> 31)) as u32));
    };
    i32_field(n_values as i32);
    i32_field(PLAIN);
    i32_field(RLE); // definition levels
    i32_field(RLE); // repetition levels
    out.extend_from_slice(&[0, 0]); // ends of both structs
}

/// Decodes a column chunk as [`encode`] writes it, appending f32 values to `x`. `None`: the layout is another one, use the general path.
pub(super) fn decode(
    chunks: &Arc<Chunks>,
    metadata: &ColumnChunkMetaData,
    n: usize,
    width: usize,
    dtype: Dtype,
    x: &mut Vec<f32>,
) -> Result<Option<()>> {
    let plain = metadata.compression() == Compression::UNCOMPRESSED && metadata.dictionary_page_offset().is_none();
    if !plain || dtype == Dtype::Bf16 || metadata.num_values() != (n * width) as i64 {
        return Ok(None);
    }
    let start = x.len();
    let mut pages = SerializedPageReader::new(Arc::clone(chunks), metadata, n, None)?;
    while let Some(page) = pages.get_next_page()? {
        let Page::DataPage { buf, num_values, encoding: Encoding::PLAIN, .. } = page else {
            x.truncate(start);
            return Ok(None);
        };
        let values = skip_levels(skip_levels(&buf)?)?;
        // Fewer values than levels would be nulls, which the schema rules out.
        if values.len() != num_values as usize * dtype.bytes() {
            return Err(ParquetError::General(format!("a page announces {num_values} values and holds {} bytes of them", values.len())));
        }
        match dtype {
            Dtype::F32 => x.extend(values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            Dtype::F16 | Dtype::Bf16 => extend_from_f16(x, values),
        }
    }
    if x.len() - start != n * width {
        return Err(ParquetError::General(format!("{} values where {} are announced", x.len() - start, n * width)));
    }
    Ok(Some(()))
}

fn skip_levels(page: &[u8]) -> Result<&[u8]> {
    let short = || ParquetError::General("a page ends inside its levels".to_string());
    let (length, rest) = page.split_first_chunk::<4>().ok_or_else(short)?;
    rest.get(u32::from_le_bytes(*length) as usize..).ok_or_else(short)
}

/// Pages are not aligned, so blocks pass through an aligned buffer; the conversion itself is vectorised in `half`.
fn extend_from_f16(x: &mut Vec<f32>, bytes: &[u8]) {
    const BLOCK: usize = 2048;
    let mut bits = [0u16; BLOCK];
    let mut floats = [0f32; BLOCK];
    for block in bytes.chunks(2 * BLOCK) {
        let n = block.len() / 2;
        for (bit, b) in bits.iter_mut().zip(block.chunks_exact(2)) {
            *bit = u16::from_le_bytes([b[0], b[1]]);
        }
        bits[..n].reinterpret_cast::<half::f16>().convert_to_f32_slice(&mut floats[..n]);
        x.extend_from_slice(&floats[..n]);
    }
}
