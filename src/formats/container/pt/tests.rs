use proptest::prelude::*;

use super::*;

fn open(bytes: &[u8]) -> Result<PtFile<'_>> {
    PtFile::new(bytes, Path::new("ae.pt"))
}

fn text(s: &str) -> Value {
    Value::Text(s.into())
}

/// A tensor as a pickle has it, with whatever numbers.
fn tensor(element: Element, key: &str, held: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Value {
    let ints = |v: &[i64]| Value::Tuple(v.iter().map(|&v| Value::Int(v)).collect());
    let storage = vec![text("storage"), Value::Global(Global::Storage(element)), text(key), text("cpu"), Value::Int(held)];
    let arguments =
        vec![Value::Persistent(Box::new(Value::Tuple(storage))), Value::Int(offset), ints(shape), ints(strides), Value::Bool(false)];
    Value::Call(Global::RebuildTensor, arguments)
}

fn file(value: &Value, order: &[u8], storages: &[&[u8]]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Vec::new());
    zip.add("x/data.pkl", &pickle::write(value)).unwrap();
    zip.add("x/byteorder", order).unwrap();
    for (i, s) in storages.iter().enumerate() {
        zip.add(&format!("x/data/{i}"), s).unwrap();
    }
    zip.finish().unwrap()
}

fn six() -> Vec<u8> {
    (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

/// The numbers of one tensor over the storage 0, 1, 2, 3, 4, 5.
fn view_of(offset: i64, shape: &[i64], strides: &[i64]) -> Result<Vec<f32>> {
    let bytes = file(&Value::Dict(vec![(text("w"), tensor(Element::F32, "0", 6, offset, shape, strides))]), b"little", &[&six()]);
    let pt = open(&bytes)?;
    Ok(pt.array("w", pt.value.get("w").unwrap())?.to_f32())
}

#[test]
fn what_is_written_comes_back() {
    let w = Array::from_f32(vec![2, 3], &[1., 2., 3., 4., 5., 6.]).unwrap();
    let k = Array::from_i32(vec![], &[32]).unwrap();
    let settings = Value::Dict(vec![(text("k"), Value::Int(32))]);
    let items = [
        ("w", Item::Tensor(w.clone())),
        ("k", Item::Tensor(k.clone())),
        ("none", Item::Tensor(Array::from_f32(vec![0, 3], &[]).unwrap())),
        ("activation", Item::Plain(text("TopK"))),
        ("activation_state_dict", Item::Plain(settings.clone())),
    ];
    let bytes = write(Vec::new(), "ae", &items).unwrap();
    assert!(looks_like(&bytes));
    let pt = open(&bytes).unwrap();
    let entries = pt.entries().unwrap();
    assert_eq!(entries.iter().map(|e| e.0).collect::<Vec<_>>(), ["w", "k", "none", "activation", "activation_state_dict"]);
    assert_eq!((pt.array("w", entries[0].1).unwrap(), pt.array("k", entries[1].1).unwrap()), (w, k));
    assert_eq!(pt.shape(entries[2].1).unwrap(), [0, 3]);
    assert!(pt.array("none", entries[2].1).unwrap().is_empty());
    assert_eq!((entries[3].1, entries[4].1), (&text("TopK"), &settings));
    assert!(pt.array("activation", entries[3].1).unwrap_err().to_string().contains("a string, no tensor"));
    for n in 0..bytes.len() {
        assert!(open(&bytes[..n]).is_err(), "{n}");
    }
}

#[test]
fn strides_and_offsets_are_honoured() {
    assert_eq!(view_of(0, &[2, 3], &[3, 1]).unwrap(), [0., 1., 2., 3., 4., 5.]);
    // Stored by columns: what a transposed clone leaves.
    assert_eq!(view_of(0, &[2, 3], &[1, 2]).unwrap(), [0., 2., 4., 1., 3., 5.]);
    assert_eq!(view_of(1, &[2, 2], &[3, 1]).unwrap(), [1., 2., 4., 5.]);
    assert_eq!(view_of(5, &[], &[]).unwrap(), [5.]);
    // Strides of dimensions of size 1 mean nothing; without elements nothing does.
    assert_eq!(view_of(0, &[1, 6], &[0, 1]).unwrap().len(), 6);
    assert_eq!(view_of(99, &[0, 6], &[7, 7]).unwrap().len(), 0);
}

#[test]
fn views_stay_in_their_storage_and_share_nothing() {
    for (offset, shape, strides) in [
        (0, vec![7], vec![1]),
        (1, vec![6], vec![1]),
        (6, vec![], vec![]),
        (0, vec![2, 3], vec![4, 1]),
        (0, vec![i64::MAX, i64::MAX], vec![1, 1]),
        (i64::MAX, vec![2], vec![1]),
        (0, vec![2], vec![i64::MAX]),
        (0, vec![3, 3], vec![i64::MAX / 2, i64::MAX / 2 + 1]),
        (-1, vec![2], vec![1]),
        (0, vec![-2], vec![1]),
        (0, vec![2], vec![-1]),
        // One element, seen a million million times.
        (0, vec![1_000_000, 1_000_000], vec![0, 0]),
        (0, vec![3, 3], vec![1, 1]),
        (0, vec![2, 2], vec![1, 1]),
        (0, vec![2], vec![1, 1]),
        (0, vec![1; 9], vec![1; 9]),
    ] {
        assert!(view_of(offset, &shape, &strides).is_err(), "{offset} {shape:?} {strides:?}");
    }
    assert!(view_of(0, &[2, 2], &[1, 1]).unwrap_err().to_string().contains("share memory"));
    // Storages of another length than announced, and none.
    for (key, held) in [("0", 5), ("0", 7), ("1", 6), ("../data.pkl", 6), ("0", i64::MAX)] {
        let bytes = file(&Value::Dict(vec![(text("w"), tensor(Element::F32, key, held, 0, &[2], &[1]))]), b"little", &[&six()]);
        let pt = open(&bytes).unwrap();
        assert!(pt.array("w", pt.value.get("w").unwrap()).is_err(), "{key} {held}");
    }
}

#[test]
fn bytes_of_big_endian_machines_are_turned() {
    let data: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| v.to_be_bytes()).collect();
    let value = Value::Dict(vec![(text("w"), tensor(Element::F32, "0", 2, 0, &[2], &[1]))]);
    let bytes = file(&value, b"big", &[&data]);
    let pt = open(&bytes).unwrap();
    assert_eq!(pt.array("w", pt.value.get("w").unwrap()).unwrap().to_f32(), [1.5, -2.0]);
    assert!(open(&file(&value, b"middle", &[&data])).unwrap_err().to_string().contains("byte order"));
}

#[test]
fn parameters_and_checkpoints() {
    let inner = tensor(Element::F32, "0", 6, 0, &[6], &[1]);
    let parameter = Value::Call(Global::RebuildParameter, vec![inner, Value::Bool(true)]);
    let state = Value::Dict(vec![(text("w"), parameter)]);
    let bytes = file(&Value::Dict(vec![(text("step"), Value::Int(3)), (text("model_state_dict"), state)]), b"little", &[&six()]);
    let pt = open(&bytes).unwrap();
    let entries = pt.entries().unwrap();
    assert!(PtFile::is_tensor(entries[0].1));
    assert_eq!(pt.array("w", entries[0].1).unwrap().shape, [6]);
    assert!(open(&file(&Value::List(vec![]), b"little", &[])).unwrap().entries().is_err());
    // What stands beside it may mean something.
    let state = || Value::Dict(Vec::new());
    let bytes = file(&Value::Dict(vec![(text("state_dict"), state()), (text("k"), Value::Int(3))]), b"little", &[]);
    assert!(open(&bytes).unwrap().entries().unwrap_err().to_string().contains("beside `state_dict` it holds `k`"));
}

#[test]
fn older_forms_say_how_to_get_out() {
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    for old in [[LEGACY, b".\x80\x02"].concat(), b"\x80\x02}.".to_vec(), tar] {
        let e = open(&old).unwrap_err().to_string();
        assert!(e.contains("torch.save(torch.load(\"ae.pt\""), "{e}");
    }
    let mut zip = ZipWriter::new(Vec::new());
    zip.add("a/data.pkl", b"\x80\x02}.").unwrap();
    zip.add("b/data.pkl", b"\x80\x02}.").unwrap();
    assert!(open(&zip.finish().unwrap()).unwrap_err().to_string().contains("several"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    /// Whatever a view says, what comes out lies in the storage; against indices computed one by one.
    #[test]
    fn any_view_is_right_or_refused(offset in 0i64..8, dims in prop::collection::vec((0i64..4, 0i64..7), 0..4)) {
        let (shape, strides): (Vec<i64>, Vec<i64>) = dims.into_iter().unzip();
        let mut places = vec![offset];
        for (n, stride) in shape.iter().zip(&strides) {
            places = places.iter().flat_map(|p| (0..*n).map(move |i| p + i * stride)).collect();
        }
        let mut unique = places.clone();
        unique.sort_unstable();
        unique.dedup();
        match view_of(offset, &shape, &strides) {
            Ok(values) => prop_assert_eq!(values, places.iter().map(|&p| p as f32).collect::<Vec<_>>()),
            // Interleaved dimensions that share nothing are refused too: nobody saves them.
            Err(e) => prop_assert!(places.iter().any(|&p| p >= 6) || unique.len() < places.len() || e.to_string().contains("share memory")),
        }
    }

    #[test]
    fn spoilt_files_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        let w = Array::from_f32(vec![2, 3], &[1., 2., 3., 4., 5., 6.]).unwrap();
        let mut bytes = write(Vec::new(), "ae", &[("w", Item::Tensor(w))]).unwrap();
        for (at, with) in changes {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        if let Ok(pt) = open(&bytes) {
            for (name, value) in pt.entries().unwrap_or_default() {
                if let Ok(array) = pt.array(name, value) {
                    prop_assert!(array.bytes().len() <= bytes.len());
                }
            }
        }
    }
}
