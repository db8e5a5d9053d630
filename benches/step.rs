//! The training step: its stages, and whole steps by learner. Ids end in the size.
//!
//! The stages of a TopK step in order: `encode` (its own bench), decode, columns, measure, update; what is left of `step/topk` is the
//! normalising of rows, the loss, and the gradient at the reconstruction.
#![allow(missing_docs)] // criterion's macros make a public function

mod support;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion};
use lapidary::bench::Stage;
use lapidary::kernels::{encode_topk, sparse_decode, Adam, Columns, Gradient, Moments, SparseGrad, Term};
use support::{group, wall, SIZES};

fn stages(c: &mut Criterion) {
    for size in SIZES {
        let x = size.rows();
        let bench = size.bench("topk", 0.0);
        let coder = bench.learner().coder();
        let xc = x.broadcast_sub(&coder.b_dec).expect("same width");
        let selection = encode_topk(&xc, &coder.w_enc, &coder.b_enc, size.k, None).expect("it encodes");
        let xhat = sparse_decode(&selection, &coder.w_dec, Some(&coder.b_dec)).expect("it decodes");
        let columns = Columns::new(&selection, size.m).expect("it sorts");
        let residual = ((xhat - &x).expect("same shape") * (2.0 / (size.n * size.d) as f64)).expect("a factor");
        let b_dec = residual.sum(0).expect("a sum");
        let grad = SparseGrad { x: xc, terms: vec![Term::codes(columns, residual)], b_dec, centred: true, pull: None };
        let grad = Gradient::from(grad);
        let measured = grad.measure(coder, true).expect("it measures");
        let moments = Moments::zeros(coder).expect("memory");
        // So small a rate that the thousandth iteration sees the first one's atoms.
        let adam = Adam { lr: 1e-12, beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 1, grad_scale: 1.0 };

        let mut g = group(c, "stage", size);
        let id = |name: &str| BenchmarkId::new(name, size.id());
        g.bench_function(id("decode"), |b| b.iter(|| sparse_decode(&selection, &coder.w_dec, Some(&coder.b_dec))));
        g.bench_function(id("columns"), |b| b.iter(|| Columns::new(&selection, size.m)));
        g.bench_function(id("measure"), |b| b.iter(|| grad.measure(coder, true)));
        g.bench_function(id("update"), |b| b.iter(|| grad.update(coder, &moments, &measured, &adam, true)));
    }
}

fn steps(c: &mut Criterion) {
    let of = [("topk", "topk", Stage::Step), ("topk_auxk25", "topk", Stage::AuxK)];
    let nested = [("batch_topk", "batch-topk", Stage::Step), ("matryoshka", "matryoshka", Stage::Step)];
    for size in SIZES {
        // At L two learners say enough.
        let nested = nested.into_iter().filter(|_| size.m <= 8192);
        for (name, arch, stage) in of.into_iter().chain(nested) {
            let mut bench = size.bench(arch, 0.25);
            group(c, "step", size).bench_function(BenchmarkId::new(name, size.id()), |b| {
                b.iter_custom(|iterations| wall(iterations, || bench.sample(stage).expect("a finite step")))
            });
        }
    }
}

criterion_group!(benches, stages, steps);
criterion_main!(benches);
