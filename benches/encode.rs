//! Encoding: every selection with every screen, and what it is compared with. Ids end in the size.
//!
//! `cargo bench --bench encode -- topk` for a part; `RAYON_NUM_THREADS=1` for one thread.
#![allow(missing_docs)] // criterion's macros make a public function

mod support;

use candle_core::{DType, Tensor};
use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion};
use lapidary::bench::{dense_topk, sorted_topk};
use lapidary::kernels::{encode_batch_topk, encode_threshold, encode_topk, set_screen, Coder, Screen};
use support::{group, Size, SIZES};

/// The screens that this build knows.
fn screens() -> impl Iterator<Item = (&'static str, Screen)> {
    let of = |name: &'static str| Some((name, serde_json::from_value(name.into()).ok()?));
    ["off", "bf16", "int8", "auto"].into_iter().filter_map(of)
}

/// The n k-th largest pre-activation of the batch: above it are k codes per row, in the mean.
fn cut(x: &Tensor, coder: &Coder, size: Size) -> f32 {
    encode_batch_topk(x, &coder.w_enc, &coder.b_enc, size.n * size.k, None).expect("it encodes").1
}

fn encode(c: &mut Criterion) {
    for size in SIZES {
        let x = size.rows();
        let bench = size.bench("topk", 0.0);
        let coder = bench.learner().coder();
        let (w, b) = (&coder.w_enc, &coder.b_enc);
        let xc = x.broadcast_sub(&coder.b_dec).expect("same width");
        for (name, screen) in screens() {
            set_screen(screen);
            group(c, "encode/topk", size)
                .bench_function(BenchmarkId::new(name, size.id()), |bench| bench.iter(|| encode_topk(&xc, w, b, size.k, None)));
        }
        set_screen(Screen::Auto);
        let smallest = cut(&xc, coder, size);
        let threshold = Tensor::full(smallest, size.m, x.device()).and_then(|t| t.to_dtype(DType::F32)).expect("a vector");
        let guess = Some(0.9 * smallest);
        let mut g = group(c, "encode", size);
        let id = |name: &str| BenchmarkId::new(name, size.id());
        g.bench_function(id("threshold/auto"), |bench| bench.iter(|| encode_threshold(&xc, w, b, &threshold)));
        g.bench_function(id("batch_topk/auto"), |bench| bench.iter(|| encode_batch_topk(&xc, w, b, size.n * size.k, guess)));
        g.bench_function(id("baseline/dense_quickselect"), |bench| bench.iter(|| dense_topk(&xc, w, b, size.k)));
        // At L a single sort of all pre-activations takes seconds.
        if size.m <= 8192 {
            g.bench_function(id("baseline/matmul_arg_sort"), |bench| bench.iter(|| sorted_topk(&xc, w, b, size.k)));
        }
    }
}

criterion_group!(benches, encode);
criterion_main!(benches);
