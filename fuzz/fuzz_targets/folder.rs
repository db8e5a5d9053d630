#![no_main]

use lapidary::formats::{self, ReadOptions};

/// Names of configuration and weights.
const LAYOUTS: [(&str, &str); 7] = [
    ("cfg.json", "sae_weights.safetensors"),
    ("cfg.json", "sae.safetensors"),
    ("config.json", "ae.pt"),
    ("config.json", "sae_weights.safetensors"),
    ("config.json", "params.safetensors"),
    ("sae.json", "sae.pt"),
    ("none.json", "params.npz"),
];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // Which layout, how much of the rest is the configuration, both.
    let [which, low, high, rest @ ..] = data else { return };
    let (config, weights) = LAYOUTS[usize::from(*which) % LAYOUTS.len()];
    let at = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let dir = tempfile::tempdir().expect("a folder for temporary files");
    std::fs::write(dir.path().join(config), &rest[..at]).expect("a writable folder");
    std::fs::write(dir.path().join(weights), &rest[at..]).expect("a writable folder");
    for found in formats::find(dir.path(), None).unwrap_or_default() {
        let _ = found.format.read(&found.path, &ReadOptions::default());
    }
});
