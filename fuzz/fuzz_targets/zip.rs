#![no_main]

use std::path::Path;

use lapidary::formats::container::zip::Zip;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(zip) = Zip::new(data, Path::new("x.zip")) {
        for name in zip.names() {
            if let Ok(bytes) = zip.read(name) {
                assert_eq!(Some(bytes.len()), zip.size(name));
            }
        }
    }
});
