#![no_main]

use std::path::Path;

use lapidary::formats::container::{npy, npz};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let path = Path::new("x.npy");
    if let Ok(array) = npy::read(data, path) {
        let again = npy::read(&npy::write(&array), path).expect("what was written is read");
        assert_eq!(array, again);
    }
    if let Ok(npz) = npz::NpzFile::new(data, path) {
        for name in npz.names() {
            let _ = npz.array(name);
        }
    }
});
