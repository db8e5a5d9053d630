//! One contract for every variant: its sparse gradient is that of a dense formulation in f64, by candle's autograd and by finite
//! differences; settings that cannot be are refused; what it saves encodes as it did.

use candle_core::{DType, Device, Tensor, Var};

use super::*;
use crate::codes::Codes;
use crate::dictionary::{Activation, Dictionary};
use crate::kernels::{dense_gradient, encode_batch_topk, encode_threshold, encode_topk, measure, overwrite, Coder};
use crate::rng::Rng;

const N: usize = 40;
const D: usize = 12;
const M: usize = 30;

fn random(name: &str, shape: &[usize], scale: f64) -> Tensor {
    let mut rng = Rng::stream(7, name, 0);
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| (rng.normal() * scale) as f32).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// Every variant, small, with the settings that have a gradient of their own switched on.
fn variants() -> Vec<SaeConfig> {
    let off = AuxKConfig { coef: 0.0, ..AuxKConfig::default() };
    let configs = vec![
        SaeConfig::TopK(TopKConfig { d_sae: M, k: 4, aux_k: off.clone() }),
        SaeConfig::BatchTopK(BatchTopKConfig { d_sae: M, k: 4, aux_k: off.clone(), ..Default::default() }),
        SaeConfig::Matryoshka(MatryoshkaConfig {
            d_sae: M,
            k: 4,
            prefixes: vec![5, 11, M],
            empty_prefix: 0.7,
            aux_k: off.clone(),
            ..Default::default()
        }),
        SaeConfig::Matryoshka(MatryoshkaConfig {
            d_sae: M,
            k: 3,
            inside: Inside::Topk,
            prefixes: vec![4, 9, M],
            aux_k: off.clone(),
            ..Default::default()
        }),
        SaeConfig::Msae(MsaeConfig {
            d_sae: M,
            levels: vec![2, 5, 9],
            weighting: Weighting::Reverse,
            softcap: 1.5,
            aux_k: off.clone(),
            k: 2,
        }),
        SaeConfig::JumpRelu(JumpReluConfig {
            d_sae: M,
            target_l0: 3.0,
            bandwidth: 0.5,
            initial_threshold: 0.4,
            warmup_tokens: 1,
            aux_k: off.clone(),
            ..Default::default()
        }),
        SaeConfig::JumpRelu(JumpReluConfig {
            d_sae: M,
            target_l0: 0.0,
            l0_coef: 0.3,
            bandwidth: 0.5,
            initial_threshold: 0.4,
            warmup_tokens: 1,
            aux_k: off,
        }),
        SaeConfig::Gated(GatedConfig { d_sae: M, l1: 0.4, warmup_tokens: 1, ..Default::default() }),
        SaeConfig::Relu(ReluConfig { d_sae: M, l1: 0.4, warmup_tokens: 1, ..Default::default() }),
    ];
    configs.into_iter().map(|c| c.resolve(D, 1000).unwrap()).collect()
}

/// A learner whose parameters are all of a size that matters.
fn learner(config: &SaeConfig) -> Box<dyn Learner> {
    let learner = build(config, &random("rows", &[200, D], 1.0), 3).unwrap();
    let put = |tensor: &Tensor, name: &str, scale: f64, shift: f64| {
        let values = (random(name, tensor.dims(), scale) + shift).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        overwrite(tensor, &values).unwrap();
    };
    let Coder { w_enc, b_enc, w_dec, b_dec } = learner.coder();
    put(w_enc, "w_enc", 0.4, 0.0);
    put(b_enc, "b_enc", 0.2, 0.0);
    put(w_dec, "w_dec", 0.4, 0.0);
    put(b_dec, "b_dec", 0.3, 0.0);
    for (name, tensor) in learner.extras() {
        put(tensor, name, 0.2, if name == "log_threshold" { -0.9 } else { 0.0 });
    }
    learner
}

fn wide(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

fn mask(codes: &Codes) -> Tensor {
    wide(&codes.to_dense().unwrap()).ne(0f64).unwrap().to_dtype(DType::F64).unwrap()
}

/// The loss in f64 on dense tensors, with selections fixed at `at`. `p`: w_enc, b_enc, w_dec, b_dec, then the extras.
fn dense_loss(config: &SaeConfig, at: &dyn Learner, p: &[Tensor], x: &Tensor) -> Tensor {
    let (n, d) = x.dims2().unwrap();
    let (w_enc, b_enc, w_dec, b_dec) = (&p[0], &p[1], &p[2], &p[3]);
    let xw = wide(x);
    let pi = xw.broadcast_sub(b_dec).unwrap().matmul(&w_enc.t().unwrap()).unwrap();
    let a = pi.broadcast_add(b_enc).unwrap();
    let per_element = 1.0 / (n * d) as f64;
    let off_by = |z: &Tensor, w_dec: &Tensor, b_dec: &Tensor| {
        let y = z.matmul(w_dec).unwrap().broadcast_add(b_dec).unwrap();
        ((y - &xw).unwrap().sqr().unwrap().sum_all().unwrap() * per_element).unwrap()
    };
    let mse = |z: &Tensor| off_by(z, w_dec, b_dec);
    let c = at.coder();
    let xc = x.broadcast_sub(&c.b_dec).unwrap();
    let top = |k: usize| encode_topk(&xc, &c.w_enc, &c.b_enc, k, None).unwrap().to_codes(M).unwrap();
    let batch = |k: usize| encode_batch_topk(&xc, &c.w_enc, &c.b_enc, n * k, None).unwrap().0;
    let above = |t: Tensor| encode_threshold(&xc, &c.w_enc, &c.b_enc, &t).unwrap();
    let zero = || Tensor::zeros(M, DType::F32, &Device::Cpu).unwrap();
    match config {
        SaeConfig::TopK(s) => mse(&(&a * mask(&top(s.k))).unwrap()),
        SaeConfig::BatchTopK(s) => mse(&(&a * mask(&batch(s.k))).unwrap()),
        SaeConfig::Matryoshka(s) => {
            let codes = if s.inside == Inside::Topk { top(s.k) } else { batch(s.k) };
            let z = (&a * mask(&codes)).unwrap();
            let mut total = (off_by(&(&z * 0.0).unwrap(), w_dec, b_dec) * s.empty_prefix).unwrap();
            for &m in &s.prefixes {
                let first: Vec<f64> = (0..M).map(|j| f64::from(u8::from(j < m))).collect();
                let z = z.broadcast_mul(&Tensor::new(first, &Device::Cpu).unwrap()).unwrap();
                total = (total + mse(&z)).unwrap();
            }
            (total / (s.prefixes.len() as f64 + s.empty_prefix)).unwrap()
        }
        SaeConfig::Msae(s) => {
            let capped = if s.softcap > 0.0 { ((&a / s.softcap).unwrap().tanh().unwrap() * s.softcap).unwrap() } else { a };
            let h = s.levels.len();
            let weight = |l: usize| if s.weighting == Weighting::Uniform { 1.0 } else { (h - l) as f64 };
            let all: f64 = (0..h).map(weight).sum();
            let one = |l: usize| (mse(&(&capped * mask(&top(s.levels[l]))).unwrap()) * (weight(l) / all)).unwrap();
            (1..h).fold(one(0), |sum, l| (sum + one(l)).unwrap())
        }
        SaeConfig::Mp(_) => unreachable!("the pursuit has tests of its own"),
        SaeConfig::Relu(s) => {
            let z = (&a * mask(&above(zero()))).unwrap();
            let norms = w_dec.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
            let penalty = z.broadcast_mul(&norms).unwrap().sum_all().unwrap();
            (mse(&z) + (penalty * (s.l1 * per_element)).unwrap()).unwrap()
        }
        SaeConfig::Gated(s) => {
            let (r, b_mag) = (&p[4], &p[5]);
            let open = mask(&above(zero()));
            let v = (&a * &open).unwrap();
            let z = pi.broadcast_mul(&r.exp().unwrap()).unwrap().broadcast_add(b_mag).unwrap();
            let positive = z.gt(0f64).unwrap().to_dtype(DType::F64).unwrap().detach();
            let z = ((z * positive).unwrap() * &open).unwrap();
            let penalty = (v.sum_all().unwrap() * (s.l1 * per_element)).unwrap();
            ((mse(&z) + penalty).unwrap() + off_by(&v, &w_dec.detach(), &b_dec.detach())).unwrap()
        }
        SaeConfig::JumpRelu(s) => {
            let theta = p[4].exp().unwrap();
            let still = theta.detach();
            let fixed = a.detach();
            let distance = fixed.broadcast_sub(&still).unwrap();
            let active = distance.gt(0f64).unwrap().to_dtype(DType::F64).unwrap();
            let band = distance.abs().unwrap().lt(s.bandwidth / 2.0).unwrap().to_dtype(DType::F64).unwrap();
            // The straight-through derivatives, as something that autograd can differentiate: zero in value.
            let moved = ((&theta - &still).unwrap() / -s.bandwidth).unwrap();
            let in_band = band.broadcast_mul(&moved).unwrap();
            let z = ((&a * &active).unwrap() + in_band.broadcast_mul(&still).unwrap()).unwrap();
            let l0 = ((&active + &in_band).unwrap().sum_all().unwrap() / n as f64).unwrap();
            let penalty = if s.target_l0 > 0.0 {
                (((l0 / s.target_l0).unwrap() - 1.0).unwrap().sqr().unwrap() * s.l0_coef).unwrap()
            } else {
                (l0 * (s.l0_coef / d as f64)).unwrap()
            };
            (mse(&z) + penalty).unwrap()
        }
    }
}

fn value(t: &Tensor) -> f64 {
    t.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
}

#[test]
fn gradients_are_those_of_the_dense_formulation() {
    let x = random("x", &[N, D], 1.0);
    for config in variants() {
        let mut learner = learner(&config);
        let step = learner.step(&x).unwrap();
        let c = learner.coder();
        let Gradient::Sparse(grad) = &step.grad else { panic!("the pursuit has tests of its own") };
        let sparse = dense_gradient(c, grad, false);
        let measured = measure(c, grad, false).unwrap();
        let extras = learner.extra_grads(&measured.sums).unwrap();
        let mut got: Vec<Tensor> = [&sparse.w_enc, &sparse.b_enc, &sparse.w_dec, &sparse.b_dec].map(wide).to_vec();
        got.extend(extras.iter().map(|g| wide(&Tensor::new(g.as_slice(), &Device::Cpu).unwrap())));

        let mut parameters: Vec<Tensor> = [&c.w_enc, &c.b_enc, &c.w_dec, &c.b_dec].map(wide).to_vec();
        parameters.extend(learner.extras().iter().map(|(_, t)| wide(t)));
        let vars: Vec<Var> = parameters.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let loss = dense_loss(&config, learner.as_ref(), &tensors, &x);
        assert!((value(&loss) / step.loss - 1.0).abs() < 1e-5, "{}: loss {} and {}", config.label(), step.loss, value(&loss));
        let autograd = loss.backward().unwrap();
        let mut all = 0.0;
        for (i, (got, var)) in got.iter().zip(&vars).enumerate() {
            let want = autograd.get(var).cloned().unwrap_or_else(|| var.zeros_like().unwrap());
            let norm = |t: &Tensor| value(&t.sqr().unwrap().sum_all().unwrap()).sqrt();
            let error = norm(&(got - &want).unwrap()) / norm(&want).max(1e-12);
            assert!(error < 1e-5, "{}: parameter {i} is off by {error:.1e} of its norm", config.label());
            all += norm(got).powi(2);
            // The surrogate of a threshold is no derivative of the loss.
            if i == 4 && matches!(config, SaeConfig::JumpRelu(_)) {
                continue;
            }
            // Central differences along a few coordinates, selections fixed.
            let flat = want.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let largest = flat.iter().fold(0f64, |m, v| m.max(v.abs()));
            for at in (0..flat.len()).step_by(flat.len() / 5 + 1) {
                let moved = |by: f64| {
                    let mut p = parameters.clone();
                    let mut values = p[i].flatten_all().unwrap().to_vec1::<f64>().unwrap();
                    values[at] += by;
                    p[i] = Tensor::from_vec(values, parameters[i].dims(), &Device::Cpu).unwrap();
                    value(&dense_loss(&config, learner.as_ref(), &p, &x))
                };
                // Stopped gradients are not seen by differences: the gate's own reconstruction holds w_dec and b_dec still.
                if matches!(config, SaeConfig::Gated(_)) && (i == 2 || i == 3) {
                    continue;
                }
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((slope - flat[at]).abs() <= 1e-5 * largest.max(1e-3), "{}: {i}[{at}] {slope} {}", config.label(), flat[at]);
            }
        }
        let of_extras: f64 = extras.iter().flatten().map(|g| f64::from(*g).powi(2)).sum();
        assert!(((measured.sq_norm + of_extras) / all - 1.0).abs() < 1e-5, "{}: norm", config.label());
    }
}

#[test]
fn dictionaries_encode_as_the_learner_and_come_back_from_disk() {
    let x = random("x", &[N, D], 1.0);
    for config in variants() {
        let mut learner = learner(&config);
        let step = learner.step(&x).unwrap();
        let scale = 2.5;
        let dictionary = learner.finish(scale, &x).unwrap();
        let raw = (&x / scale).unwrap();
        let (codes, xhat) = dictionary.reconstruct(&raw).unwrap();
        // Row by row the same codes, where training has no rule for the batch.
        let by_row =
            !matches!(&config, SaeConfig::BatchTopK(_)) && !matches!(&config, SaeConfig::Matryoshka(c) if c.inside == Inside::BatchTopk);
        if by_row {
            let sq: f64 = ((xhat * scale).unwrap() - &x).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().into();
            assert!((sq / step.sq_error - 1.0).abs() < 1e-4, "{}: {sq} {}", config.label(), step.sq_error);
            assert_eq!(codes.indices.len() as u64, step.n_active, "{}", config.label());
        } else {
            // The threshold was calibrated on these very rows; in other units the one at the cut may round to the other side.
            assert!(codes.indices.len().abs_diff(N * 4) <= 1, "{}: {}", config.label(), codes.indices.len());
        }
        let dir = tempfile::tempdir().unwrap();
        dictionary.save(dir.path()).unwrap();
        let back = Dictionary::load(dir.path()).unwrap();
        assert_eq!(back.encode(&raw).unwrap(), codes, "{}", config.label());
        if let SaeConfig::Relu(_) = config {
            assert!(dictionary.atom_norms().unwrap().iter().all(|n| (n - 1.0).abs() < 1e-5));
        }
        let prefix = dictionary.prefix(9).unwrap();
        assert_eq!(prefix.d_sae(), 9);
        if let Activation::Threshold { .. } | Activation::JumpRelu | Activation::Gated | Activation::Relu = dictionary.activation {
            let (few, all) = (prefix.encode(&raw).unwrap(), dictionary.encode(&raw).unwrap());
            let first: Vec<u32> = all.indices.iter().copied().filter(|&j| j < 9).collect();
            assert_eq!(few.indices, first, "{}", config.label());
        }
    }
}

#[test]
fn a_dictionary_is_a_start_for_every_learner() {
    let x = random("x", &[N, D], 1.0);
    let scale = 2.5;
    let raw = (&x / scale).unwrap();
    let mp = SaeConfig::Mp(MpConfig { d_sae: M, k: 3, ..Default::default() }).resolve(D, 1000).unwrap();
    let all: Vec<SaeConfig> = variants().into_iter().chain([mp]).collect();
    for config in &all {
        let made = match config {
            SaeConfig::Mp(_) => build(config, &x, 3).unwrap(),
            _ => learner(config),
        };
        let mut dictionary = made.finish(scale, &x).unwrap();
        let nearest = match dictionary.activation {
            Activation::TopK { .. } => "topk",
            Activation::Threshold { .. } => "batch-topk",
            _ => config.arch(),
        };
        assert_eq!(SaeConfig::like(&dictionary).arch(), nearest);
        dictionary.provenance.config = serde_json::json!({ "sae": config });
        assert_eq!(SaeConfig::like(&dictionary).resolve(D, 1000).unwrap().label(), config.label());
        let start = Start::new(&dictionary, scale).unwrap();
        // The same function again, where unit atoms do not change which latents win.
        let mut again = build(config, &x, 9).unwrap();
        again.adopt(&start, &x).unwrap();
        if let Activation::JumpRelu | Activation::Gated | Activation::Relu | Activation::Pursuit { .. } = dictionary.activation {
            let (codes, xhat) = dictionary.reconstruct(&raw).unwrap();
            let (theirs, back) = again.finish(scale, &x).unwrap().reconstruct(&raw).unwrap();
            assert_eq!(latents(&codes), latents(&theirs), "{}", config.label());
            let off: f32 = (xhat - back).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
            assert!(off < 1e-5, "{}: {off}", config.label());
        }
        for other in &all {
            let mut other = build(other, &x, 5).unwrap();
            other.adopt(&start, &x).unwrap();
            assert!(other.step(&x).unwrap().loss.is_finite());
        }
        let narrow = SaeConfig::TopK(TopKConfig { d_sae: M - 1, k: 2, ..Default::default() }).resolve(D, 1000).unwrap();
        let message = build(&narrow, &x, 5).unwrap().adopt(&start, &x).unwrap_err().to_string();
        assert!(message.contains(&format!("set it to {M}")), "{message}");
    }
}

/// The latents of each row, in order of their number: values, hence their order, scale with the atoms' norms.
fn latents(codes: &Codes) -> Vec<Vec<u32>> {
    let sorted = |r: usize| {
        let mut row = codes.row(r).0.to_vec();
        row.sort_unstable();
        row
    };
    (0..codes.n_rows()).map(sorted).collect()
}

#[test]
fn a_start_reads_what_the_dictionary_reads() {
    // Atoms of other norms, an uncentred encoder, an input transform: folded, the function stays.
    let rows = |name: &str, shape: &[usize], scale: f64| random(name, shape, scale);
    let coder = Coder {
        w_enc: rows("w_enc", &[M, D], 0.4),
        b_enc: rows("b_enc", &[M], 0.2),
        w_dec: rows("w_dec", &[M, D], 0.7),
        b_dec: rows("b_dec", &[D], 0.3),
    };
    let mut dictionary = Dictionary::new(coder, Activation::Threshold { threshold: 0.5 }, false, Default::default()).unwrap();
    let shift = rows("shift", &[D], 1.0);
    dictionary.input_transform = Some(crate::dictionary::InputTransform { shift, scale: 1.7 });
    let (x, scale) = (rows("x", &[N, D], 1.0), 2.5);
    let start = Start::new(&dictionary, scale).unwrap();
    let mut learner =
        build(&SaeConfig::JumpRelu(JumpReluConfig { d_sae: M, target_l0: 3.0, ..Default::default() }).resolve(D, 10).unwrap(), &x, 0)
            .unwrap();
    learner.adopt(&start, &x).unwrap();
    let (want_codes, want) = dictionary.reconstruct(&x).unwrap();
    let (codes, got) = learner.finish(scale, &x).unwrap().reconstruct(&x).unwrap();
    assert_eq!(latents(&codes), latents(&want_codes));
    let off: f32 = (got - want).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
    assert!(off < 1e-4, "{off}");
}

#[test]
fn a_batch_keeps_its_largest_whatever_was_guessed() {
    let (x, w, b) = (random("x", &[N, D], 1.0), random("w", &[M, D], 0.4), random("b", &[M], 0.1));
    let dense: Vec<Vec<f32>> = crate::kernels::pre_activations(&x, &w, &b).unwrap().to_vec2().unwrap();
    let mut all: Vec<(f32, usize, usize)> =
        dense.iter().enumerate().flat_map(|(r, row)| row.iter().enumerate().map(move |(j, &v)| (v, r, j))).collect();
    all.retain(|e| e.0 > 0.0);
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    for total in [1, 37, 160, all.len() - 1, all.len(), all.len() + 50] {
        let mut want: Vec<(usize, usize)> = all.iter().take(total).map(|e| (e.1, e.2)).collect();
        want.sort_unstable();
        for guess in [None, Some(0.0), Some(1e-3), Some(0.5), Some(1e9)] {
            let (codes, smallest) = encode_batch_topk(&x, &w, &b, total, guess).unwrap();
            let mut got: Vec<(usize, usize)> =
                (0..N).flat_map(|r| codes.row(r).0.iter().map(move |&j| (r, j as usize)).collect::<Vec<_>>()).collect();
            got.sort_unstable();
            assert_eq!(got, want, "{total} with {guess:?}");
            assert!((smallest - all[total.min(all.len()) - 1].0).abs() < 1e-5);
        }
    }
    // Ties: the earlier row, then the lower latent.
    let ones = Tensor::ones((4, 1), DType::F32, &Device::Cpu).unwrap();
    let (codes, _) = encode_batch_topk(
        &ones,
        &Tensor::ones((3, 1), DType::F32, &Device::Cpu).unwrap(),
        &b.narrow(0, 0, 3).unwrap().zeros_like().unwrap(),
        5,
        None,
    )
    .unwrap();
    assert_eq!((codes.row(0).0, codes.row(1).0, codes.row(2).0.len()), (&[0u32, 1, 2][..], &[0u32, 1][..], 0));
}

#[test]
fn impossible_settings_are_refused_with_the_remedy() {
    let matryoshka = |prefixes: &[usize], k: usize| {
        SaeConfig::Matryoshka(MatryoshkaConfig { d_sae: 64, k, prefixes: prefixes.to_vec(), ..Default::default() })
    };
    let cases = [
        (matryoshka(&[16, 16, 64], 4), "increasing order"),
        (matryoshka(&[16, 8, 64], 4), "increasing order"),
        (matryoshka(&[8, 16], 4), "end the list with 64"),
        (matryoshka(&[8, 64], 9), "smaller k or a wider first prefix"),
        (
            SaeConfig::Matryoshka(MatryoshkaConfig { d_sae: 64, k: 1, fractions: vec![0.0, 1.0], ..Default::default() }),
            "increasing numbers",
        ),
        (SaeConfig::JumpRelu(JumpReluConfig { d_sae: 64, target_l0: 65.0, ..Default::default() }), "at most 64"),
        (SaeConfig::JumpRelu(JumpReluConfig { d_sae: 64, bandwidth: 0.0, ..Default::default() }), "above 0"),
        (SaeConfig::Msae(MsaeConfig { d_sae: 64, levels: vec![4, 4], ..Default::default() }), "increasing order"),
        (SaeConfig::Msae(MsaeConfig { d_sae: 64, levels: vec![4, 100], ..Default::default() }), "between 1 and 64"),
        (SaeConfig::BatchTopK(BatchTopKConfig { d_sae: 64, k: 65, ..Default::default() }), "between 1 and 64"),
        (SaeConfig::BatchTopK(BatchTopKConfig { d_sae: 64, k: 2, mean_k: 2.5, ..Default::default() }), "next whole number"),
        (SaeConfig::Relu(ReluConfig { d_sae: 64, l1: -1.0, ..Default::default() }), "0 turns the penalty off"),
        (SaeConfig::Gated(GatedConfig { d_sae: 64, l1: f64::NAN, ..Default::default() }), "0 turns the penalty off"),
    ];
    for (config, says) in cases {
        let message = config.resolve(8, 1000).unwrap_err().to_string();
        assert!(message.contains("help:") && message.contains(says), "{message}");
    }
    for arch in ARCHS {
        let config = SaeConfig::of_arch(arch).unwrap();
        // Its page explains every key.
        let page = std::fs::read_to_string(format!("{}/docs/variant-{arch}.md", env!("CARGO_MANIFEST_DIR"))).unwrap();
        for key in serde_json::to_value(&config).unwrap().as_object().unwrap().keys().filter(|k| *k != "arch") {
            assert!(page.contains(&format!("`{key}")), "docs/variant-{arch}.md says nothing of `{key}`");
        }
        assert_eq!(config.arch(), *arch);
        assert!(config.resolve(64, 1000).is_ok(), "{arch}");
    }
}
