#![no_main]

use std::path::Path;

use lapidary::formats::tensors::Tensors;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = Tensors::safetensors_of("test", Path::new("x.safetensors"), data);
});
