//! Pursuits against the definition in f64, their identities, their stop rules; the gradient against finite differences and autograd.

use candle_core::{DType, Var};
use proptest::prelude::*;

use super::*;
use crate::kernels::Coder;
use crate::rng::Rng;

const RULE: PursuitRule = PursuitRule { steps: 8, pick: Pick::NonNeg, tolerance: 0.0, relative: false, stop_on_repeat: false };
const PICKS: [Pick; 3] = [Pick::NonNeg, Pick::Max, Pick::Signed];

fn tensor(data: &[f64], shape: (usize, usize)) -> Tensor {
    Tensor::from_vec(data.iter().map(|&v| v as f32).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

/// f64 values that f32 holds exactly.
fn random(rng: &mut Rng, n: usize) -> Vec<f64> {
    (0..n).map(|_| f64::from(rng.normal() as f32)).collect()
}

fn unit(rng: &mut Rng, m: usize, d: usize) -> Vec<f64> {
    let mut data = random(rng, m * d);
    for row in data.chunks_exact_mut(d) {
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter_mut().for_each(|v| *v = f64::from((*v / norm) as f32));
    }
    data
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// One row by the definition: steps, and what is left.
fn oracle(x: &[f64], atoms: &[f64], rule: &PursuitRule) -> (Vec<(u32, f64)>, Vec<f64>) {
    let d = x.len();
    let mut r = x.to_vec();
    let mut path: Vec<(u32, f64)> = Vec::new();
    let floor = f64::from(rule.tolerance) * if rule.relative { dot(x, x).sqrt() } else { 1.0 };
    while path.len() < rule.steps {
        let mut best: Option<(u32, f64)> = None;
        for (j, atom) in atoms.chunks_exact(d).enumerate() {
            let p = dot(&r, atom);
            let key = |v: f64| if rule.pick == Pick::Signed { v.abs() } else { v };
            let enough = rule.pick == Pick::Max || key(p) > 0.0;
            if enough && !p.is_nan() && best.is_none_or(|(_, b)| key(p) > key(b)) {
                best = Some((j as u32, p));
            }
        }
        let Some((j, v)) = best.filter(|(_, v)| *v != 0.0) else { break };
        r.iter_mut().zip(&atoms[j as usize * d..]).for_each(|(r, a)| *r -= v * a);
        let repeated = path.iter().any(|(i, _)| *i == j);
        path.push((j, v));
        if (rule.stop_on_repeat && repeated) || (rule.tolerance > 0.0 && dot(&r, &r).sqrt() < floor) {
            break;
        }
    }
    (path, r)
}

fn steps_of(path: &PursuitPath) -> Vec<Vec<(u32, f32)>> {
    let (indices, values) = (path.indices.to_vec2::<u32>().unwrap(), path.values.to_vec2::<f32>().unwrap());
    indices.into_iter().zip(values).map(|(i, v)| i.into_iter().zip(v).filter(|(j, _)| *j != PAD).collect()).collect()
}

/// With and without a Gram matrix.
fn both(x: &Tensor, atoms: &Tensor, rule: &PursuitRule) -> [PursuitPath; 2] {
    let gram = new_gram(atoms).unwrap().unwrap();
    fill_gram(atoms, &gram).unwrap();
    [pursuit(x, atoms, Some(&gram), rule).unwrap(), pursuit(x, atoms, None, rule).unwrap()]
}

#[test]
fn paths_are_those_of_the_definition() {
    let mut rng = Rng::stream(21, "test", 0);
    for (n, d, m, steps) in [(70, 24, 1100, 37), (3, 7, 20, 5), (1, 9, 530, 12)] {
        let (x, atoms) = (random(&mut rng, n * d), unit(&mut rng, m, d));
        for pick in PICKS {
            for (tolerance, relative, stop_on_repeat) in [(0.0, false, false), (0.8, false, false), (0.3, true, false), (0.0, false, true)]
            {
                let rule = PursuitRule { steps, pick, tolerance, relative, stop_on_repeat };
                for path in both(&tensor(&x, (n, d)), &tensor(&atoms, (m, d)), &rule) {
                    let mut swapped = 0;
                    for (r, got) in steps_of(&path).into_iter().enumerate() {
                        let (want, left) = oracle(&x[r * d..(r + 1) * d], &atoms, &rule);
                        let same = got.iter().zip(&want).take_while(|(g, w)| g.0 == w.0).count();
                        for (t, (g, w)) in got.iter().zip(&want).enumerate().take(same + 1) {
                            assert!((f64::from(g.1.abs()) - w.1.abs()).abs() < 2e-6, "{rule:?} row {r} step {t}: {g:?}, {w:?}");
                        }
                        if same < want.len() && got.len() > same {
                            // Two atoms equal to f32 (late steps work on a small residual): the values above say so.
                            swapped += 1;
                            continue;
                        }
                        assert_eq!(got.len(), want.len(), "{rule:?} row {r}");
                        let residual = path.residual.get(r).unwrap().to_vec1::<f32>().unwrap();
                        assert!(residual.iter().zip(&left).all(|(a, b)| (f64::from(*a) - b).abs() < 3e-6));
                    }
                    assert!(swapped <= n / 20, "{rule:?}: {swapped} of {n} rows");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Small integers: arithmetic is exact for the first steps, ties and zeros are common.
    #[test]
    fn ties_go_to_the_lowest_index(seed in 0u64..1000, n in 1usize..70, m in 1usize..40) {
        let mut rng = Rng::stream(seed, "test", 0);
        let d = 4;
        let x: Vec<f64> = (0..n * d).map(|_| rng.below(7) as f64 - 3.0).collect();
        // Signed axes, many of them the same, and zero atoms.
        let mut atoms = vec![0f64; m * d];
        for atom in atoms.chunks_exact_mut(d) {
            atom[rng.below(d as u64) as usize] = rng.below(3) as f64 - 1.0;
        }
        for pick in PICKS {
            let rule = PursuitRule { steps: 5, pick, ..RULE };
            for path in both(&tensor(&x, (n, d)), &tensor(&atoms, (m, d)), &rule) {
                for (r, got) in steps_of(&path).into_iter().enumerate() {
                    let want = oracle(&x[r * d..(r + 1) * d], &atoms, &rule).0;
                    let want: Vec<(u32, f32)> = want.into_iter().map(|(j, v)| (j, v as f32)).collect();
                    prop_assert_eq!(&got, &want);
                }
            }
        }
    }
}

#[test]
fn each_step_takes_its_square_and_leaves_an_orthogonal_rest() {
    let mut rng = Rng::stream(22, "test", 0);
    let (n, d, m) = (33, 32, 200);
    let (x, atoms) = (tensor(&random(&mut rng, n * d), (n, d)), tensor(&unit(&mut rng, m, d), (m, d)));
    let sq = |t: &Tensor| t.sqr().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
    let mut before = sq(&x);
    for steps in 1..=40 {
        for (g, path) in both(&x, &atoms, &PursuitRule { steps, pick: Pick::Signed, ..RULE }).into_iter().enumerate() {
            let after = sq(&path.residual);
            for (r, row) in steps_of(&path).iter().enumerate() {
                let (j, v) = *row.last().unwrap();
                let atom = atoms.get(j as usize).unwrap();
                let rest = (path.residual.get(r).unwrap() * atom).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(rest.abs() < 2e-6, "{rest}");
                assert!((before[r] - v * v - after[r]).abs() < 2e-5 * before[r].max(1e-2), "step {steps}: {} {v} {}", before[r], after[r]);
                assert!(after[r] <= before[r]);
            }
            if g == 1 {
                before = after;
            }
        }
    }
}

#[test]
fn rows_end_where_the_rules_say() {
    let atoms = tensor(&[1., 0., 0.6, 0.8], (2, 2));
    let ended = |x: &[f64], rule: PursuitRule| {
        let [a, b] = both(&tensor(x, (1, 2)), &atoms, &rule).map(|p| steps_of(&p).remove(0));
        assert_eq!(a, b);
        a
    };
    assert!(ended(&[-1.0, -1.0], RULE).is_empty(), "nothing positive");
    assert_eq!(ended(&[-1.0, -1.0], PursuitRule { steps: 1, pick: Pick::Max, ..RULE }), [(0, -1.0)]);
    assert_eq!(ended(&[-1.0, -1.0], PursuitRule { steps: 1, pick: Pick::Signed, ..RULE })[0].0, 1);
    assert!(ended(&[0.0, 0.0], PursuitRule { pick: Pick::Max, ..RULE }).is_empty());
    assert!(ended(&[f64::NAN, 1.0], PursuitRule { pick: Pick::Max, ..RULE }).is_empty(), "NaN is never selected");
    let again = PursuitRule { pick: Pick::Signed, ..RULE };
    let latents: Vec<u32> = ended(&[2.0, 1.0], PursuitRule { stop_on_repeat: true, ..again }).iter().map(|s| s.0).collect();
    assert_eq!(latents, [0, 1, 0], "the step that takes an atom again counts, and is the last");
    assert_eq!(ended(&[2.0, 1.0], PursuitRule { tolerance: 1e3, ..RULE }).len(), 1, "looked at after a step");
    assert_eq!(ended(&[2.0, 1.0], PursuitRule { tolerance: 0.5, relative: true, ..RULE }).len(), 1);

    let path = pursuit(&tensor(&[2.0, 1.0], (1, 2)), &atoms, None, &again).unwrap();
    assert_eq!(steps_of(&path)[0].len(), 8);
    let codes = path.to_codes(2, Some(&[1.0, 0.5])).unwrap();
    let total = |j: u32| steps_of(&path)[0].iter().filter(|s| s.0 == j).map(|s| s.1).sum::<f32>();
    let at = |j: u32| codes.values[codes.indices.iter().position(|&i| i == j).unwrap()];
    assert_eq!((codes.n_rows(), codes.indices.len(), at(0)), (1, 2, total(0)), "an atom that came again is one code");
    assert!((at(1) - 0.5 * total(1)).abs() < 1e-7);
    assert!(pursuit(&path.residual, &atoms, None, &PursuitRule { steps: 0, ..RULE }).is_err());
    assert!(pursuit(&atoms.t().unwrap().contiguous().unwrap().narrow(1, 0, 1).unwrap(), &atoms, None, &RULE).is_err());
}

#[test]
fn threads_change_no_bit() {
    let mut rng = Rng::stream(23, "test", 0);
    let (n, d, m) = (300, 16, 700);
    let (x, atoms) = (tensor(&random(&mut rng, n * d), (n, d)), tensor(&unit(&mut rng, m, d), (m, d)));
    let run = || {
        let mut all = both(&x, &atoms, &RULE).to_vec();
        all.push(orthogonal_pursuit(&x, &atoms, &RULE).unwrap());
        let (grad, coder) = gradient(&x, &atoms, &Tensor::zeros(d, DType::F32, &Device::Cpu).unwrap(), 20);
        let measured = Gradient::Pursuit(grad).measure(&coder, true).unwrap();
        let paths: Vec<_> = all.iter().map(|p| (steps_of(p), p.residual.to_vec2::<f32>().unwrap())).collect();
        (paths, measured.sq_norm.to_bits(), measured.b_dec.to_vec1::<f32>().unwrap())
    };
    let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run);
    assert!(on(1) == on(3));
}

/// Gradient of `sum |r_T|^2 / n` and of a second pursuit of that (constant) rest, by the tape.
fn gradient(x: &Tensor, atoms: &Tensor, b_dec: &Tensor, steps: usize) -> (PursuitGrad, Coder) {
    let (n, d) = x.dims2().unwrap();
    let path = pursuit(&x.broadcast_sub(b_dec).unwrap(), atoms, None, &PursuitRule { steps, pick: Pick::Signed, ..RULE }).unwrap();
    let grad = (&path.residual * (2.0 / n as f64)).unwrap();
    let (tape, input) = Tape::new(atoms, path, grad).unwrap();
    let empty = |shape: &[usize]| Tensor::from_vec(Vec::<f32>::new(), shape, &Device::Cpu).unwrap();
    let coder = Coder { w_enc: empty(&[0, d]), b_enc: empty(&[0]), w_dec: atoms.copy().unwrap(), b_dec: b_dec.copy().unwrap() };
    (PursuitGrad { tapes: vec![tape], shared: None, b_dec: input.sum(0).unwrap().neg().unwrap() }, coder)
}

/// The gradient as numbers, read off a step of plain SGD: with beta1 = 0 and a huge eps, Adam's step is lr / eps times the gradient.
fn read_off(grad: &Gradient, coder: &Coder) -> (Vec<Vec<f32>>, Vec<f32>, f64) {
    let before = (coder.w_dec.copy().unwrap(), coder.b_dec.copy().unwrap());
    let moments = Moments::zeros(coder).unwrap();
    let measured = grad.measure(coder, false).unwrap();
    let adam = Adam { lr: 1e6, beta1: 0.0, beta2: 0.999, eps: 1e6, step: 1, grad_scale: 1.0 };
    grad.update(coder, &moments, &measured, &adam, false).unwrap();
    let (w, b) = ((before.0 - &coder.w_dec).unwrap(), (before.1 - &coder.b_dec).unwrap());
    (w.to_vec2().unwrap(), b.to_vec1().unwrap(), measured.sq_norm)
}

#[test]
fn the_gradient_is_that_of_finite_differences() {
    let mut rng = Rng::stream(24, "test", 0);
    let (n, d, m, steps) = (6, 5, 9, 11);
    let (x, mut atoms, mut b) = (random(&mut rng, n * d), unit(&mut rng, m, d), random(&mut rng, d));
    let b_dec = Tensor::from_vec(b.iter().map(|&v| v as f32).collect::<Vec<_>>(), d, &Device::Cpu).unwrap();
    let (grad, coder) = gradient(&tensor(&x, (n, d)), &tensor(&atoms, (m, d)), &b_dec, steps);
    let repeats = steps_of(&grad.tapes[0].path).iter().any(|row| (1..row.len()).any(|t| row[..t].iter().any(|s| s.0 == row[t].0)));
    assert!(repeats, "some row takes an atom again");
    let (w, db, sq) = read_off(&Gradient::Pursuit(grad), &coder);
    let rule = PursuitRule { steps, pick: Pick::Signed, ..RULE };
    let loss = |atoms: &[f64], b: &[f64]| -> f64 {
        let row = |x: &[f64]| {
            let centred: Vec<f64> = x.iter().zip(b).map(|(x, b)| x - b).collect();
            let r = oracle(&centred, atoms, &rule).1;
            dot(&r, &r)
        };
        x.chunks_exact(d).map(row).sum::<f64>() / n as f64
    };
    let h = 1e-6;
    let mut want = Vec::new();
    for i in 0..m * d {
        let at = atoms[i];
        let mut side = |v: f64| {
            atoms[i] = v;
            loss(&atoms, &b)
        };
        let slope = (side(at + h) - side(at - h)) / (2.0 * h);
        atoms[i] = at;
        want.push(slope);
    }
    for i in 0..d {
        let at = b[i];
        let mut side = |v: f64| {
            b[i] = v;
            loss(&atoms, &b)
        };
        let slope = (side(at + h) - side(at - h)) / (2.0 * h);
        b[i] = at;
        want.push(slope);
    }
    let got: Vec<f64> = w.into_iter().flatten().chain(db).map(f64::from).collect();
    let norm = dot(&want, &want).sqrt();
    let error = got.iter().zip(&want).map(|(g, w)| (g - w).powi(2)).sum::<f64>().sqrt();
    assert!(error < 1e-5 * norm, "{error} of {norm}");
    assert!((sq.sqrt() / norm - 1.0).abs() < 1e-5);
}

/// Against autograd with the choice of atoms given as constant selection matrices; with atoms of any norm.
#[test]
fn the_gradient_is_that_of_autograd() {
    let mut rng = Rng::stream(25, "test", 0);
    let (n, d, m, steps) = (40, 12, 30, 6);
    let x = tensor(&random(&mut rng, n * d), (n, d));
    let atoms = (tensor(&unit(&mut rng, m, d), (m, d)) * 0.9).unwrap();
    let b_dec = Tensor::from_vec(random(&mut rng, d).iter().map(|&v| v as f32).collect::<Vec<_>>(), d, &Device::Cpu).unwrap();
    let (grad, coder) = gradient(&x, &atoms, &b_dec, steps);
    let indices = grad.tapes[0].path.indices.to_vec2::<u32>().unwrap();
    let (w, db, sq) = read_off(&Gradient::Pursuit(grad), &coder);

    let (vw, vb) = (Var::from_tensor(&atoms).unwrap(), Var::from_tensor(&b_dec).unwrap());
    let mut r = x.broadcast_sub(&vb).unwrap();
    for t in 0..steps {
        let mut one_hot = vec![0f32; n * m];
        for (row, path) in indices.iter().enumerate().filter(|(_, p)| p[t] != PAD) {
            one_hot[row * m + path[t] as usize] = 1.0;
        }
        let chosen = Tensor::from_vec(one_hot, (n, m), &Device::Cpu).unwrap().matmul(&vw).unwrap();
        let v = (&r * &chosen).unwrap().sum_keepdim(1).unwrap();
        r = (&r - chosen.broadcast_mul(&v).unwrap()).unwrap();
    }
    let loss = (r.sqr().unwrap().sum_all().unwrap() / n as f64).unwrap();
    let autograd = loss.backward().unwrap();
    let want: Vec<f32> = autograd.get(&vw).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let want: Vec<f32> = want.into_iter().chain(autograd.get(&vb).unwrap().to_vec1::<f32>().unwrap()).collect();
    let norm = want.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let got = w.into_iter().flatten().chain(db);
    let error = got.zip(&want).map(|(g, w)| f64::from(g - w).powi(2)).sum::<f64>().sqrt();
    assert!(error < 1e-5 * norm, "{error} of {norm}");
    assert!((sq.sqrt() / norm - 1.0).abs() < 1e-5);
}

/// A direction shared by some latents is theirs alone, and with unit rows nothing moves them along themselves.
#[test]
fn shared_directions_reach_their_latents() {
    let mut rng = Rng::stream(26, "test", 0);
    let (n, d, m) = (4, 6, 10);
    let (x, atoms) = (tensor(&random(&mut rng, n * d), (n, d)), tensor(&unit(&mut rng, m, d), (m, d)));
    let zero = Tensor::zeros(d, DType::F32, &Device::Cpu).unwrap();
    let (plain, coder) = gradient(&x, &atoms, &zero, 2);
    let quiet: Vec<u32> = (0..m as u32).filter(|&j| plain.tapes[0].columns.count(j as usize) == 0).take(2).collect();
    let direction = Tensor::from_vec(vec![0.5f32; d], d, &Device::Cpu).unwrap();
    let with = PursuitGrad { shared: Some((quiet.clone(), direction.clone())), ..plain.clone() };
    let (a, _, _) = read_off(&Gradient::Pursuit(plain), &coder);
    let coder = Coder { w_dec: atoms.copy().unwrap(), b_dec: zero.copy().unwrap(), ..coder };
    let (b, _, _) = read_off(&Gradient::Pursuit(with.clone()), &coder);
    for j in 0..m {
        let added = if quiet.contains(&(j as u32)) { 0.5 } else { 0.0 };
        assert!(a[j].iter().zip(&b[j]).all(|(a, b)| (b - a - added).abs() < 1e-5));
    }
    let grad = Gradient::Pursuit(with);
    let coder = Coder { w_dec: atoms.copy().unwrap(), b_dec: zero, ..coder };
    let measured = grad.measure(&coder, true).unwrap();
    let adam = Adam { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 1, grad_scale: 1.0 };
    grad.update(&coder, &Moments::zeros(&coder).unwrap(), &measured, &adam, true).unwrap();
    for norm in coder.w_dec.sqr().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap() {
        assert!((norm - 1.0).abs() < 1e-6);
    }
}

#[test]
fn the_orthogonal_form_is_least_squares_on_its_support() {
    let mut rng = Rng::stream(27, "test", 0);
    let (n, d, m, steps) = (70, 24, 90, 12);
    let (x, atoms) = (tensor(&random(&mut rng, n * d), (n, d)), tensor(&unit(&mut rng, m, d), (m, d)));
    for pick in PICKS {
        let rule = PursuitRule { steps, pick, ..RULE };
        let path = orthogonal_pursuit(&x, &atoms, &rule).unwrap();
        let plain = pursuit(&x, &atoms, None, &rule).unwrap();
        let sq = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(sq(&path.residual) < sq(&plain.residual));
        for (r, row) in steps_of(&path).into_iter().enumerate() {
            let support: Vec<u32> = row.iter().map(|s| s.0).collect();
            let mut distinct = support.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!((distinct.len(), support.len()), (steps, steps));
            // Least squares: the residual is orthogonal to every atom taken, and is what the coefficients leave.
            let taken = atoms.index_select(&Tensor::new(support, &Device::Cpu).unwrap(), 0).unwrap();
            let residual = path.residual.get(r).unwrap().unsqueeze(1).unwrap();
            let p = taken.matmul(&residual).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(p < 2e-6, "{p}");
            let c = Tensor::new(row.iter().map(|s| s.1).collect::<Vec<_>>(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let left = (x.get(r).unwrap().unsqueeze(0).unwrap() - c.matmul(&taken).unwrap()).unwrap();
            let apart = (left.t().unwrap() - &residual).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(apart < 1e-5, "{apart}");
            // On plain pursuit's own support, least squares is never worse than plain pursuit.
            let mut own: Vec<u32> = steps_of(&plain)[r].iter().map(|s| s.0).collect();
            own.sort_unstable();
            own.dedup();
            let k = own.len();
            let sub = atoms.index_select(&Tensor::new(own, &Device::Cpu).unwrap(), 0).unwrap();
            let one = x.narrow(0, r, 1).unwrap().contiguous().unwrap();
            let refit = orthogonal_pursuit(&one, &sub, &PursuitRule { steps: k, pick: Pick::Signed, ..RULE }).unwrap();
            assert!(sq(&refit.residual) <= sq(&plain.residual.narrow(0, r, 1).unwrap()) * (1.0 + 1e-6));
        }
    }
}

#[test]
fn the_orthogonal_form_ends_when_nothing_is_left() {
    // Three atoms span a plane; the third depends on the others.
    let atoms = tensor(&[1., 0., 0., 0., 1., 0., 0.6, 0.8, 0.], (3, 3));
    let all = PursuitRule { steps: 3, pick: Pick::Signed, ..RULE };
    let path = orthogonal_pursuit(&tensor(&[3., 1., 0., 0., 0., 2., 3., 1., 5.], (3, 3)), &atoms, &all).unwrap();
    let lengths: Vec<usize> = steps_of(&path).iter().map(Vec::len).collect();
    assert_eq!(lengths, [2, 0, 2]);
    let rest = path.residual.to_vec2::<f32>().unwrap();
    assert!(rest[0].iter().all(|v| v.abs() < 1e-6) && (rest[2][2] - 5.0).abs() < 1e-6);
    let nan = orthogonal_pursuit(&tensor(&[f64::NAN, 1., 0.], (1, 3)), &atoms, &all).unwrap();
    assert!(steps_of(&nan)[0].is_empty());
}
