//! What the benches share: sizes, rows, learners, and how long criterion looks.
#![allow(dead_code)] // each bench uses a part

use std::time::Duration;

use candle_core::{Device, Tensor};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use lapidary::bench::{BenchRows, Sample, StepBench, StepConfig};
use lapidary::sae::SaeConfig;
use lapidary::train::TrainConfig;

/// Rows, width, latents, codes per row.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub n: usize,
    pub d: usize,
    pub m: usize,
    pub k: usize,
}

/// A small one, and the two that other libraries are compared at (`benches/peers/steps.py`): S and L.
pub const SIZES: [Size; 3] =
    [Size { n: 512, d: 128, m: 2048, k: 16 }, Size { n: 2048, d: 512, m: 8192, k: 32 }, Size { n: 4096, d: 768, m: 24576, k: 32 }];
/// For pursuits, whose steps are many.
pub const PURSUIT_SIZES: [Size; 2] = [Size { n: 128, d: 128, m: 2048, k: 8 }, Size { n: 1024, d: 512, m: 8192, k: 32 }];

impl Size {
    /// `n2048_d512_m8192_k32`: the end of every id.
    pub fn id(self) -> String {
        format!("n{}_d{}_m{}_k{}", self.n, self.d, self.m, self.k)
    }

    /// Does one iteration take long enough for ten of them to be plenty?
    pub fn is_large(self) -> bool {
        self.n * self.d * self.m > 1 << 30
    }

    /// Rows `[n, d]`, f32, as a learner sees them.
    pub fn rows(self) -> Tensor {
        let rows = BenchRows::seeded(self.d, self.n, 0, 0).expect("the widths are sensible");
        Tensor::from_vec(rows.train, (self.n, self.d), &Device::Cpu).expect("as many values as the shape says")
    }

    /// A learner and its rows, ready to be timed; `aux_dead` of the latents are dead in `Stage::AuxK`.
    pub fn bench(self, arch: &str, aux_dead: f64) -> StepBench {
        let mut sae = SaeConfig::of_arch(arch).expect("a known learner");
        match &mut sae {
            SaeConfig::TopK(c) => (c.d_sae, c.k) = (self.m, self.k),
            SaeConfig::BatchTopK(c) => (c.d_sae, c.k) = (self.m, self.k),
            SaeConfig::Matryoshka(c) => (c.d_sae, c.k) = (self.m, self.k),
            SaeConfig::Mp(c) => (c.d_sae, c.k) = (self.m, self.k),
            other => panic!("no bench sets up {}", other.arch()),
        }
        let train = TrainConfig { batch: self.n, lr: 1e-3, n_tokens: 1 << 30, ..Default::default() };
        let config = StepConfig { sae, train, steps: 1, warmup: 0, aux_dead, latents_die: false };
        let rows = BenchRows::seeded(self.d, 3 * self.n, 0, 0).expect("the widths are sensible");
        StepBench::new(config, rows).expect("the sizes are sensible")
    }
}

/// A group whose samples are counted in rows, short for large sizes.
pub fn group<'c>(c: &'c mut Criterion, name: &str, size: Size) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(size.n as u64)).sampling_mode(SamplingMode::Flat);
    group.sample_size(if size.is_large() { 10 } else { 20 });
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    group
}

/// The wall time of `iterations` samples: what lies between them is not counted.
pub fn wall(iterations: u64, mut sample: impl FnMut() -> Sample) -> Duration {
    (0..iterations).map(|_| Duration::from_secs_f64(sample().wall_ms * 1e-3)).sum()
}
