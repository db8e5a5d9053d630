use proptest::prelude::*;

use super::*;

fn text(s: &str) -> Value {
    Value::Text(s.into())
}

/// A pickle of protocol 2 around `body`.
fn pickle(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body].concat()
}

fn refused(body: &[u8]) -> String {
    read(&pickle(body)).unwrap_err()
}

#[test]
fn what_is_written_comes_back() {
    let value = Value::Dict(vec![
        (text("a"), Value::Int(-5)),
        (text("b"), Value::List(vec![Value::Int(255), Value::Int(256), Value::Int(1 << 40), Value::Int(i64::MIN)])),
        (text("c"), Value::Tuple(vec![Value::None, Value::Bool(true), Value::Bool(false), Value::Float(-0.5)])),
        (text("d"), Value::Dict(vec![(text("k"), Value::Int(32)), (text("postact_fn"), text("ReLU"))])),
        (text("ä"), Value::Tuple(Vec::new())),
        (text("t"), Value::Call(Global::RebuildTensor, vec![Value::Persistent(Box::new(Value::Global(Global::Storage(Element::F32))))])),
    ]);
    assert_eq!(read(&write(&value)).unwrap(), value);
    let bytes = write(&value);
    for n in 0..bytes.len() {
        assert!(read(&bytes[..n]).is_err(), "{n}");
    }
}

#[test]
fn pythons_own_forms() {
    // pickle.dumps({"k": [1, 2], "s": "x"}, protocol=4), as Python 3 writes it: frame, memo, short strings.
    let p4 = b"\x80\x04\x95\x16\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01k\x94]\x94(K\x01K\x02e\x8c\x01s\x94\x8c\x01x\x94u.";
    let value = read(p4).unwrap();
    assert_eq!(value.get("k"), Some(&Value::List(vec![Value::Int(1), Value::Int(2)])));
    assert_eq!(value.get("s").and_then(Value::text), Some("x"));
    // An OrderedDict with an attribute, filled after it was remembered, and referred to again: a state dict inside a tuple.
    let body = b"ccollections\nOrderedDict\nq\x00)Rq\x01(X\x01\x00\x00\x00aK\x01u}X\x09\x00\x00\x00_metadatah\x00)RsbX\x01\x00\x00\x00bh\x01\x86\x86.";
    let value = read(&pickle(body)).unwrap();
    let dict = Value::Dict(vec![(text("a"), Value::Int(1))]);
    assert_eq!(value, Value::Tuple(vec![dict.clone(), Value::Tuple(vec![text("b"), dict])]));
    // Integers of 0 to 8 bytes.
    for (body, v) in [
        (b"\x8a\x00.".as_slice(), 0),
        (b"\x8a\x01\xFF.", -1),
        (b"\x8a\x02\xFF\x00.", 255),
        (b"J\xFE\xFF\xFF\xFF.", -2),
        (b"M\xFF\xFF.", 65535),
    ] {
        assert_eq!(read(&pickle(body)).unwrap(), Value::Int(v));
    }
    assert_eq!(read(&pickle(b"C\x02ab.")).unwrap(), Value::Bytes(b"ab".to_vec()));
}

#[test]
fn nothing_is_run() {
    // What pickle exploits look like.
    assert!(refused(b"cposix\nsystem\nX\x02\x00\x00\x00id\x85R.").contains("`posix.system`"));
    assert!(refused(b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R.").contains("`builtins.eval`"));
    assert!(read(b"\x80\x04\x8c\x08builtins\x94\x8c\x04exec\x94\x93.").unwrap_err().contains("`builtins.exec`"));
    assert!(refused(b"(S'id'\nios\nsystem\n.").contains("STRING"));
    assert!(refused(b"(ios\nsystem\n.").contains("INST"));
    assert!(refused(b"ccollections\nOrderedDict\n)\x81.").contains("NEWOBJ"));
    assert!(refused(b"\x82\x01.").contains("EXT1"));
    assert!(refused(b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.").contains("__globals__"));
    // Names with dots inside, which Python would follow.
    assert!(read(b"\x80\x04\x8c\x05torch\x8c\x14FloatStorage.__init__\x93.").is_err());
    for op in 0..=255u8 {
        let alone = pickle(&[op]);
        assert!(read(&alone).is_err(), "{op:#x}");
        if let Some(name) = opcode::name(op) {
            // Those with a name that are not read must say it.
            if !matches!(op, b'a' | b'b' | b'c' | b'R' | 0x93) {
                assert!(read(&alone).unwrap_err().contains(name), "{name}");
            }
        }
    }
    // A call of what may be named but not called, and of what is no name.
    assert!(refused(b"ctorch\nFloatStorage\n)R.").contains("FloatStorage"));
    assert!(refused(b"K\x01)R.").contains("no name"));
    assert!(refused(b"ccollections\nOrderedDict\n]\x85R.").contains("1 arguments"));
    // Attributes of anything but a dict.
    assert!(refused(b"]}b.").contains("BUILD"));
}

#[test]
fn a_small_pickle_stays_small() {
    // Lists of lists of lists, each twice the last: 2^60 values in 300 bytes.
    let mut body = b"]q\x00".to_vec();
    for i in 0..60u8 {
        body.extend([b'h', i, b'h', i, 0x86, b'q', i + 1]);
    }
    // Nothing is left on the stack but the last.
    body.extend(b"\x85.");
    assert!(read(&pickle(&body)).is_err());
    let mut doubling = b"X\x01\x00\x00\x00aq\x00".to_vec();
    for i in 0..28u8 {
        doubling.extend([b'h', i, 0x86, b'q', i + 1, b'h', i + 1]);
        if i == 27 {
            doubling.extend(b"\x86.");
        }
    }
    assert!(read(&pickle(&doubling)).is_err());
    // Itself inside itself.
    assert!(refused(b"]q\x00h\x00a.").contains("deep"));
    // Deep nesting.
    let mut deep = b"K\x01".to_vec();
    deep.extend([0x85; 5000]);
    deep.push(b'.');
    assert!(refused(&deep).contains("deep"));
    // A long text, again and again.
    let mut long = b"(X\xA0\x86\x01\x00".to_vec();
    long.extend([b'a'; 100_000]);
    long.extend(b"q\x00");
    for _ in 0..100 {
        long.extend(b"h\x00");
    }
    long.extend(b"t.");
    assert!(refused(&long).contains("text"));
    // Lengths that are not there.
    assert!(refused(b"X\xFF\xFF\xFF\xFFa").contains("announced"));
    assert!(read(b"\x80\x04\x8d\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFFa").is_err());
    assert!(read(&vec![0x80; 2 << 20]).unwrap_err().contains("no state dict"));
}

#[test]
fn the_stack_holds() {
    for body in [
        b".".as_slice(),
        b"t.",
        b"a.",
        b"s.",
        b"K\x01u.",
        b"(.",
        b"K\x01(\x85.",
        b"h\x05.",
        b"q\x00.",
        b"}(K\x01u.",
        b"K\x01K\x02.",
        b"N.N",
    ] {
        assert!(read(&pickle(body)).is_err(), "{body:?}");
    }
    assert!(refused(b"}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00aK\x02u.").contains("two values"));
    for head in [b"\x80\x01N.".as_slice(), b"\x80\x06N.", b"N.", b""] {
        assert!(read(head).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

    /// Instructions that are known, in any order, with any operands.
    #[test]
    fn any_program_does_no_harm(body in prop::collection::vec(prop_oneof![
        3 => prop::sample::select(b"N\x88\x89()]}ae.sutRbQ\x85\x86\x87\x94\x93".as_slice()).prop_map(|b| vec![b]),
        1 => any::<u8>().prop_map(|v| vec![b'K', v]),
        1 => (0u8..4).prop_map(|v| vec![b'q', v]),
        1 => (0u8..4).prop_map(|v| vec![b'h', v]),
        1 => Just(b"X\x01\x00\x00\x00a".to_vec()),
        1 => Just(b"ccollections\nOrderedDict\n".to_vec()),
        1 => Just(b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec()),
        1 => any::<u8>().prop_map(|v| vec![v]),
    ], 0..60)) {
        let _ = read(&pickle(&body.concat()));
    }

    #[test]
    fn spoilt_pickles_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        let mut bytes = write(&Value::Dict(vec![(text("a"), Value::Tuple(vec![text("storage"), Value::Int(300), Value::Float(1.0)]))]));
        for (at, with) in changes {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        let _ = read(&bytes);
    }
}
