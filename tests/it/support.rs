//! What several integration tests need: where optional material lies, and how to say that it does not.

use std::path::{Path, PathBuf};

use lapidary::shard::Batch;

/// The folder of real models and data beside the checkout, if it is there. `LAPIDARY_SHARED` overrides where to look.
#[allow(dead_code)] // each test module uses what it needs
pub fn shared_data() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("LAPIDARY_SHARED") {
        return Some(PathBuf::from(dir)).filter(|d| d.is_dir());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    ["../shared/data", "../../shared/data"].iter().map(|p| root.join(p)).find(|d| d.is_dir())
}

/// Says that a test did not run, and why.
#[allow(dead_code)]
pub fn skip(why: &str) {
    eprintln!("skipped: {why}");
}

/// Batches one after the other.
pub fn concat(batches: impl Iterator<Item = Batch>) -> Batch {
    batches.fold(Batch::default(), |mut all, b| {
        all.n += b.n;
        all.x.extend(b.x);
        all.doc_id.extend(b.doc_id);
        all.position.extend(b.position);
        all.token_id.extend(b.token_id);
        all
    })
}
