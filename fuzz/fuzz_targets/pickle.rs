#![no_main]

use lapidary::formats::container::pickle;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(value) = pickle::read(data) {
        // What was read can be written, and says the same (byte strings become lists, and a NaN is no equal).
        if let Ok(again) = pickle::read(&pickle::write(&value)) {
            assert_eq!(value.kind() == "a byte string", again.kind() != value.kind());
        }
    }
});
