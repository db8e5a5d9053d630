//! The fused kernels against the slow, obvious forms; the sparse gradient against candle's autograd on a dense formulation.

use candle_core::{Device, Tensor, Var, D};
use proptest::prelude::*;

use super::*;
use crate::codes::PAD;
use crate::rng::Rng;

fn random(rng: &mut Rng, shape: &[usize], scale: f64) -> Tensor {
    let n = shape.iter().product();
    let data: Vec<f32> = (0..n).map(|_| (rng.normal() * scale) as f32).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// Sorting every pre-activation: the definition.
fn oracle(pre: &[Vec<f32>], k: usize) -> (Vec<u32>, Vec<f32>) {
    let (mut indices, mut values) = (Vec::new(), Vec::new());
    for row in pre {
        let mut order: Vec<usize> = (0..row.len()).filter(|&j| row[j] > 0.0).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        order.truncate(k);
        for slot in 0..k {
            indices.push(order.get(slot).map_or(PAD, |&j| j as u32));
            values.push(order.get(slot).map_or(0.0, |&j| row[j]));
        }
    }
    (indices, values)
}

/// Pre-activations as given: x is the identity's rows times one, so that `x W^T` copies columns of W exactly.
fn select(pre: &[Vec<f32>], k: usize) -> Selection {
    let (n, m) = (pre.len(), pre[0].len());
    let mut w = vec![0f32; m * n];
    for (r, row) in pre.iter().enumerate() {
        for (j, &v) in row.iter().enumerate() {
            w[j * n + r] = v;
        }
    }
    let w = Tensor::from_vec(w, (m, n), &Device::Cpu).unwrap();
    let x = Tensor::eye(n, candle_core::DType::F32, &Device::Cpu).unwrap();
    encode_topk(&x, &w, &Tensor::zeros(m, candle_core::DType::F32, &Device::Cpu).unwrap(), k, None).unwrap()
}

fn rows(s: &Selection) -> (Vec<u32>, Vec<f32>) {
    (s.indices.flatten_all().unwrap().to_vec1().unwrap(), s.values.flatten_all().unwrap().to_vec1().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Few distinct values, so that ties, zeros and short rows are common; k from 1 to beyond the positives.
    #[test]
    fn selection_is_the_sorted_prefix(seed in 0u64..1000, n in 1usize..70, m in 1usize..90, k in 1usize..90) {
        let k = k.min(m);
        let mut rng = Rng::stream(seed, "test", 0);
        let pre: Vec<Vec<f32>> = (0..n).map(|_| (0..m).map(|_| (rng.below(9) as f32 - 5.0) * 0.5).collect()).collect();
        prop_assert_eq!(rows(&select(&pre, k)), oracle(&pre, k));
    }
}

#[test]
fn selection_over_many_panels_matches_the_oracle() {
    let mut rng = Rng::stream(1, "test", 0);
    let (n, d, m, k) = (131, 48, 2500, 17);
    let (x, w, b) = (random(&mut rng, &[n, d], 1.0), random(&mut rng, &[m, d], 0.2), random(&mut rng, &[m], 0.1));
    let pre = pre_activations(&x, &w, &b).unwrap().to_vec2::<f32>().unwrap();
    let (indices, values) = rows(&encode_topk(&x, &w, &b, k, None).unwrap());
    let (want_indices, want_values) = oracle(&pre, k);
    assert_eq!(indices, want_indices);
    assert!(values.iter().zip(&want_values).all(|(a, b)| (a - b).abs() < 1e-4));
    // A threshold below the smallest selected value keeps at least those.
    let t = Tensor::full(0f32, m, &Device::Cpu).unwrap();
    let relu = encode_threshold(&x, &w, &b, &t).unwrap();
    let positive: usize = pre.iter().flatten().filter(|&&v| v > 0.0).count();
    assert_eq!(relu.indices.len(), positive);
}

/// The definition: float64 sums, rounded once, `[n][d_sae]`.
fn scores(x: &Tensor, w: &Tensor, b: &Tensor) -> Vec<Vec<f32>> {
    let read = |t: &Tensor| t.to_vec2::<f32>().unwrap();
    let (x, w, b) = (read(x), read(w), b.to_vec1::<f32>().unwrap());
    let score = |x: &[f32], j: usize| {
        let sum: f64 = x.iter().zip(&w[j]).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
        (sum + f64::from(b[j])) as f32
    };
    x.iter().map(|x| (0..w.len()).map(|j| score(x, j)).collect()).collect()
}

/// Every screen selects by the definition: the k largest, and those above a threshold.
fn exact(x: &Tensor, w: &Tensor, b: &Tensor, k: usize) {
    let scores = scores(x, w, b);
    let want = oracle(&scores, k);
    // Somewhere among the selected, so that equality occurs.
    let t = want.1.iter().copied().filter(|v| v.is_finite() && *v > 0.0).fold(f32::MAX, f32::min);
    let m = scores[0].len();
    let above: Vec<Vec<u32>> = scores.iter().map(|row| (0..m as u32).filter(|&j| row[j as usize] > t).collect()).collect();
    for screen in [Screen::Off, Screen::Bf16, Screen::Int8, Screen::Auto] {
        set_screen(screen);
        let got = rows(&encode_topk(x, w, b, k, None).unwrap());
        assert!(got.0 == want.0, "{screen:?} selects others for k {k}");
        // Sums in another order may round differently in f64, and then, very rarely, in f32.
        let off = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && (a.to_bits() as i32 - b.to_bits() as i32).abs() > 1;
        assert!(!got.1.iter().zip(&want.1).any(off), "{screen:?} has other values");
        let codes = encode_threshold(x, w, b, &Tensor::full(t, m, &Device::Cpu).unwrap()).unwrap();
        for (r, want) in above.iter().enumerate() {
            let mut got = codes.row(r).0.to_vec();
            got.sort_unstable();
            assert!(got == *want, "{screen:?}, row {r}: other latents above {t}");
        }
    }
    set_screen(Screen::Auto);
}

#[test]
fn every_screen_selects_what_float64_selects() {
    let mut rng = Rng::stream(5, "test", 0);
    for (case, (n, d, m, k)) in
        [(70, 33, 2100, 9), (3, 1, 50, 4), (65, 64, 1021, 1), (130, 130, 1500, 40), (5, 17, 30, 30)].into_iter().enumerate()
    {
        let (x, w, b) = (random(&mut rng, &[n, d], 1.0), random(&mut rng, &[m, d], 0.3), random(&mut rng, &[m], 0.05));
        exact(&x, &w, &b, k);
        // Massive coordinates, which ruin coarse screens.
        let mut data: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        data.iter_mut().step_by(d.max(2) - 1).for_each(|v| *v *= 300.0);
        exact(&Tensor::from_vec(data, (n, d), &Device::Cpu).unwrap(), &w, &b, k);
        // Latents that differ by less than f32 sums are off, exact ties among them.
        let mut data: Vec<f32> = w.flatten_all().unwrap().to_vec1().unwrap();
        let first = data[..d].to_vec();
        for row in data.chunks_exact_mut(d).step_by(2) {
            row.copy_from_slice(&first);
            if rng.below(3) > 0 {
                let c = rng.below(d as u64) as usize;
                row[c] = if rng.below(2) == 0 { row[c].next_up() } else { row[c].next_down() };
            }
        }
        exact(&x, &Tensor::from_vec(data, (m, d), &Device::Cpu).unwrap(), &(&b * 0.0).unwrap(), k);
        // Very small and very large numbers.
        for scale in [1e-22, 1e-30, 1e17] {
            exact(&(&x * scale).unwrap(), &(&w * if case % 2 == 0 { scale.min(1.0) } else { 1.0 }).unwrap(), &(&b * 0.0).unwrap(), k);
        }
    }
}

#[test]
fn rows_beyond_the_bound_are_scored_whole() {
    let mut rng = Rng::stream(6, "test", 0);
    let (n, d, m, k) = (70, 8, 1100, 3);
    let (x, w, b) = (random(&mut rng, &[n, d], 1.0), random(&mut rng, &[m, d], 0.3), random(&mut rng, &[m], 0.05));
    let put = |t: &Tensor, at: usize, v: f32| {
        let mut data: Vec<f32> = t.flatten_all().unwrap().to_vec1().unwrap();
        data[at] = v;
        Tensor::from_vec(data, t.dims(), &Device::Cpu).unwrap()
    };
    for v in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3e38, -3e38] {
        exact(&put(&x, 5 * d + 2, v), &w, &b, k);
        exact(&x, &put(&w, 1050 * d + 2, v), &b, k);
        exact(&x, &w, &put(&b, 1050, v), k);
        exact(&put(&x, 5 * d + 2, v), &put(&w, 7 * d + 2, v), &b, k);
    }
    exact(&(&x * 0.0).unwrap(), &w, &b, k);
    exact(&x, &(&w * 0.0).unwrap(), &b, k);
}

#[test]
fn special_values_follow_the_rules() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    // Rows times the identity would spread NaN (0 * NaN), so these go through a single row.
    let s = |row: &[f32], k| rows(&select(&[row.to_vec()], k));
    assert_eq!(s(&[1.0, inf, 2.0], 2), (vec![1, 2], vec![inf, 2.0]));
    assert_eq!(s(&[nan, 1.0, nan], 2), (vec![1, PAD], vec![1.0, 0.0]));
    assert_eq!(s(&[-0.0, 0.0, -1.0, f32::NEG_INFINITY], 2), (vec![PAD, PAD], vec![0.0, 0.0]));
    assert_eq!(s(&[3.0, 3.0, 3.0], 2), (vec![0, 1], vec![3.0, 3.0]));
    assert_eq!(s(&[1e-40, 2e-40], 1).0, vec![1], "denormals are ordered");
}

#[test]
fn rank_changes_who_wins_and_not_the_values() {
    let x = Tensor::new(&[[1f32]], &Device::Cpu).unwrap();
    let w = Tensor::new(&[[2f32], [3.0]], &Device::Cpu).unwrap();
    let b = Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap();
    let rank = Tensor::new(&[2f32, 1.0], &Device::Cpu).unwrap();
    let s = encode_topk(&x, &w, &b, 1, Some(&rank)).unwrap();
    assert_eq!(rows(&s), (vec![0], vec![2.0]));
}

#[test]
fn decode_equals_the_dense_product() {
    let mut rng = Rng::stream(2, "test", 0);
    let (n, d, m, k) = (33, 20, 70, 5);
    let (x, w, b, bd) =
        (random(&mut rng, &[n, d], 1.0), random(&mut rng, &[m, d], 0.3), random(&mut rng, &[m], 0.1), random(&mut rng, &[d], 1.0));
    let s = encode_topk(&x, &w, &b, k, None).unwrap();
    let codes = s.to_codes(m).unwrap();
    let dense = codes.to_dense().unwrap().matmul(&w).unwrap().broadcast_add(&bd).unwrap();
    for y in [sparse_decode(&s, &w, Some(&bd)).unwrap(), decode_codes(&codes, &w, Some(&bd)).unwrap()] {
        let diff = (y - &dense).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(diff < 1e-5, "{diff}");
    }
    assert!(decode_codes(&codes, &w.narrow(0, 0, 10).unwrap(), None).is_err());
}

/// One step of the sparse path against autograd on the dense form, for all four parameters.
#[test]
fn sparse_gradient_equals_autograd() {
    let mut rng = Rng::stream(3, "test", 0);
    let (n, d, m, k) = (40, 12, 30, 4);
    let x = random(&mut rng, &[n, d], 1.0);
    let vars: Vec<Var> =
        [vec![m, d], vec![m], vec![m, d], vec![d]].iter().map(|shape| Var::from_tensor(&random(&mut rng, shape, 0.4)).unwrap()).collect();
    let coder = Coder {
        w_enc: vars[0].as_tensor().detach(),
        b_enc: vars[1].as_tensor().detach(),
        w_dec: vars[2].as_tensor().detach(),
        b_dec: vars[3].as_tensor().detach(),
    };
    let xc = x.broadcast_sub(&coder.b_dec).unwrap();
    let s = encode_topk(&xc, &coder.w_enc, &coder.b_enc, k, None).unwrap();
    let y = sparse_decode(&s, &coder.w_dec, Some(&coder.b_dec)).unwrap();
    let g = ((&y - &x).unwrap() * (2.0 / n as f64)).unwrap();
    let grad = SparseGrad {
        x: xc,
        b_dec: g.sum(0).unwrap(),
        terms: vec![Term::codes(Columns::new(&s, m).unwrap(), g)],
        centred: true,
        pull: None,
    };
    let measured = measure(&coder, &grad, false).unwrap();

    // The dense form: a mask of the selected entries, everything else by autograd.
    let mask = s.to_codes(m).unwrap().to_dense().unwrap().gt(0f64).unwrap().to_dtype(candle_core::DType::F32).unwrap();
    let a = x.broadcast_sub(&vars[3]).unwrap().matmul(&vars[0].t().unwrap()).unwrap().broadcast_add(&vars[1]).unwrap();
    let y = (a * mask).unwrap().matmul(&vars[2]).unwrap().broadcast_add(&vars[3]).unwrap();
    let loss = ((y - &x).unwrap().sqr().unwrap().sum_all().unwrap() / n as f64).unwrap();
    let autograd = loss.backward().unwrap();
    let want: Vec<Tensor> = vars.iter().map(|v| autograd.get(v).unwrap().clone()).collect();
    let sq: f64 = want.iter().map(|t| f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())).sum();
    assert!((measured.sq_norm / sq - 1.0).abs() < 1e-5, "{} {sq}", measured.sq_norm);

    // Plain SGD read off Adam: with beta1 = 0 and the second moment's root dwarfed by eps, the step is lr / eps * gradient.
    let before: Vec<Tensor> = [&coder.w_enc, &coder.b_enc, &coder.w_dec, &coder.b_dec].iter().map(|t| t.copy().unwrap()).collect();
    let moments = Moments::zeros(&coder).unwrap();
    let eps = 1e6;
    let adam = Adam { lr: eps, beta1: 0.0, beta2: 0.999, eps, step: 1, grad_scale: 1.0 };
    latent_update(&coder, &moments, &grad, &measured, &adam, false).unwrap();
    let after = [&coder.w_enc, &coder.b_enc, &coder.w_dec, &coder.b_dec];
    for i in 0..4 {
        let got = (&before[i] - after[i]).unwrap();
        let diff = (&got - &want[i]).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        let size = want[i].abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(diff < 2e-5 * size.max(1.0), "parameter {i}: {diff} of {size}");
    }
}

#[test]
fn adam_takes_the_textbook_step_and_rows_stay_unit() {
    let mut rng = Rng::stream(4, "test", 0);
    let (n, d, m) = (8, 6, 10);
    let w_dec = random(&mut rng, &[m, d], 1.0);
    let w_dec = w_dec.broadcast_div(&w_dec.sqr().unwrap().sum_keepdim(D::Minus1).unwrap().sqrt().unwrap()).unwrap();
    let coder =
        Coder { w_enc: random(&mut rng, &[m, d], 1.0), b_enc: random(&mut rng, &[m], 0.1), w_dec, b_dec: random(&mut rng, &[d], 0.1) };
    let x = random(&mut rng, &[n, d], 1.0);
    let s = encode_topk(&x, &coder.w_enc, &coder.b_enc, 3, None).unwrap();
    let g = random(&mut rng, &[n, d], 1.0);
    let grad =
        SparseGrad { x, b_dec: g.sum(0).unwrap(), terms: vec![Term::codes(Columns::new(&s, m).unwrap(), g)], centred: false, pull: None };
    let measured = measure(&coder, &grad, true).unwrap();
    let moments = Moments::zeros(&coder).unwrap();
    let before = coder.b_dec.to_vec1::<f32>().unwrap();
    let adam = Adam { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 1, grad_scale: 1.0 };
    latent_update(&coder, &moments, &grad, &measured, &adam, true).unwrap();
    // The first Adam step is lr * sign(gradient), up to eps.
    let (after, sign) = (coder.b_dec.to_vec1::<f32>().unwrap(), grad.b_dec.to_vec1::<f32>().unwrap());
    for i in 0..d {
        assert!((before[i] - after[i] - 0.01 * sign[i].signum()).abs() < 1e-5);
    }
    for norm in coder.w_dec.sqr().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap() {
        assert!((norm - 1.0).abs() < 1e-5);
    }
}

#[test]
fn calls_of_any_length_choose_a_screen() {
    let mut rng = Rng::stream(8, "test", 0);
    let (w, b) = (random(&mut rng, &[203, 12], 0.3), random(&mut rng, &[203], 0.05));
    let x = random(&mut rng, &[700, 12], 1.0);
    let threshold = Tensor::full(0.5f32, 203, &Device::Cpu).unwrap();
    let all = encode_topk(&x, &w, &b, 7, None).unwrap().to_codes(203).unwrap();
    // Around the length from which screens are tried; lengths that the trials use up; none at all.
    for n in [0, 1, 255, 256, 257, 260, 300, 320, 321, 700] {
        let part = x.narrow(0, 0, n).unwrap().contiguous().unwrap();
        // The first calls of a shape try, the later ones remember.
        for _ in 0..4 {
            let codes = encode_topk(&part, &w, &b, 7, None).unwrap().to_codes(203).unwrap();
            assert_eq!(codes.n_rows(), n);
            (0..n).for_each(|r| assert_eq!(codes.row(r), all.row(r)));
            assert_eq!(encode_threshold(&part, &w, &b, &threshold).unwrap().n_rows(), n);
        }
    }
}

mod dead;
