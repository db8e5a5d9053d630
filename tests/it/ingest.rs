//! Ingestion: vectors made elsewhere become shards, in file order, or are refused with the way out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::concat;
use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, ListArray, RecordBatch};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use lapidary::harvest::{ingest, HarvestReport, IngestConfig, Mode};
use lapidary::progress::Silent;
use lapidary::shard::{split_of, Batch, Dtype, Shards, Split};
use lapidary::{Error, Result};

const N: usize = 5000;
const WIDTH: usize = 6;

fn values() -> Vec<f32> {
    (0..N * WIDTH).map(|i| ((i * 37 % 1009) as f32 - 500.0) / 8.0).collect()
}

fn npy(dir: &Path, name: &str, descr: &str, shape: &str, fortran: &str, data: &[u8]) -> PathBuf {
    let dict = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((dict.len() as u16).to_le_bytes());
    bytes.extend(dict.as_bytes());
    bytes.extend(data);
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn config(from: PathBuf) -> IngestConfig {
    IngestConfig { from, hook: "model.layers.3".into(), shard_rows: 1500, row_group_rows: Some(512), ..IngestConfig::default() }
}

fn run(config: &IngestConfig, out: &Path) -> Result<HarvestReport> {
    ingest(config, out, Mode::Fresh, &Silent)
}

fn read(out: &Path, split: Split) -> Batch {
    let shards = Shards::open(out).unwrap();
    shards.verify().unwrap();
    let name = shards.column(None).unwrap().name.clone();
    concat(shards.scan(&name, Some(split)).unwrap().map(Result::unwrap))
}

#[test]
fn arrays_of_every_float_type_give_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let values = values();
    let shape = format!("({N}, {WIDTH})");
    let f16: Vec<u8> = values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
    let f64: Vec<u8> = values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect();
    let tensor = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![N, WIDTH], &f32s(&values)).map(|t| {
        let other = [0u8; 8];
        let other = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &other).unwrap();
        safetensors::serialize(vec![("x", t), ("other", other)], None).unwrap()
    });
    let path = dir.path().join("x.safetensors");
    std::fs::write(&path, tensor.unwrap()).unwrap();
    let files = [
        npy(dir.path(), "f4.npy", "<f4", &shape, "False", &f32s(&values)),
        npy(dir.path(), "f2.npy", "<f2", &shape, "False", &f16),
        npy(dir.path(), "f8.npy", "<f8", &shape, "False", &f64),
        path,
    ];
    for from in files {
        let out = dir.path().join(from.extension().unwrap()).with_extension(from.file_stem().unwrap());
        let st = from.extension().is_some_and(|e| e == "safetensors");
        let config = IngestConfig { tensor: st.then(|| "x".to_string()), ..config(from) };
        let report = run(&config, &out).unwrap();
        assert_eq!((report.rows.of(None), report.documents, report.hooks[0].as_str()), (N as u64, N as u64, "blocks.3.hook_resid_post"));
        for split in Split::ALL {
            let b = read(&out, split);
            let expected: Vec<u64> = (0..N as u64).filter(|&d| split_of(d, 0, 0.05) == split).collect();
            assert_eq!(b.doc_id, expected);
            assert!(b.token_id.is_empty() && b.position.iter().all(|&p| p == 0));
            let x: Vec<f32> = expected.iter().flat_map(|&d| values[d as usize * WIDTH..(d as usize + 1) * WIDTH].to_vec()).collect();
            assert_eq!(b.x, x);
        }
        if st {
            let e = run(&IngestConfig { tensor: None, ..config.clone() }, &dir.path().join("unnamed")).unwrap_err().to_string();
            assert!(e.contains("2 tensors and none is named") && e.contains("x [5000, 6]"), "{e}");
        }
    }
}

#[test]
fn the_last_rows_can_be_held_out() {
    let dir = tempfile::tempdir().unwrap();
    let from = npy(dir.path(), "x.npy", "<f4", &format!("({N}, {WIDTH})"), "False", &f32s(&values()));
    let config = IngestConfig { held_out_last: Some(700), dtype: Dtype::F16, ..config(from) };
    run(&config, &dir.path().join("out")).unwrap();
    assert_eq!(read(&dir.path().join("out"), Split::HeldOut).doc_id, (4300..5000).collect::<Vec<u64>>());
    assert_eq!(read(&dir.path().join("out"), Split::Train).n, 4300);
    let manifest = Shards::open(&dir.path().join("out")).unwrap().manifest().clone();
    assert_eq!(manifest.config["ingest"]["from"], "x.npy", "no folders of this machine");
    assert_eq!(manifest.corpus["files"][0]["name"], "x.npy");
    // The same again gives the same bytes; resuming what is complete does nothing; another configuration is refused.
    run(&config, &dir.path().join("again")).unwrap();
    for name in ["manifest.json", "train-00000.parquet", "held-out-00002.parquet"] {
        let read = |out: &str| std::fs::read(dir.path().join(out).join(name)).unwrap();
        assert_eq!(read("out"), read("again"), "{name}");
    }
    assert_eq!(ingest(&config, &dir.path().join("out"), Mode::Resume, &Silent).unwrap().rows.held_out, 700);
    let other = IngestConfig { held_out_last: Some(7), ..config };
    let e = ingest(&other, &dir.path().join("out"), Mode::Resume, &Silent).unwrap_err().to_string();
    assert!(e.contains("held_out_last = 700"), "{e}");
}

#[test]
fn a_third_axis_is_positions() {
    let dir = tempfile::tempdir().unwrap();
    let from = npy(dir.path(), "x.npy", "<f4", &format!("({}, 10, {WIDTH})", N / 10), "False", &f32s(&values()));
    let report = run(&IngestConfig { held_out: 0.0, ..config(from) }, &dir.path().join("out")).unwrap();
    assert_eq!(report.documents, N as u64 / 10);
    let b = read(&dir.path().join("out"), Split::Train);
    assert!(b.doc_id.iter().zip(&b.position).enumerate().all(|(i, (&d, &p))| (d, p) == (i as u64 / 10, i as u32 % 10)));
    assert_eq!(b.x, values());
}

fn table(dir: &Path, columns: Vec<(&str, ArrayRef)>) -> PathBuf {
    let path = dir.join("x.parquet");
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path
}

#[test]
fn tables_bring_their_ids() {
    let dir = tempfile::tempdir().unwrap();
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let values: ArrayRef = Arc::new(Float32Array::from(values()));
    let fixed: ArrayRef = Arc::new(FixedSizeListArray::new(item.clone(), WIDTH as i32, values.clone(), None));
    let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(WIDTH, N));
    let list: ArrayRef = Arc::new(ListArray::new(item.clone(), offsets, values.clone(), None));
    let ids = |f: fn(i64) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values((0..N as i64).map(f))) };
    for (name, vectors) in [("fixed", fixed), ("list", list)] {
        let from = table(dir.path(), vec![("doc_id", ids(|i| i / 7)), ("vec", vectors.clone()), ("token_id", ids(|i| i % 50))]);
        let report = run(&IngestConfig { held_out: 0.3, ..config(from) }, &dir.path().join(name)).unwrap();
        assert_eq!(report.documents, N as u64 / 7 + 1);
        let (train, held) = (read(&dir.path().join(name), Split::Train), read(&dir.path().join(name), Split::HeldOut));
        assert_eq!(train.n + held.n, N);
        for b in [train, held] {
            for i in 0..b.n {
                let row = b.doc_id[i] as usize * 7 + b.position[i] as usize;
                assert_eq!(b.token_id[i] as usize, row % 50);
                assert_eq!(b.x[i * WIDTH], values.as_any().downcast_ref::<Float32Array>().unwrap().value(row * WIDTH));
            }
        }
    }
    let uneven = OffsetBuffer::from_lengths((0..N).map(|i| {
        if i == 1 {
            WIDTH + 1
        } else if i == 2 {
            WIDTH - 1
        } else {
            WIDTH
        }
    }));
    let from = table(dir.path(), vec![("vec", Arc::new(ListArray::new(item, uneven, values, None)) as ArrayRef)]);
    let e = run(&config(from), &dir.path().join("uneven")).unwrap_err().to_string();
    assert!(e.contains("differ in length"), "{e}");
    let from = table(dir.path(), vec![("position", ids(|i| i))]);
    let e = run(&config(from), &dir.path().join("nothing")).unwrap_err().to_string();
    assert!(e.contains("0 list columns"), "{e}");
}

#[test]
fn what_is_no_vector_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |from: PathBuf| run(&config(from), &dir.path().join("out")).unwrap_err();
    let mut bad = values();
    bad[7 * WIDTH + 2] = f32::NAN;
    let e = refused(npy(dir.path(), "nan.npy", "<f4", &format!("({N}, {WIDTH})"), "False", &f32s(&bad)));
    assert!(matches!(e, Error::NotFinite { .. }) && e.to_string().contains("document 7, position 0, element 2"), "{e}");
    std::fs::remove_dir_all(dir.path().join("out")).unwrap();
    let e = refused(npy(dir.path(), "f.npy", "<f4", "(2, 3)", "True", &[0; 24])).to_string();
    assert!(e.contains("ascontiguousarray"), "{e}");
    assert!(refused(npy(dir.path(), "i.npy", "<i4", "(2, 3)", "False", &[0; 24])).to_string().contains("float32"));
    assert!(refused(npy(dir.path(), "s.npy", "<f4", "(3, 3)", "False", &[0; 24])).to_string().contains("do not take 24 bytes"));
    assert!(refused(npy(dir.path(), "d.npy", "<f4", "(6,)", "False", &[0; 24])).to_string().contains("shape is [6]"));
    assert!(refused(npy(dir.path(), "e.npy", "<f4", "(0, 6)", "False", &[])).to_string().contains("no rows"));
    std::fs::write(dir.path().join("t.safetensors"), b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFFjunk").unwrap();
    assert!(matches!(refused(dir.path().join("t.safetensors")), Error::Format { .. }));
    assert!(matches!(refused(dir.path().join("t.csv")), Error::Request { .. }));
    assert!(matches!(refused(dir.path().join("missing.npy")), Error::Io { .. }));
    assert!(!dir.path().join("out").join("manifest.json").exists());
}
