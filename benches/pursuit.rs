//! Matching pursuit: with and without the atoms' Gram matrix, and the whole training step. Ids end in the size; k is the number of steps.
#![allow(missing_docs)] // criterion's macros make a public function

mod support;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion};
use lapidary::bench::Stage;
use lapidary::kernels::{fill_gram, new_gram, pursuit, Pick, PursuitRule};
use support::{group, wall, PURSUIT_SIZES};

fn pursuits(c: &mut Criterion) {
    for size in PURSUIT_SIZES {
        let x = size.rows();
        let mut bench = size.bench("mp", 0.25);
        {
            let coder = bench.learner().coder();
            let xc = x.broadcast_sub(&coder.b_dec).expect("same width");
            let rule = PursuitRule { steps: size.k, pick: Pick::NonNeg, tolerance: 0.0, relative: false, stop_on_repeat: false };
            let gram = new_gram(&coder.w_dec).expect("memory").expect("the sizes are small enough");
            let mut g = group(c, "pursuit", size);
            let id = |name: &str| BenchmarkId::new(name, size.id());
            g.bench_function(id("fill_gram"), |b| b.iter(|| fill_gram(&coder.w_dec, &gram)));
            g.bench_function(id("gram"), |b| b.iter(|| pursuit(&xc, &coder.w_dec, Some(&gram), &rule)));
            g.bench_function(id("no_gram"), |b| b.iter(|| pursuit(&xc, &coder.w_dec, None, &rule)));
        }
        group(c, "step", size).bench_function(BenchmarkId::new("mp", size.id()), |b| {
            b.iter_custom(|iterations| wall(iterations, || bench.sample(Stage::Step).expect("a finite step")))
        });
    }
}

criterion_group!(benches, pursuits);
criterion_main!(benches);
