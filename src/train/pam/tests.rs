//! The solve against slow obvious forms; what a run with it does is in `train/tests.rs`.

use super::cholesky::Factor;
use super::ridge::{choose, grid};
use super::solve::{by_blocks, exact, objective, sq_error, BLOCK};
use super::*;
use crate::codes::Codes;

const N: usize = 24;
const D: usize = 7;

/// Rows and sparse codes of them, with a mean that is not 0.
fn material(seed: u64, rows: usize, n: usize, d: usize, k: usize) -> (Vec<f32>, Codes) {
    let mut rng = Rng::stream(seed, "pam-test", 0);
    let x: Vec<f32> = (0..rows * d).map(|_| (0.5 + rng.normal()) as f32).collect();
    let mut codes = Codes::new(n);
    for _ in 0..rows {
        let mut latents: Vec<u32> = (0..n as u32).collect();
        rng.shuffle(&mut latents);
        codes.push_row(latents[..k].iter().map(|&j| (j, (0.2 + rng.uniform()) as f32)));
    }
    (x, codes)
}

fn statistics(x: &[f32], codes: &Codes, d: usize) -> Statistics {
    let mut stats = Statistics::new(codes.d_sae, d);
    stats.add(x, codes, &Columns::of_codes(codes), &vec![true; codes.n_rows()]);
    stats
}

fn some_decoder(n: usize, d: usize) -> Decoder {
    let mut rng = Rng::stream(4, "decoder", 0);
    Decoder { atoms: (0..n * d).map(|_| rng.normal()).collect(), bias: (0..d).map(|_| rng.normal()).collect() }
}

const WEIGHTS: Weights = Weights { ridge: 0.7, beta: 3.0, mu: 1.3, nu: 5.0 };

/// F with its proximal terms, and its gradient, row by row on dense codes.
fn dense(x: &[f32], codes: &Codes, d: usize, w: &Weights, at: &Decoder, before: &Decoder) -> (f64, Vec<f64>, Vec<f64>) {
    let sq = |v: f64| v * v;
    let pulled = |a: &[f64], to: &[f64]| a.iter().zip(to).map(|(a, b)| sq(a - b)).sum::<f64>();
    let size = |a: &[f64]| a.iter().map(|a| sq(*a)).sum::<f64>();
    let mut f = w.ridge * size(&at.atoms) + w.beta * size(&at.bias);
    f += w.mu * pulled(&at.atoms, &before.atoms) + w.nu * pulled(&at.bias, &before.bias);
    let both = |a: f64, weight: f64, to: f64, pull: f64| 2.0 * (weight * a + pull * (a - to));
    let mut g: Vec<f64> = at.atoms.iter().zip(&before.atoms).map(|(&a, &t)| both(a, w.ridge, t, w.mu)).collect();
    let mut gb: Vec<f64> = at.bias.iter().zip(&before.bias).map(|(&a, &t)| both(a, w.beta, t, w.nu)).collect();
    for (r, row) in x.chunks_exact(d).enumerate() {
        let mut z = vec![0f64; codes.d_sae];
        let (latents, values) = codes.row(r);
        latents.iter().zip(values).for_each(|(&j, &v)| z[j as usize] = f64::from(v));
        for c in 0..d {
            let xhat: f64 = at.bias[c] + z.iter().enumerate().map(|(j, z)| z * at.atoms[j * d + c]).sum::<f64>();
            let error = xhat - f64::from(row[c]);
            f += error * error;
            gb[c] += 2.0 * error;
            z.iter().enumerate().for_each(|(j, z)| g[j * d + c] += 2.0 * error * z);
        }
    }
    (f, g, gb)
}

fn largest(v: &[f64]) -> f64 {
    v.iter().fold(0.0, |m, x| m.max(x.abs()))
}

#[test]
fn the_solution_is_the_joint_minimiser_with_every_proximal_term() {
    let (x, codes) = material(1, 300, N, D, 5);
    let stats = statistics(&x, &codes, D);
    let before = some_decoder(N, D);
    let (f_before, g0, gb0) = dense(&x, &codes, D, &WEIGHTS, &before, &before);
    let found = exact(&stats, &WEIGHTS, &before).unwrap();
    let (f, g, gb) = dense(&x, &codes, D, &WEIGHTS, &found, &before);
    assert!(largest(&g) < 1e-9 * largest(&g0) && largest(&gb) < 1e-9 * largest(&gb0), "{} {}", largest(&g), largest(&gb));
    assert!(f < f_before);
    // The closed form is the same F.
    let closed = objective(&stats, &WEIGHTS, &found)
        + WEIGHTS.mu * found.atoms.iter().zip(&before.atoms).map(|(a, b)| (a - b).powi(2)).sum::<f64>()
        + WEIGHTS.nu * found.bias.iter().zip(&before.bias).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    assert!((closed - f).abs() < 1e-10 * f, "{closed} {f}");
}

#[test]
fn without_bias_weights_it_is_ridge_regression_on_centred_rows() {
    let (rows, ridge) = (200, 0.3);
    let (x, codes) = material(2, rows, N, D, 4);
    let stats = statistics(&x, &codes, D);
    let w = Weights { ridge, beta: 0.0, mu: 0.0, nu: 0.0 };
    let found = exact(&stats, &w, &some_decoder(N, D)).unwrap();
    // Psi = Z - mean, Phi = X - mean; (Psi^T Psi + ridge I) D = Psi^T Phi.
    let z = codes.to_dense().unwrap().to_vec2::<f32>().unwrap();
    let mean = |f: &dyn Fn(usize) -> f64| (0..rows).map(f).sum::<f64>() / rows as f64;
    let zm: Vec<f64> = (0..N).map(|j| mean(&|r| f64::from(z[r][j]))).collect();
    let xm: Vec<f64> = (0..D).map(|c| mean(&|r| f64::from(x[r * D + c]))).collect();
    let (mut a, mut c) = (vec![0f64; N * N], vec![0f64; N * D]);
    for r in 0..rows {
        let psi: Vec<f64> = (0..N).map(|j| f64::from(z[r][j]) - zm[j]).collect();
        for i in 0..N {
            (0..N).for_each(|j| a[i * N + j] += psi[i] * psi[j]);
            (0..D).for_each(|k| c[i * D + k] += psi[i] * (f64::from(x[r * D + k]) - xm[k]));
        }
    }
    (0..N).for_each(|i| a[i * N + i] += ridge);
    let want = Factor::new(a, N).unwrap().solve(&c, D);
    let off: Vec<f64> = want.iter().zip(&found.atoms).map(|(a, b)| a - b).collect();
    assert!(largest(&off) < 1e-9 * largest(&want), "{}", largest(&off));
    for c in 0..D {
        let b = xm[c] - (0..N).map(|j| zm[j] * want[j * D + c]).sum::<f64>();
        assert!((b - found.bias[c]).abs() < 1e-9);
    }
}

#[test]
fn statistics_are_the_dense_sums_in_any_pieces_on_any_threads() {
    let (rows, d) = (130, 9);
    let (x, codes) = material(3, rows, 50, d, 6);
    let whole = statistics(&x, &codes, d);
    let z = codes.to_dense().unwrap().to_vec2::<f32>().unwrap();
    for i in 0..50 {
        for j in 0..50 {
            let want: f64 = (0..rows).map(|r| f64::from(z[r][i]) * f64::from(z[r][j])).sum();
            assert!((whole.gram[i * 50 + j] - want).abs() < 1e-11);
            assert_eq!(whole.gram[i * 50 + j], whole.gram[j * 50 + i]);
        }
        for c in 0..d {
            let want: f64 = (0..rows).map(|r| f64::from(z[r][i]) * f64::from(x[r * d + c])).sum();
            assert!((whole.cross[i * d + c] - want).abs() < 1e-11);
        }
    }
    assert_eq!(whole.rows, rows as u64);
    // Batches one after another are the same sums to the bit, and so is another number of threads.
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut pieces = Statistics::new(50, d);
        pool.install(|| {
            for from in (0..rows).step_by(37) {
                let m = 37.min(rows - from);
                let mut part = Codes::new(50);
                (from..from + m).for_each(|r| part.push_row(codes.row(r).0.iter().copied().zip(codes.row(r).1.iter().copied())));
                pieces.add(&x[from * d..(from + m) * d], &part, &Columns::of_codes(&part), &vec![true; m]);
            }
        });
        assert!(pieces == whole, "{threads} threads");
    }
    // Two sets that share the rows add up to all of them.
    let (mut a, mut b) = (Statistics::new(50, d), Statistics::new(50, d));
    let some: Vec<bool> = (0..rows).map(|r| r % 3 == 0).collect();
    let others: Vec<bool> = some.iter().map(|s| !s).collect();
    let columns = Columns::of_codes(&codes);
    a.add(&x, &codes, &columns, &some);
    b.add(&x, &codes, &columns, &others);
    a.merge(&b);
    assert!(a.gram.iter().zip(&whole.gram).all(|(a, b)| (a - b).abs() < 1e-11) && a.rows == whole.rows);
}

#[test]
fn blocks_in_turn_come_to_the_same_solution_and_never_raise_f() {
    // More than one block, the last one smaller.
    let (n, d) = (BLOCK + 90, 3);
    let (x, codes) = material(5, 2500, n, d, 8);
    let stats = statistics(&x, &codes, d);
    let before = some_decoder(n, d);
    let w = Weights { ridge: 2.0, beta: 1.0, mu: 0.5, nu: 0.25 };
    let want = exact(&stats, &w, &before).unwrap();
    let whole = |at: &Decoder| {
        let pull = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        objective(&stats, &w, at) + w.mu * pull(&at.atoms, &before.atoms) + w.nu * pull(&at.bias, &before.bias)
    };
    let (mut at, mut f) = (before.clone(), f64::INFINITY);
    for _ in 0..6 {
        at = by_blocks(&stats, &w, &before, &at, 1).unwrap();
        assert!(whole(&at) <= f * (1.0 + 1e-12));
        f = whole(&at);
    }
    let found = by_blocks(&stats, &w, &before, &before, 200).unwrap();
    let off: Vec<f64> = found.atoms.iter().zip(&want.atoms).map(|(a, b)| a - b).collect();
    assert!(largest(&off) < 1e-9 * largest(&want.atoms), "{}", largest(&off));
    assert!((whole(&found) - whole(&want)).abs() < 1e-11 * whole(&want));
}

#[test]
fn large_systems_are_solved_to_the_same_bits_on_any_number_of_threads() {
    let (n, d) = (300, 40);
    let (x, codes) = material(6, 900, n, d, 10);
    let stats = statistics(&x, &codes, d);
    let before = some_decoder(n, d);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let found = exact(&stats, &WEIGHTS, &before).unwrap();
            (sq_error(&stats, &found).to_bits(), by_blocks(&stats, &WEIGHTS, &before, &before, 3).unwrap(), found)
        })
    };
    let one = on(1);
    assert!((2..5).all(|threads| on(threads) == one));
    let (_, g, gb) = dense(&x, &codes, d, &WEIGHTS, &one.2, &before);
    let (_, g0, gb0) = dense(&x, &codes, d, &WEIGHTS, &before, &before);
    assert!(largest(&g) < 1e-9 * largest(&g0) && largest(&gb) < 1e-9 * largest(&gb0));
}

#[test]
fn latents_that_never_fire_break_nothing() {
    let (x, mut codes) = material(7, 60, N, D, 3);
    // Half of them never fire.
    codes.indices.iter_mut().for_each(|j| *j %= 12);
    let stats = statistics(&x, &codes, D);
    assert!((12..N).all(|j| !stats.fired(j)));
    let w = Weights { ridge: 1e-3, beta: 0.0, mu: 0.0, nu: 0.0 };
    let found = exact(&stats, &w, &some_decoder(N, D)).unwrap();
    assert!(found.atoms[12 * D..].iter().all(|&v| v == 0.0) && found.atoms.iter().all(|v| v.is_finite()));
    assert!(exact(&stats, &Weights { ridge: 0.0, ..w }, &some_decoder(N, D)).is_none(), "there is no minimiser without a ridge");
}

#[test]
fn where_rows_are_few_the_chosen_ridge_is_inside_the_grid_and_better_than_none() {
    // As many rows as latents, a linear truth and much noise: a decoder without a ridge interpolates.
    let (n, d, rows) = (40, 6, 40);
    let truth = some_decoder(n, d);
    let rows_of = |seed: u64, rows: usize| {
        let (noise, codes) = material(seed, rows, n, d, 6);
        let z = codes.to_dense().unwrap().to_vec2::<f32>().unwrap();
        let x: Vec<f32> = (0..rows * d)
            .map(|i| {
                let clean: f64 = z[i / d].iter().enumerate().map(|(j, z)| f64::from(*z) * truth.atoms[j * d + i % d]).sum();
                clean as f32 + noise[i]
            })
            .collect();
        statistics(&x, &codes, d)
    };
    let (fit, held) = (rows_of(8, rows), rows_of(9, 300));
    let config = PamConfig::default();
    let ridges = grid(&config, &fit);
    let w = Weights { ridge: 0.0, beta: 0.0, mu: 0.0, nu: 0.0 };
    let solve = |w: &Weights| exact(&fit, w, &truth);
    let choice = choose(&ridges, None, &w, &held, solve).unwrap();
    assert!(choice.at > 3 && choice.at + 1 < ridges.len(), "{choice:?}");
    let without = sq_error(&held, &solve(&Weights { ridge: 1e-8, ..w }).unwrap()) / held.spread();
    assert!(choice.fvu < 0.8 * without, "{} {without}", choice.fvu);
    // Downhill from anywhere near comes to a place whose neighbours are no better; from the place itself it stays.
    assert_eq!(choose(&ridges, Some(choice.at), &w, &held, solve).unwrap(), choice);
    assert_eq!(choose(&ridges, Some(choice.at + 1), &w, &held, solve).unwrap(), choice);
    assert!(choose(&ridges, None, &w, &held, |_| None).is_none());
}
