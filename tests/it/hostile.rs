//! Files of strangers: whatever they hold, reading them is an error or a dictionary, never a panic, never code that runs, never more
//! memory than the files justify.

use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use lapidary::dictionary::Provenance;
use lapidary::formats::container::zip::ZipWriter;
use lapidary::formats::container::{npy, npz, pt, Array};
use lapidary::formats::tensors::{read_json, Tensors};
use lapidary::formats::{self, ReadOptions, WriteOptions};
use lapidary::kernels::Coder;
use lapidary::rng::Rng;
use lapidary::{Activation, Dictionary};
use proptest::prelude::*;
use serde_json::{json, Value};

use crate::allocation::peak;

/// What reading files of a few kilobytes may take: a block for hashing is 1 MiB, and values of a pickle are larger than its bytes.
const SMALL: usize = 6 << 20;

/// Is a dictionary there, and does it compute? Returns what was said.
fn import(at: &Path) -> Result<Dictionary, String> {
    let (read, bytes) = peak(|| {
        let found = formats::find_one(at, None).map_err(|e| e.to_string())?;
        let mut options = ReadOptions::default();
        options.k = Some(2);
        let read = found.format.read(&found.path, &ReadOptions::default()).or_else(|_| found.format.read(&found.path, &options));
        read.map(|f| f.dictionary).map_err(|e| e.to_string())
    });
    assert!(bytes < SMALL, "{bytes} bytes were held while reading {}: {read:?}", at.display());
    if let Ok(d) = &read {
        let x = Tensor::ones((2, d.d_in()), DType::F32, &Device::Cpu).unwrap();
        // An answer or an error.
        let _ = d.reconstruct(&x);
    }
    read
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Vec::new());
    for (name, data) in entries {
        zip.add(name, data).unwrap();
    }
    zip.finish().unwrap()
}

#[test]
fn pickles_that_would_run_something_run_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("was-run");
    let path = dir.path().join("sae.pt");
    let touch = format!("touch {}", mark.display());
    let text = |s: &str| [b"X".as_slice(), &(s.len() as u32).to_le_bytes(), s.as_bytes()].concat();
    for (module, name) in
        [("posix", "system"), ("os", "system"), ("builtins", "eval"), ("subprocess", "getoutput"), ("torch.serialization", "load")]
    {
        let attack = [b"\x80\x02".as_slice(), format!("c{module}\n{name}\n").as_bytes(), &text(&touch), b"\x85R."].concat();
        // As the whole, as a value beside tensors, as an attribute, and without an archive around it.
        let inside = [b"\x80\x02}(".as_slice(), &text("encoder.weight"), &attack[2..attack.len() - 1], b"u."].concat();
        let attribute = [b"\x80\x02ccollections\nOrderedDict\n)R".as_slice(), &attack[2..attack.len() - 1], b"b."].concat();
        for pickle in [&attack, &inside, &attribute] {
            std::fs::write(&path, archive(&[("sae/data.pkl", pickle)])).unwrap();
            let said = import(&path).unwrap_err();
            assert!(said.contains(&format!("`{module}.{name}`")) && said.contains("nothing was run"), "{said}");
        }
        std::fs::write(&path, &attack).unwrap();
        assert!(import(&path).unwrap_err().contains("bare pickle"));
    }
    assert!(!mark.exists());
    // An .npy whose elements are pickled objects.
    let header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }";
    let object = [b"\x93NUMPY\x01\x00".as_slice(), &(header.len() as u16).to_le_bytes(), header, b"cposix\nsystem\n"].concat();
    let path = dir.path().join("params.npz");
    std::fs::write(&path, archive(&[("W_enc.npy", &object), ("W_dec.npy", &object), ("threshold.npy", &object)])).unwrap();
    assert!(import(&path).unwrap_err().contains("dtype=object"));
}

#[test]
fn archives_that_lie_are_refused_without_memory() {
    let dir = tempfile::tempdir().unwrap();
    let pt_path = dir.path().join("5.pt");
    // Names that point out of the archive.
    std::fs::write(&pt_path, archive(&[("a/data.pkl", b"\x80\x02}."), ("../../evil", b"x")])).unwrap();
    assert!(import(&pt_path).unwrap_err().contains("plain relative path"));
    assert!(!dir.path().join("../../evil").exists());

    // Tensors of a trillion elements: over a storage that is not there, seen again and again, in an .npy header.
    let tensor = |held: &str, shape: &str, strides: &str| {
        let head =
            b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu";
        let int = |v: &str| [b"\x8a\x08".as_slice(), &v.parse::<i64>().unwrap().to_le_bytes()].concat();
        let two = |v: &str| v.split(',').map(int).collect::<Vec<_>>().concat();
        [head.as_slice(), &int(held), b"tQK\x00(", &two(shape), b"t(", &two(strides), b"t\x89ccollections\nOrderedDict\n)RtR"].concat()
    };
    let key = |s: &str| [b"X".as_slice(), &(s.len() as u32).to_le_bytes(), s.as_bytes()].concat();
    for (held, shape, strides) in [
        ("1000000000000", "1000000,1000000", "1000000,1"),
        ("4", "1000000,1000000", "0,0"),
        ("4", "9223372036854775807,9223372036854775807", "1,1"),
        ("4", "2,2", "9223372036854775807,1"),
        ("-1", "2,2", "2,1"),
    ] {
        let w = tensor(held, shape, strides);
        let pickle = [b"\x80\x02}(".as_slice(), &key("pre_bias"), &w, &key("latent_bias"), &w, b"u."].concat();
        std::fs::write(&pt_path, archive(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 16])])).unwrap();
        import(&pt_path).unwrap_err();
    }
    for shape in ["1000000, 1000000", "9223372036854775807, 3", "18446744073709551615,"] {
        let header = format!("{{'descr': '<f4', 'fortran_order': True, 'shape': ({shape}), }}");
        let bytes = [b"\x93NUMPY\x01\x00".as_slice(), &(header.len() as u16).to_le_bytes(), header.as_bytes(), &[0; 16]].concat();
        let (read, held) = peak(|| npy::read(&bytes, Path::new("x.npy")));
        assert!(read.is_err() && held < SMALL);
    }

    // A bomb: 64 MB of zeros in 64 kB, as an npz that claims to be one.
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![0; 64 << 20]).unwrap();
    let packed = encoder.finish().unwrap();
    let mut bytes = archive(&[("threshold.npy", &packed)]);
    let directory = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    for (at, size_at) in [(8, 22), (directory + 10, directory + 24)] {
        bytes[at] = 8;
        bytes[size_at..size_at + 4].copy_from_slice(&(64u32 << 20).to_le_bytes());
    }
    let npz_path = dir.path().join("params.npz");
    std::fs::write(&npz_path, &bytes).unwrap();
    let said = import(&npz_path).unwrap_err();
    assert!(said.contains("bomb"), "{said}");
}

/// A small dictionary, written by one dialect: its folder, and the names of its files.
fn written(format: &str, activation: Activation, notes: Value) -> (tempfile::TempDir, Vec<PathBuf>) {
    let mut rng = Rng::stream(3, "hostile", 0);
    let mut t = |shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let b_dec = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    let coder = Coder { w_enc: t(&[6, 3]), b_enc: t(&[6]), w_dec: t(&[6, 3]), b_dec };
    let mut d = Dictionary::new(coder, activation.clone(), true, Provenance::default()).unwrap();
    d.provenance.notes = notes;
    if format == "openai" && activation.k().is_some() {
        d.row_norm = Some(lapidary::dictionary::RowNorm::LayerNorm);
    }
    let dir = tempfile::tempdir().unwrap();
    formats::by_id(format).unwrap().write(&d, dir.path(), &WriteOptions::default()).unwrap();
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    (dir, files)
}

/// Every dialect that writes, in the form of some class.
fn all_written() -> Vec<(tempfile::TempDir, Vec<PathBuf>)> {
    let threshold = || Activation::Threshold { threshold: 0.2 };
    let topk = || Activation::TopK { k: 2 };
    let mut all = vec![
        written("dictionary-learning", threshold(), json!({ "k": 2, "prefixes": [2] })),
        written("dictionary-learning", topk(), Value::Null),
        written("openai", topk(), Value::Null),
        written("gemma-scope", threshold(), Value::Null),
        written("overcomplete", topk(), Value::Null),
        written("overcomplete", threshold(), Value::Null),
        written("saelens", topk(), Value::Null),
        written("saelens", threshold(), Value::Null),
        written("sparsify", topk(), Value::Null),
    ];
    // What others may have added since.
    for format in formats::ALL.iter().filter(|f| f.writes()) {
        if !["dictionary-learning", "openai", "gemma-scope", "overcomplete", "saelens", "sparsify"].contains(&format.id()) {
            all.push(written(format.id(), threshold(), Value::Null));
        }
    }
    all
}

#[test]
fn files_that_are_cut_are_refused() {
    for (dir, files) in all_written() {
        import(dir.path()).unwrap();
        for file in &files {
            let whole = std::fs::read(file).unwrap();
            // All lengths at both ends, some between: the containers' own tests have them all.
            let lengths = (0..whole.len()).filter(|n| *n < 64 || n % 37 == 0 || whole.len() - n < 64);
            // A cut line end is none.
            for n in lengths.filter(|n| whole[*n..].iter().any(|b| !b.is_ascii_whitespace())) {
                std::fs::write(file, &whole[..n]).unwrap();
                // Settings that may be left out are none of the weights: a cut JSON file is no JSON.
                assert!(import(dir.path()).is_err(), "{} of {} bytes of {}", n, whole.len(), file.display());
            }
            std::fs::write(file, &whole).unwrap();
        }
        import(dir.path()).unwrap();
    }
}

/// Values that settings should not have, and some they might.
fn odd_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(vec![
            json!(null),
            json!(true),
            json!(0),
            json!(1),
            json!(3),
            json!(-1),
            json!(1e300),
            json!(-0.5),
            json!(u64::MAX),
            json!(i64::MAX),
            json!(1u64 << 40),
            json!(""),
            json!("topk"),
            json!("jumprelu"),
            json!("AutoEncoderNew"),
            json!("MpSAE"),
            json!("layer_norm"),
            json!([]),
            json!([1, 2, 3]),
            json!([u64::MAX, u64::MAX]),
            json!({}),
            json!({ "k": u64::MAX }),
        ]),
        any::<i64>().prop_map(|v| json!(v)),
        any::<f64>().prop_map(|v| json!(v)),
        ".{0,8}".prop_map(|v| json!(v)),
    ]
}

thread_local! {
    /// One set of files per test: each runs on a thread of its own, and puts back what it changed.
    static WRITTEN: Vec<(tempfile::TempDir, Vec<PathBuf>)> = all_written();
}

/// One setting changed, or taken away with another in its place; one inside an object if `deep`, where there is any.
fn change(config: &mut Value, which: &prop::sample::Index, with: &Value, remove: bool, deep: bool) {
    let top = config.as_object_mut().unwrap();
    let inner = top.values_mut().filter_map(Value::as_object_mut).find(|m| deep && !m.is_empty());
    let map = match inner {
        Some(map) => map,
        None => config.as_object_mut().unwrap(),
    };
    let Some(key) = map.keys().nth(which.index(map.len().max(1))).cloned() else { return };
    if remove {
        map.remove(&key);
        map.insert("other".into(), with.clone());
    } else {
        map.insert(key, with.clone());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn odd_settings_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), odd_value(), any::<bool>(), any::<bool>()), 1..3),
    ) {
        WRITTEN.with(|written| for (dir, files) in written {
            for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "json")) {
                let whole = std::fs::read(file).unwrap();
                let mut config: Value = serde_json::from_slice(&whole).unwrap();
                for (which, with, remove, deep) in &changes {
                    change(&mut config, which, with, *remove, *deep);
                }
                std::fs::write(file, config.to_string()).unwrap();
                let _ = import(dir.path());
                std::fs::write(file, &whole).unwrap();
            }
        });
    }

    #[test]
    fn spoilt_weights_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        WRITTEN.with(|written| for (dir, files) in written {
            for file in files.iter().filter(|f| f.extension().is_none_or(|e| e != "json")) {
                let whole = std::fs::read(file).unwrap();
                let mut bytes = whole.clone();
                for (at, with) in &changes {
                    // Headers are at the ends.
                    let at = at.index(bytes.len());
                    bytes[at] = *with;
                }
                std::fs::write(file, &bytes).unwrap();
                let _ = import(dir.path());
                std::fs::write(file, &whole).unwrap();
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Headers that are JSON, with the keys that headers have.
    #[test]
    fn safetensors_headers_do_no_harm(
        dtype in prop::sample::select(vec!["F32", "F64", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "Q4", ""]),
        shape in prop::collection::vec(prop_oneof![0u64..4, Just(1 << 40), any::<u64>()], 0..4),
        from in prop_oneof![0u64..20, any::<u64>()],
        to in prop_oneof![0u64..40, any::<u64>()],
        length in prop_oneof![9 => Just(None), 1 => any::<u64>().prop_map(Some)],
        twice in any::<bool>(),
        data in 0usize..64,
    ) {
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [from, to] });
        let mut header = json!({ "w": entry });
        if twice {
            header["v"] = entry;
        }
        let header = header.to_string();
        let mut bytes = length.unwrap_or(header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        let (read, held) = peak(|| Tensors::safetensors_of("test", Path::new("x"), &bytes));
        prop_assert!(held < SMALL, "{} bytes", held);
        if let Ok(all) = read {
            prop_assert!(all.names().all(|n| all.shape(n).unwrap().iter().product::<usize>() <= 64));
        }
    }

    #[test]
    fn npy_headers_do_no_harm(
        descr in prop::sample::select(vec!["<f4", ">f8", "|u1", "<i8", "|O", "<U7", "f4", ""]),
        fortran in prop::sample::select(vec!["True", "False", "1", ""]),
        shape in prop::collection::vec(prop_oneof![0u64..4, any::<u64>()], 0..4),
        data in 0usize..64,
        spoil in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let shape: String = shape.iter().map(|s| format!("{s}, ")).collect();
        let dict = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': ({shape}), }}");
        let mut bytes = [b"\x93NUMPY\x01\x00".as_slice(), &(dict.len() as u16).to_le_bytes(), dict.as_bytes()].concat();
        bytes.resize(bytes.len() + data, 1);
        if let Some((at, with)) = spoil {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        let (read, held) = peak(|| npy::read(&bytes, Path::new("x.npy")));
        prop_assert!(held < SMALL);
        if let Ok(array) = read {
            prop_assert!(array.bytes().len() <= bytes.len());
        }
    }
}

#[test]
fn settings_of_any_size_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cfg.json");
    // Sparse: its length is claimed, nothing is there.
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let (read, held) = peak(|| read_json("test", &path));
    assert!(read.is_err() && held < SMALL);
    // Deep nesting.
    std::fs::write(&path, "[".repeat(1 << 20)).unwrap();
    assert!(read_json("test", &path).is_err());
}

#[test]
fn what_is_no_number_is_no_weight() {
    let dir = tempfile::tempdir().unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let w = |shape: Vec<usize>| {
            let mut values = vec![0.5; shape.iter().product()];
            values[1] = bad;
            Array::from_f32(shape, &values).unwrap()
        };
        let arrays =
            [("W_enc", w(vec![3, 6])), ("W_dec", w(vec![6, 3])), ("b_enc", w(vec![6])), ("b_dec", w(vec![3])), ("threshold", w(vec![6]))];
        let path = dir.path().join("params.npz");
        npz::save(&path, &arrays).unwrap();
        assert!(import(&path).unwrap_err().contains("NaN or infinite"));
        let path = dir.path().join("5.pt");
        let items = [("pre_bias", pt::Item::Tensor(w(vec![3]))), ("latent_bias", pt::Item::Tensor(w(vec![6])))];
        pt::save(&path, &items).unwrap();
        assert!(import(&path).unwrap_err().contains("NaN or infinite"));
    }
}
