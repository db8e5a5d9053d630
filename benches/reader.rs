//! Reading shards back: rows in file order (`scan`), and shuffled batches as training takes them (`shuffled`), by stored type and width.
//!
//! The rate to beat is that of the training step at the same width (`benches/step.rs`): a reader above it never holds training up, for it
//! reads ahead on a thread of its own. Files are in the page cache.
#![allow(missing_docs)] // criterion's macros make a public function

use std::time::Duration;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, SamplingMode, Throughput};
use lapidary::artefact::Mode;
use lapidary::corpus::planted::{PlantedConfig, ZipfConfig};
use lapidary::harvest::{ingest, IngestConfig, PlantedSource};
use lapidary::progress::Silent;
use lapidary::shard::{Dtype, Shards, ShuffleConfig, Split};

const ROWS: u64 = 32_768;
const BATCH: usize = 4096;

fn shards(dir: &std::path::Path, width: usize, dtype: Dtype) -> Shards {
    let zipf = ZipfConfig { d_in: width, n_features: 256, decorrelate_rounds: 0, ..Default::default() };
    let planted = Some(PlantedSource { spec: PlantedConfig::Zipf(zipf), seed: 0, rows: ROWS });
    let config = IngestConfig { hook: "x".into(), dtype, held_out: 0.0, planted, shard_rows: 16_384, ..Default::default() };
    ingest(&config, dir, Mode::Fresh, &Silent).expect("the temporary folder is writable");
    Shards::open(dir).expect("just written")
}

fn reader(c: &mut Criterion) {
    for width in [64, 512, 768, 2304] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let shards = shards(&dir.path().join("shards"), width, dtype);
            let id = |kind: &str| BenchmarkId::new(format!("{kind}/{}", dtype.name()), format!("d{width}"));
            let mut g = c.benchmark_group("reader");
            g.sampling_mode(SamplingMode::Flat).sample_size(10);
            g.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
            g.throughput(Throughput::Elements(ROWS));
            g.bench_function(id("scan"), |b| {
                b.iter(|| {
                    let scan = shards.scan("x", Some(Split::Train)).expect("a reader");
                    scan.map(|batch| batch.expect("whole shards").n).sum::<usize>()
                })
            });
            // A window is a quarter of the rows: while one is handed out, the next is read.
            let shuffle = ShuffleConfig { seed: 0, buffer_bytes: ROWS as usize / 4 * width * 4 };
            let mut shuffled = shards.shuffled("x", Some(Split::Train), &shuffle).expect("a reader");
            g.bench_function(id("shuffled"), |b| {
                b.iter(|| (0..ROWS as usize / BATCH).map(|_| shuffled.next_batch(BATCH).expect("whole shards").n).sum::<usize>())
            });
        }
    }
}

criterion_group!(benches, reader);
criterion_main!(benches);
