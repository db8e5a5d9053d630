//! Shards: what is written comes back, in the promised schema and order; damage is noticed.

use std::collections::HashSet;
use std::path::Path;

use crate::support::concat;
use lapidary::rng::Rng;
use lapidary::shard::{
    Column, Counts, Cursor, Dtype, Manifest, Rows, ShardWriter, Shards, ShuffleConfig, Split, WriterOptions, KIND, VERSION,
};
use serde_json::Value;

const ID: &str = "test-harvest";

fn columns() -> Vec<Column> {
    [("blocks.0.hook_resid_post", 5, Dtype::F32), ("blocks.1.hook_resid_post", 16, Dtype::F16), ("blocks.2.hook_mlp_out", 1, Dtype::Bf16)]
        .map(|(name, width, dtype)| Column { name: name.into(), width, dtype })
        .to_vec()
}

/// Values that every stored type holds exactly: small multiples of 1/8.
fn exact(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| (rng.below(64) as f32 - 32.0) / 8.0).collect()
}

fn rows(rng: &mut Rng, columns: &[Column], first_doc: u64, n: usize) -> Rows {
    Rows {
        doc_id: (0..n as u64).map(|i| first_doc + i / 7).collect(),
        position: (0..n as u32).map(|i| i % 7).collect(),
        token_id: Some((0..n as u32).map(|i| i * 31 % 101).collect()),
        columns: columns.iter().map(|c| exact(rng, n * c.width)).collect(),
    }
}

fn manifest(writer: &ShardWriter, id: &str) -> Manifest {
    let counts = Counts { rows: writer.rows(), tokens: writer.rows().of(None), ..Counts::default() };
    let (kind, shards, columns) = (KIND.to_string(), writer.entries().to_vec(), writer.column_entries());
    let null = Value::Null;
    Manifest {
        kind,
        version: VERSION,
        id: id.into(),
        columns,
        counts,
        host: null.clone(),
        tokenizer: null.clone(),
        corpus: null.clone(),
        masking: null.clone(),
        config: null,
        shards,
    }
}

/// Three shards of 700 train rows and up to 70 held-out rows. Returns what was pushed per split.
fn write(dir: &Path, columns: &[Column], id: &str, seed: u64) -> [Vec<Rows>; 2] {
    let options = WriterOptions { row_group_rows: Some(128), harvest_id: id.into() };
    let mut writer = ShardWriter::create(dir, columns.to_vec(), &options).unwrap();
    let mut rng = Rng::stream(seed, "test", 0);
    let mut pushed = [Vec::new(), Vec::new()];
    for shard in 0..3 {
        for (split, n) in [(Split::Train, 700), (Split::HeldOut, if shard == 1 { 0 } else { 70 })] {
            let r = rows(&mut rng, columns, shard * 1000 + split as u64 * 500, n);
            writer.push(split, &r).unwrap();
            pushed[split as usize].push(r);
        }
        writer.seal_shard().unwrap();
    }
    manifest(&writer, id).save(dir).unwrap();
    pushed
}

#[test]
fn every_dtype_comes_back_in_file_order() {
    let dir = tempfile::tempdir().unwrap();
    let columns = columns();
    let pushed = write(dir.path(), &columns, ID, 1);
    let shards = Shards::open(dir.path()).unwrap();
    shards.verify().unwrap();
    assert_eq!((shards.rows(None), shards.rows(Some(Split::Train)), shards.rows(Some(Split::HeldOut))), (2240, 2100, 140));
    for split in Split::ALL {
        for (c, column) in columns.iter().enumerate() {
            let read = concat(shards.scan(&column.name, Some(split)).unwrap().map(Result::unwrap));
            let all = |f: fn(&Rows) -> Vec<u32>| pushed[split as usize].iter().flat_map(f).collect::<Vec<_>>();
            assert_eq!(read.x, pushed[split as usize].iter().flat_map(|r| r.columns[c].clone()).collect::<Vec<_>>(), "{}", column.name);
            assert_eq!(read.doc_id, pushed[split as usize].iter().flat_map(|r| r.doc_id.clone()).collect::<Vec<_>>());
            assert_eq!(read.position, all(|r| r.position.clone()));
            assert_eq!(read.token_id, all(|r| r.token_id.clone().unwrap()));
        }
    }
    // Statistics are those of the train rows, in f64.
    for (c, entry) in shards.manifest().columns.iter().enumerate() {
        let x: Vec<f64> = pushed[0].iter().flat_map(|r| r.columns[c].iter().map(|&v| f64::from(v))).collect();
        let n = x.len() / entry.column.width;
        assert_eq!(entry.n as usize, n);
        let sq = x.iter().map(|v| v * v).sum::<f64>() / n as f64;
        assert!((entry.mean_sq_norm - sq).abs() < 1e-9 * sq);
        let mean0 = x.iter().step_by(entry.column.width).sum::<f64>() / n as f64;
        assert!((entry.mean[0] - mean0).abs() < 1e-12);
    }
    // Other spellings of a hook point find its column; a wrong one lists what exists.
    assert_eq!(shards.width("blocks.1.resid_post").unwrap(), 16);
    assert!(shards.width("blocks.9.resid_post").unwrap_err().to_string().contains("blocks.2.hook_mlp_out"));
}

#[test]
fn schema_is_the_specified_one() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &columns(), ID, 1);
    let file = std::fs::File::open(dir.path().join("held-out-00002.parquet")).unwrap();
    let builder = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let found: Vec<String> = builder
        .schema()
        .fields()
        .iter()
        .map(|f| {
            let dtype = f.metadata().get("lapidary.dtype").map_or(String::new(), |d| format!(" [{d}]"));
            format!("{}: {}{}{dtype}", f.name(), f.data_type(), if f.is_nullable() { "?" } else { "" })
        })
        .collect();
    assert_eq!(
        found,
        [
            "doc_id: UInt64",
            "position: UInt32",
            "token_id: UInt32?",
            "split: Utf8",
            "blocks.0.hook_resid_post: FixedSizeList(5 x non-null Float32, field: 'element') [f32]",
            "blocks.1.hook_resid_post: FixedSizeList(16 x non-null Float16, field: 'element') [f16]",
            "blocks.2.hook_mlp_out: FixedSizeList(1 x non-null UInt16, field: 'element') [bf16]",
        ]
    );
    // The general Parquet reader decodes what the fast writer wrote: it is the oracle.
    use arrow::array::AsArray;
    let batch = builder.with_batch_size(10_000).build().unwrap().next().unwrap().unwrap();
    let shards = Shards::open(dir.path()).unwrap();
    let fast = concat(shards.scan("blocks.1.hook_resid_post", Some(Split::HeldOut)).unwrap().map(Result::unwrap));
    let slow = batch.column(5).as_fixed_size_list().values().as_primitive::<arrow::datatypes::Float16Type>();
    let slow: Vec<f32> = slow.values().iter().map(|v| v.to_f32()).collect();
    assert_eq!(fast.x[70 * 16..], slow);
    assert!(batch.column(3).as_string::<i32>().iter().all(|s| s == Some("held-out")));
}

#[test]
fn same_rows_same_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&a, &b] {
        write(dir.path(), &columns(), ID, 1);
    }
    let mut names: Vec<_> = std::fs::read_dir(a.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names.len(), 6, "{names:?}");
    for name in names {
        assert_eq!(std::fs::read(a.path().join(&name)).unwrap(), std::fs::read(b.path().join(&name)).unwrap(), "{name:?}");
    }
}

#[test]
fn shuffling_is_a_permutation_of_its_own_per_seed_and_epoch() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &columns(), ID, 1);
    let shards = Shards::open(dir.path()).unwrap();
    // Windows of three row groups: smaller than the data, so that windows matter.
    let epochs = |seed, buffer_bytes| {
        let config = ShuffleConfig { seed, buffer_bytes };
        let mut s = shards.shuffled("blocks.1.hook_resid_post", Some(Split::Train), &config).unwrap();
        let mut rows = Vec::new();
        while rows.len() < 4200 {
            let b = s.next_batch(100).unwrap();
            assert_eq!((b.n, b.x.len(), b.token_id.len()), (100, 1600, 100));
            rows.extend(b.doc_id.iter().copied().zip(b.position.iter().copied()));
        }
        assert_eq!(s.cursor(), Cursor { epoch: 2, window: 0, offset: 0 });
        (rows[..2100].to_vec(), rows[2100..].to_vec())
    };
    let window = 3 * 128 * 16 * 4;
    let (first, second) = epochs(0, window);
    let set = |rows: &[(u64, u32)]| rows.iter().copied().collect::<HashSet<_>>();
    assert_eq!(set(&first).len(), 2100);
    assert_eq!(set(&first), set(&second));
    assert_ne!(first, second, "epochs differ");
    assert_eq!(epochs(0, window).0, first, "the same again");
    assert_ne!(epochs(1, window).0, first, "seeds differ");
    assert_eq!(set(&epochs(0, 1 << 30).0).len(), 2100, "one window of everything");
    // Rows move about: neighbours in the files are rarely neighbours here.
    let neighbours = first.windows(2).filter(|w| w[0].0 == w[1].0 && w[0].1 + 1 == w[1].1).count();
    assert!(neighbours < 60, "{neighbours}");
}

#[test]
fn values_travel_with_their_row() {
    let dir = tempfile::tempdir().unwrap();
    let pushed = write(dir.path(), &columns(), ID, 1);
    let shards = Shards::open(dir.path()).unwrap();
    let config = ShuffleConfig { seed: 3, buffer_bytes: 4000 };
    let mut s = shards.shuffled("blocks.0.hook_resid_post", Some(Split::Train), &config).unwrap();
    let b = s.next_batch(2500).unwrap();
    for i in 0..b.n {
        let shard = &pushed[0][(b.doc_id[i] / 1000) as usize];
        let row = ((b.doc_id[i] % 1000) * 7 + u64::from(b.position[i])) as usize;
        assert_eq!(b.x[i * 5..i * 5 + 5], shard.columns[0][row * 5..row * 5 + 5]);
        assert_eq!(b.token_id[i], shard.token_id.as_ref().unwrap()[row]);
    }
}

#[test]
fn a_cursor_restores_the_order_exactly() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &columns(), ID, 1);
    let shards = Shards::open(dir.path()).unwrap();
    let config = ShuffleConfig { seed: 9, buffer_bytes: 3 * 128 * 5 * 4 };
    let open = || shards.shuffled("blocks.0.hook_resid_post", None, &config).unwrap();
    let mut whole = open();
    for step in 0..40 {
        let cursor = whole.cursor();
        let json = serde_json::to_string(&cursor).unwrap();
        let mut resumed = open();
        resumed.seek(&serde_json::from_str(&json).unwrap()).unwrap();
        let expected = whole.next_batch(150).unwrap();
        assert_eq!(resumed.next_batch(150).unwrap(), expected, "step {step} {cursor:?}");
    }
    assert!(whole.epoch() >= 2);
    assert!(open().seek(&Cursor { epoch: 0, window: 99, offset: 0 }).is_err());
}

#[test]
fn damage_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &columns(), ID, 1);
    let path = dir.path().join("train-00001.parquet");
    let good = std::fs::read(&path).unwrap();
    let read_all = || -> lapidary::Result<()> {
        let shards = Shards::open(dir.path())?;
        for column in columns() {
            shards.scan(&column.name, None)?.try_for_each(|b| b.map(|_| ()))?;
        }
        Ok(())
    };
    read_all().unwrap();
    // A flipped bit anywhere in the data: streaming notices, and so does verify.
    for i in (4..good.len()).step_by(good.len() / 150) {
        let mut bad = good.clone();
        bad[i] ^= 1 << (i % 8);
        std::fs::write(&path, &bad).unwrap();
        let verified = Shards::open(dir.path()).and_then(|s| s.verify());
        assert!(verified.unwrap_err().to_string().contains("train-00001.parquet"));
        // The constant `split` column is never read back; all others are checked while streaming.
        if let Err(e) = read_all() {
            assert!(matches!(e, lapidary::Error::Format { .. }), "{e}");
        } else {
            assert!(is_split_chunk(&path, i as u64), "byte {i}");
        }
    }
    std::fs::write(&path, &good[..good.len() - 7]).unwrap();
    assert!(read_all().unwrap_err().to_string().contains("bytes, the manifest says"));
    std::fs::remove_file(&path).unwrap();
    assert!(read_all().unwrap_err().to_string().contains("train-00001.parquet"));
    std::fs::write(&path, &good).unwrap();
    read_all().unwrap();
}

/// Is the byte in a chunk of the `split` column?
fn is_split_chunk(path: &Path, at: u64) -> bool {
    let file = std::fs::File::open(path).unwrap();
    let reader = parquet::file::serialized_reader::SerializedFileReader::new(file).unwrap();
    use parquet::file::reader::FileReader;
    reader.metadata().row_groups().iter().any(|g| {
        let (start, length) = g.column(3).byte_range();
        (start..start + length).contains(&at)
    })
}

#[test]
fn files_of_two_harvests_do_not_mix() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(a.path(), &columns(), "harvest-a", 1);
    write(b.path(), &columns(), "harvest-b", 1);
    std::fs::copy(b.path().join("train-00000.parquet"), a.path().join("train-00000.parquet")).unwrap();
    let e = Shards::open(a.path()).unwrap_err().to_string();
    assert!(e.contains("harvest-a") && e.contains("harvest-b"), "{e}");
}

#[test]
fn what_a_dtype_cannot_hold_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = |dtype, value: f32| {
        let columns = vec![Column { name: "v".into(), width: 2, dtype }];
        let mut w = ShardWriter::create(dir.path(), columns, &WriterOptions::default()).unwrap();
        w.push(Split::Train, &Rows { doc_id: vec![4], position: vec![2], token_id: None, columns: vec![vec![0.5, value]] })
    };
    let e = one(Dtype::F16, 70_000.0).unwrap_err().to_string();
    assert!(e.contains("document 4, position 2, element 1") && e.contains("bf16"), "{e}");
    assert!(one(Dtype::Bf16, 70_000.0).is_ok() && one(Dtype::F32, 1e38).is_ok());
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        assert!(matches!(one(dtype, f32::NAN), Err(lapidary::Error::NotFinite { .. })));
    }
}

#[test]
fn a_writer_resumes_bit_for_bit() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(whole.path(), &columns(), ID, 5);
    let options = WriterOptions { row_group_rows: Some(128), harvest_id: ID.into() };
    let columns = columns();
    let mut rng = Rng::stream(5, "test", 0);
    let mut state = None;
    for shard in 0..3 {
        let mut writer = match state.take() {
            None => ShardWriter::create(parts.path(), columns.clone(), &options).unwrap(),
            Some(json) => {
                let json: String = json;
                ShardWriter::resume(parts.path(), columns.clone(), &options, serde_json::from_str(&json).unwrap()).unwrap()
            }
        };
        for (split, n) in [(Split::Train, 700), (Split::HeldOut, if shard == 1 { 0 } else { 70 })] {
            writer.push(split, &rows(&mut rng, &columns, shard * 1000 + split as u64 * 500, n)).unwrap();
        }
        writer.seal_shard().unwrap();
        state = Some(serde_json::to_string(writer.state()).unwrap());
        manifest(&writer, ID).save(parts.path()).unwrap();
        // What was pushed and not sealed is lost, and leaves nothing behind.
        writer.push(Split::Train, &rows(&mut Rng::stream(0, "lost", 0), &columns, 9000, 300)).unwrap();
    }
    for entry in std::fs::read_dir(parts.path()).unwrap() {
        let name = entry.unwrap().file_name();
        assert_eq!(std::fs::read(parts.path().join(&name)).unwrap(), std::fs::read(whole.path().join(&name)).unwrap(), "{name:?}");
    }
}

/// The same rows, written by the general writer in a layout of its own choice: a reader takes any.
#[test]
fn other_writers_layouts_are_read() {
    use arrow::array::RecordBatch;
    use parquet::file::metadata::KeyValue;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &columns(), ID, 1);
    let read = || {
        let shards = Shards::open(dir.path()).unwrap();
        columns().iter().map(|c| concat(shards.scan(&c.name, None).unwrap().map(Result::unwrap))).collect::<Vec<_>>()
    };
    let fast = read();
    let mut manifest = Manifest::load(dir.path()).unwrap();
    for entry in &mut manifest.shards {
        let path = dir.path().join(&entry.file);
        let builder = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&path).unwrap()).unwrap();
        let schema = builder.schema().clone();
        let batches: Vec<RecordBatch> = builder.with_batch_size(100).build().unwrap().map(Result::unwrap).collect();
        let properties = parquet::file::properties::WriterProperties::builder()
            .set_compression(parquet::basic::Compression::ZSTD(Default::default()))
            .set_writer_version(parquet::file::properties::WriterVersion::PARQUET_2_0)
            .set_max_row_group_row_count(Some(333))
            .set_key_value_metadata(Some(vec![KeyValue::new("lapidary.harvest".to_string(), ID.to_string())]))
            .build();
        let mut writer = parquet::arrow::ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), schema, Some(properties)).unwrap();
        batches.iter().for_each(|b| writer.write(b).unwrap());
        writer.close().unwrap();
        (entry.crc32, entry.footer_crc32) = (Vec::new(), String::new());
        entry.bytes = std::fs::metadata(&path).unwrap().len();
    }
    manifest.save(dir.path()).unwrap();
    assert!(fast == read());
}
