//! Steps that stay on a device against the CPU's, learner by learner, in the simulator. Without it (feature `simulator`) there is nothing to
//! compare, and a line says so.

use candle_core::{Device, Tensor};

use crate::kernels::{Coder, DeviceEncode, OnGpu, Precision, ResidentConfig};
use crate::rng::Rng;
use crate::sae::{self, AuxKConfig, BatchTopKConfig, Inside, Learner, MatryoshkaConfig, SaeConfig, TopKConfig};
use crate::train::{Optimizer, TrainConfig};

const D: usize = 24;
const M: usize = 72;
const N: usize = 48;
const STEPS: u64 = 5;
/// The first latents count as dead, and seldom fire: for AuxK.
const DEAD: usize = 24;

fn learners() -> Vec<SaeConfig> {
    let aux_k = AuxKConfig { coef: 0.1, k: 7, dead_after_tokens: N as u64 * 2 };
    let without = AuxKConfig { coef: 0.0, ..aux_k.clone() };
    let nested = MatryoshkaConfig { d_sae: M, k: 4, prefixes: vec![30, 50, M], aux_k: aux_k.clone(), ..Default::default() };
    vec![
        SaeConfig::TopK(TopKConfig { d_sae: M, k: 4, aux_k: aux_k.clone() }),
        SaeConfig::TopK(TopKConfig { d_sae: M, k: 3, aux_k: without }),
        SaeConfig::BatchTopK(BatchTopKConfig { d_sae: M, k: 4, aux_k, ..Default::default() }),
        SaeConfig::Matryoshka(MatryoshkaConfig { inside: Inside::Topk, ..nested.clone() }),
        SaeConfig::Matryoshka(nested.clone()),
        SaeConfig::Matryoshka(MatryoshkaConfig { prefixes: Vec::new(), sampled: 3, ..nested }),
    ]
}

fn rows(seed: u64) -> Tensor {
    let mut rng = Rng::stream(seed, "on_gpu", 0);
    // A dense direction, so that some latent fires on every row.
    let data: Vec<f32> = (0..N * D).map(|i| rng.normal() as f32 + if i % D == 3 { 2.0 } else { 0.0 }).collect();
    Tensor::from_vec(data, (N, D), &Device::Cpu).unwrap()
}

/// A learner whose first latents are held back.
fn learner(config: &SaeConfig) -> Box<dyn Learner> {
    let mut learner = sae::build(&config.resolve(D, 10_000).unwrap(), &rows(100), 1).unwrap();
    let bias: Vec<f32> = (0..M).map(|j| if j < DEAD { -1.0 } else { 0.05 }).collect();
    learner.body_mut().silence.tokens[..DEAD].fill(1 << 40);
    learner.body_mut().coder.b_enc = Tensor::from_vec(bias, M, &Device::Cpu).unwrap();
    learner
}

fn settings() -> TrainConfig {
    TrainConfig { batch: N, clip_norm: 0.5, ..Default::default() }
}

fn rate(step: u64) -> f64 {
    3e-3 / step as f64
}

fn parameters(coder: &Coder) -> Vec<Vec<f32>> {
    [&coder.w_enc, &coder.b_enc, &coder.w_dec, &coder.b_dec].map(|t| t.flatten_all().unwrap().to_vec1().unwrap()).to_vec()
}

/// What is left of a run: parameters, silence, and per step loss, norm, codes, auxiliary loss and parts.
struct Run {
    parameters: Vec<Vec<f32>>,
    silence: Vec<u64>,
    losses: Vec<f64>,
    norms: Vec<f64>,
    active: Vec<u64>,
    aux: Vec<Option<f64>>,
    parts: Vec<Vec<f64>>,
}

fn on_cpu(config: &SaeConfig) -> Run {
    let mut learner = learner(config);
    let mut optimizer = Optimizer::new(&settings(), learner.as_ref()).unwrap();
    let mut run = Run { parameters: vec![], silence: vec![], losses: vec![], norms: vec![], active: vec![], aux: vec![], parts: vec![] };
    for step in 1..=STEPS {
        let made = learner.step(&rows(step)).unwrap();
        run.norms.push(optimizer.apply(learner.as_ref(), &made.grad, rate(step)).unwrap());
        run.losses.push(made.loss);
        run.active.push(made.n_active);
        run.aux.push(made.aux_loss);
        run.parts.push(made.parts.iter().filter(|p| !p.name.starts_with("dead")).map(|p| p.value).collect());
    }
    (run.parameters, run.silence) = (parameters(learner.coder()), learner.silence().tokens.clone());
    run
}

fn on_device(config: &SaeConfig, precision: Precision, encode: DeviceEncode, schedule: u32) -> Option<Run> {
    let mut learner = learner(config);
    let mut optimizer = Optimizer::new(&settings(), learner.as_ref()).unwrap();
    let needs = learner.on_device().unwrap();
    let config = ResidentConfig {
        batch: N,
        most_prefixes: needs.prefixes,
        k: needs.k,
        aux_k: needs.aux_k,
        dead_after_tokens: learner.silence().dead_after_tokens,
        unit_norm: learner.unit_norm(),
        clip_norm: settings().clip_norm,
        precision,
        encode,
    };
    let silence = learner.silence().tokens.clone();
    let mut state = OnGpu::simulated(schedule, learner.coder(), &optimizer.moments, &silence, config).unwrap()?;
    let mut run = Run { parameters: vec![], silence, losses: vec![], norms: vec![], active: vec![], aux: vec![], parts: vec![] };
    for step in 1..=STEPS {
        let plan = learner.plan().unwrap();
        state.step(&rows(step), &plan, &optimizer.next(rate(step))).unwrap();
        // Some read late.
        if step % 2 == 0 || step == STEPS {
            for told in state.read().unwrap() {
                let figures = learner.told(&told, N);
                run.losses.push(figures.loss);
                run.norms.push(told.grad_norm);
                run.active.push(figures.n_active);
                run.aux.push(figures.aux_loss);
                run.parts.push(figures.parts.iter().filter(|p| !p.name.starts_with("dead")).map(|p| p.value).collect());
            }
        }
    }
    state.write_back(learner.coder(), &optimizer.moments).unwrap();
    state.read_silence(&mut run.silence).unwrap();
    run.parameters = parameters(learner.coder());
    Some(run)
}

fn near(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * b.abs().max(1e-3)
}

#[test]
fn steps_on_a_device_are_those_of_the_cpu() {
    for config in learners() {
        let want = on_cpu(&config);
        assert!(want.aux.iter().any(Option::is_some) == !matches!(&config, SaeConfig::TopK(c) if c.aux_k.coef == 0.0), "AuxK must be met");
        for precision in [Precision::Certified, Precision::F32] {
            let Some(got) = on_device(&config, precision, DeviceEncode::Auto, 2) else {
                println!("skipped: this build has no simulator (feature `simulator`)");
                return;
            };
            let who = format!("{} {precision:?}", config.label());
            assert_eq!(got.active, want.active, "{who}");
            assert_eq!(got.silence, want.silence, "{who}");
            for step in 0..STEPS as usize {
                assert!(near(got.losses[step], want.losses[step], 2e-5), "{who} step {step}: {} {}", got.losses[step], want.losses[step]);
                assert!(near(got.norms[step], want.norms[step], 2e-4), "{who} step {step}: {} {}", got.norms[step], want.norms[step]);
                let aux = [got.aux[step], want.aux[step]].map(|a| a.unwrap_or(-1.0));
                assert!(near(aux[0], aux[1], 1e-4), "{who} step {step}: {aux:?}");
                assert_eq!(got.parts[step].len(), want.parts[step].len());
                assert!(got.parts[step].iter().zip(&want.parts[step]).all(|(a, b)| near(*a, *b, 2e-5)), "{who} step {step}");
            }
            for (i, (got, want)) in got.parameters.iter().zip(&want.parameters).enumerate() {
                // Adam's first steps divide by what may be nearly nothing: a few elements move by a rate either way.
                let off = got.iter().zip(want).filter(|(a, b)| (*a - *b).abs() > 2e-5).count();
                assert!(off * 200 <= got.len(), "{who}: {off} of {} elements of parameter {i} differ", got.len());
                assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 2e-2), "{who}: parameter {i}");
            }
        }
    }
}

#[test]
fn bf16_steps_come_near_and_are_the_same_bytes_in_any_order() {
    for config in learners() {
        let want = on_cpu(&config);
        for encode in [DeviceEncode::Chunked, DeviceEncode::Hopper, DeviceEncode::Ampere] {
            // Only top-k has fused kernels.
            let fused = matches!(&config, SaeConfig::TopK(_)) || matches!(&config, SaeConfig::Matryoshka(c) if c.inside == Inside::Topk);
            if encode != DeviceEncode::Chunked && !fused {
                continue;
            }
            let who = format!("{} {encode:?}", config.label());
            let Some(first) = on_device(&config, Precision::Bf16, encode, 0) else {
                println!("skipped: this build has no simulator (feature `simulator`)");
                return;
            };
            for (got, want) in first.losses.iter().zip(&want.losses) {
                assert!(near(*got, *want, 2e-2), "{who}: {got} {want}");
            }
            for schedule in 1..4 {
                let again = on_device(&config, Precision::Bf16, encode, schedule).unwrap();
                assert!(again.losses == first.losses && again.norms == first.norms && again.silence == first.silence, "{who}");
                let same =
                    again.parameters.iter().flatten().zip(first.parameters.iter().flatten()).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{who} under {schedule}");
            }
        }
    }
}
