use proptest::prelude::*;

use super::*;

fn open(bytes: &[u8]) -> Result<Zip<'_>> {
    Zip::new(bytes, Path::new("x.zip"))
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Vec::new());
    for (name, data) in entries {
        zip.add(name, data).unwrap();
    }
    zip.finish().unwrap()
}

/// An archive of one deflated entry which claims `size` bytes, without padding fields: offsets are easy to name.
fn deflated(name: &str, packed: &[u8], size: u32, crc: u32) -> Vec<u8> {
    let common = |out: &mut Vec<u8>| {
        out.extend([20, 0, 0, 0, 8, 0, 0, 0, 0x21, 0]);
        for v in [crc, packed.len() as u32, size] {
            out.extend(v.to_le_bytes());
        }
        out.extend((name.len() as u16).to_le_bytes());
        out.extend([0, 0]);
    };
    let mut out = LOCAL.to_vec();
    common(&mut out);
    out.extend(name.as_bytes());
    out.extend(packed);
    let at = out.len() as u32;
    out.extend(CENTRAL);
    out.extend([20, 0]);
    common(&mut out);
    out.extend([0; 14]);
    out.extend(name.as_bytes());
    let length = out.len() as u32 - at;
    out.extend(END);
    out.extend([0, 0, 0, 0, 1, 0, 1, 0]);
    out.extend(length.to_le_bytes());
    out.extend(at.to_le_bytes());
    out.extend([0, 0]);
    out
}

fn deflate(data: &[u8]) -> (Vec<u8>, u32) {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).unwrap();
    let mut crc = flate2::Crc::new();
    crc.update(data);
    (encoder.finish().unwrap(), crc.sum())
}

#[test]
fn entries_come_back_and_begin_where_mapping_wants_them() {
    let bytes = archive(&[("a/data.pkl", b"one"), ("a/data/0", &[7; 300]), ("empty", b"")]);
    let zip = open(&bytes).unwrap();
    assert_eq!(zip.names().collect::<Vec<_>>(), ["a/data.pkl", "a/data/0", "empty"]);
    assert_eq!(&*zip.read("a/data.pkl").unwrap(), b"one");
    assert_eq!(&*zip.read("a/data/0").unwrap(), &[7; 300]);
    assert_eq!(zip.size("empty"), Some(0));
    assert!(zip.entries.values().all(|e| e.at % 64 == 0));
    assert!(zip.read("b").unwrap_err().to_string().contains("no entry `b`"));
    assert!(open(&archive(&[])).unwrap().names().next().is_none());
}

#[test]
fn deflated_entries_are_read_and_bombs_are_not() {
    let data: Vec<u8> = (0..5000u32).flat_map(|i| (i % 700).to_le_bytes()).collect();
    let (packed, crc) = deflate(&data);
    assert_eq!(&*open(&deflated("x.npy", &packed, data.len() as u32, crc)).unwrap().read("x.npy").unwrap(), data.as_slice());
    // Sizes that are not those of the data, either way.
    for size in [data.len() as u32 - 1, data.len() as u32 + 1, 0] {
        assert!(open(&deflated("x", &packed, size, crc)).and_then(|z| z.read("x").map(drop)).is_err(), "{size}");
    }
    assert!(open(&deflated("x", &packed, data.len() as u32, crc ^ 1)).unwrap().read("x").unwrap_err().to_string().contains("checksum"));
    assert_eq!(&*open(&deflated("x", &packed, data.len() as u32, 0)).unwrap().read("x").unwrap(), data.as_slice());
    // More than deflate can do, and more than is taken.
    let e = open(&deflated("x", &packed, u32::MAX - 1, crc)).unwrap_err().to_string();
    assert!(e.contains("deflate cannot"), "{e}");
    let (packed, crc) = deflate(&vec![0; 100 << 20]);
    assert!(packed.len() < 200_000);
    let e = open(&deflated("x", &packed, 100 << 20, crc)).unwrap_err().to_string();
    assert!(e.contains("bomb"), "{e}");
}

#[test]
fn names_are_plain_and_unique() {
    for name in ["../x", "a/../../x", "/etc/passwd", "a\\b", "C:x", "", "a\0b", ".", "a/./b", "x\ny"] {
        assert!(open(&archive(&[(name, b"1")])).is_err(), "{name:?}");
    }
    for name in ["a", "a/b.c", "ae/.data/id", "..a", "ä"] {
        assert!(open(&archive(&[(name, b"1")])).is_ok(), "{name:?}");
    }
    assert!(open(&archive(&[("a", b"1"), ("a", b"2")])).unwrap_err().to_string().contains("two entries `a`"));
}

#[test]
fn entries_do_not_overlap_and_headers_agree() {
    let whole = archive(&[("a", &[1; 100]), ("b", &[2; 100])]);
    let directory = whole.windows(4).position(|w| w == CENTRAL).unwrap();
    let second = directory + 4 + whole[directory + 4..].windows(4).position(|w| w == CENTRAL).unwrap();
    let spoilt = |at: usize, with: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        open(&bytes).unwrap_err().to_string()
    };
    // Entry b said to be where a is: its name differs there. With the name changed too, it is there twice.
    assert!(spoilt(second + 42, &[0; 4]).contains("disagree"));
    // Larger in the directory than in its own header; beyond the end; not where it is said to be.
    assert!(spoilt(directory + 20, &[101, 0, 0, 0, 101, 0, 0, 0]).contains("disagree"));
    assert!(spoilt(directory + 42, &[0xF0, 0xFF, 0xFF, 0x7F]).contains("outside"));
    assert!(spoilt(directory + 42, &[1, 0, 0, 0]).contains("not where"));
    // Encrypted, an unknown method, stored with another length.
    assert!(spoilt(directory + 8, &[1]).contains("encrypted"));
    assert!(spoilt(directory + 10, &[12]).contains("method 12"));
    assert!(spoilt(directory + 20, &[99, 0, 0, 0]).contains("stored"));

    // Two entries over the same bytes: the second's local header lies within the first's data.
    let inner = archive(&[("b", b"xx")]);
    let inner = &inner[..inner.windows(4).position(|w| w == CENTRAL).unwrap()];
    let mut bytes = archive(&[("a", inner), ("b", b"xx")]);
    let at = bytes.windows(inner.len()).position(|w| w == inner).unwrap() as u32;
    let directory = bytes.windows(4).rposition(|w| w == CENTRAL).unwrap();
    bytes[directory + 42..directory + 46].copy_from_slice(&at.to_le_bytes());
    assert!(open(&bytes).unwrap_err().to_string().contains("overlap"));
}

#[test]
fn huge_claims_allocate_nothing() {
    let whole = archive(&[("a", &[1; 10])]);
    let end = whole.len() - 22;
    for (at, with) in [(end + 8, [0xFE, 0xFF, 0xFE, 0xFF]), (end + 12, [0xFE, 0xFF, 0xFF, 0xFF]), (end + 16, [0xFE, 0xFF, 0xFF, 0xFF])] {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&with);
        assert!(open(&bytes).is_err());
    }
}

#[test]
fn sixty_four_bit_records_are_written_and_read() {
    // More entries than 16 bits count: the end record has a wide sibling.
    let names: Vec<String> = (0..70_000).map(|i| i.to_string()).collect();
    let entries: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), b"".as_slice())).collect();
    let bytes = archive(&entries);
    assert_eq!(open(&bytes).unwrap().names().count(), 70_000);
    // A 64-bit extra field in both headers, as `force_zip64` of Python writes it.
    let mut zip = ZipWriter::new(Vec::new());
    zip.add("a", b"data").unwrap();
    let mut local = std::mem::take(&mut zip.out);
    // Sizes of the local header to "see the extra field"; the padding field becomes that field.
    let at = local.windows(2).position(|w| w == b"FB").unwrap();
    local[18..26].copy_from_slice(&[0xFF; 8]);
    local[at..at + 2].copy_from_slice(&1u16.to_le_bytes());
    local[at + 4..at + 20].copy_from_slice(&[4u64.to_le_bytes(), 4u64.to_le_bytes()].concat());
    zip.out = local;
    let bytes = zip.finish().unwrap();
    assert_eq!(&*open(&bytes).unwrap().read("a").unwrap(), b"data");
}

#[test]
fn a_cut_archive_is_none() {
    let whole = archive(&[("a/data.pkl", b"one"), ("a/data/0", &[7; 30])]);
    for n in 0..whole.len() {
        assert!(open(&whole[..n]).is_err(), "{n} of {} bytes", whole.len());
    }
    // A comment is fine, other bytes after the end are not.
    let mut more = whole.clone();
    more.push(0);
    assert!(open(&more).is_err());
    let n = more.len();
    more[n - 3] = 1;
    assert!(open(&more).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn spoilt_archives_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let (packed, crc) = deflate(&[5; 1000]);
        for mut bytes in [archive(&[("a/data.pkl", b"one"), ("a/data/0", &[7; 30])]), deflated("x", &packed, 1000, crc)] {
            for (at, with) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *with;
            }
            if let Ok(zip) = open(&bytes) {
                for name in zip.names() {
                    prop_assert!(zip.size(name).unwrap() as u64 <= INFLATED_ANYWAY);
                    if let Ok(data) = zip.read(name) {
                        prop_assert_eq!(data.len(), zip.size(name).unwrap());
                    }
                }
            }
        }
    }

    #[test]
    fn any_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..200), end in any::<bool>()) {
        if end {
            bytes.extend(END);
            bytes.extend([0; 18]);
        }
        let _ = open(&bytes);
    }
}

/// A file that leaves holes where zeros are written.
struct Sparse(std::fs::File);

impl Write for Sparse {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        use std::io::Seek;
        let n = bytes.len().min(1 << 20);
        // Short zeros are written: a hole at the end would be none.
        if n >= 4096 && bytes[..n].iter().all(|b| *b == 0) {
            self.0.seek_relative(n as i64)?;
        } else {
            self.0.write_all(&bytes[..n])?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[test]
#[ignore = "takes checksums of 4 GiB twice"]
fn entries_beyond_four_gigabytes() {
    let temp = tempfile::NamedTempFile::new().unwrap();
    let zeros = vec![0u8; (1 << 32) + 5];
    let mut zip = ZipWriter::new(Sparse(temp.reopen().unwrap()));
    zip.add("x/data/0", &zeros).unwrap();
    zip.add("x/data/1", b"behind it").unwrap();
    zip.finish().unwrap();
    let bytes = crate::formats::container::Bytes::open(temp.path()).unwrap();
    let zip = Zip::new(&bytes, temp.path()).unwrap();
    assert_eq!(zip.size("x/data/0"), Some(zeros.len()));
    assert_eq!(&*zip.read("x/data/1").unwrap(), b"behind it");
    assert_eq!(zip.read("x/data/0").unwrap().len(), zeros.len());
}
