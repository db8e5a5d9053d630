#![no_main]

use std::path::Path;

use lapidary::formats::container::pickle;
use lapidary::formats::container::pt::PtFile;
use lapidary::formats::container::zip::ZipWriter;

fn look(bytes: &[u8]) {
    let Ok(pt) = PtFile::new(bytes, Path::new("x.pt")) else { return };
    for (name, value) in pt.entries().unwrap_or_default() {
        if let Ok(array) = pt.array(name, value) {
            assert!(array.bytes().len() <= bytes.len().max(1 << 24));
        }
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    look(data);
    // A sound archive around a pickle, so that its checksums do not keep the fuzzer out: what is tried is the interpretation of views.
    if pickle::read(data).is_ok() {
        let mut zip = ZipWriter::new(Vec::new());
        let entries: [(&str, &[u8]); 2] = [("a/data.pkl", data), ("a/data/0", &[0; 64])];
        let written = entries.iter().try_for_each(|(name, data)| zip.add(name, data)).and_then(|()| zip.finish());
        look(&written.expect("memory takes all that is written"));
    }
});
