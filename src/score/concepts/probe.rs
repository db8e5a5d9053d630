//! The linear probe: logistic regression on the whole activation, one per concept. It says what is linearly there to be found; a single
//! feature of a dictionary is not expected to beat it.
//!
//! Activations are centred and whitened (covariance of the selection rows, with a ridge), so that L-BFGS meets round level sets and the L2
//! penalty weighs every direction by its own spread. Everything is accumulated in a fixed order; concepts go in parallel.

use rayon::prelude::*;

use super::{check_dense, Recovery, Task};
use crate::error::{Error, Result};
use crate::rng::Rng;

/// How probes are fitted.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeOptions {
    /// Strength of the penalty `l2 / 2 ||w||^2` beside the summed loss, in whitened units (1 is scikit-learn's `C = 1`).
    pub l2: f64,
    /// Rows to fit one probe on, at most: positive selection rows for up to half of them, then negative ones, drawn with the seed. (That
    /// shifts the bias, which the threshold, chosen on all selection rows, takes up again.)
    pub max_rows: usize,
    /// L-BFGS iterations, at most.
    pub max_iterations: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { l2: 1.0, max_rows: 8000, max_iterations: 40, seed: 0 }
    }
}

/// Recovery by a linear probe on `x`: `[n, width]`, row-major. Fitted, and its threshold chosen for F1, on the selection rows.
///
/// # Errors
/// When `x` is not `[n, width]` for the labels' n, holds NaN, the selection is empty, or the task is malformed.
pub fn probe(name: &str, x: &[f32], width: usize, task: &Task, options: &ProbeOptions) -> Result<Recovery> {
    check_dense(x, width, task)?;
    if task.selection.is_empty() {
        return Err(Error::request("a probe has no rows to be fitted on".to_owned(), "give selection rows".to_owned()));
    }
    let mut drawn = task.selection.to_vec();
    Rng::stream(options.seed, "probe", 0).shuffle(&mut drawn);
    let whitening = Whitening::fit(x, width, task.selection);
    Ok(task.report(name, |concept| {
        let holds = |row: u32| task.labels[row as usize] >> concept & 1 == 1;
        let positive = drawn.iter().copied().filter(|&row| holds(row)).take(options.max_rows.max(2) / 2);
        let mut fit: Vec<u32> = positive.collect();
        let left = options.max_rows.max(2) - fit.len();
        fit.extend(drawn.iter().copied().filter(|&row| !holds(row)).take(left));
        fit.sort_unstable();
        let y: Vec<f32> = fit.iter().map(|&row| f32::from(u8::from(holds(row)))).collect();
        let direction = whitening.back(&logistic(&whitening.apply(x, &fit), width, &y, options));
        let logit = |row: u32| {
            let row = &x[row as usize * width..][..width];
            direction.0.iter().zip(row).fold(direction.1, |sum, (w, &v)| sum + w * f64::from(v))
        };
        Some(task.score_with(concept, logit))
    }))
}

/// z = L^-1 (x - mean), with L L^T the covariance.
struct Whitening {
    mean: Vec<f64>,
    /// Lower triangle, row-major `[width, width]`.
    cholesky: Vec<f64>,
}

impl Whitening {
    fn fit(x: &[f32], d: usize, rows: &[u32]) -> Self {
        let n = rows.len() as f64;
        let row = |r: u32| &x[r as usize * d..][..d];
        let mut mean = vec![0f64; d];
        for &r in rows {
            mean.iter_mut().zip(row(r)).for_each(|(m, &v)| *m += f64::from(v));
        }
        mean.iter_mut().for_each(|m| *m /= n);
        // Chunks of rows in parallel, added up in order.
        let partial: Vec<Vec<f64>> = rows
            .par_chunks(1024)
            .map(|chunk| {
                let (mut sum, mut c) = (vec![0f64; d * d], vec![0f64; d]);
                for &r in chunk {
                    c.iter_mut().zip(row(r)).zip(&mean).for_each(|((c, &v), m)| *c = f64::from(v) - m);
                    for i in 0..d {
                        sum[i * d..i * d + i + 1].iter_mut().zip(&c).for_each(|(s, v)| *s += c[i] * v);
                    }
                }
                sum
            })
            .collect();
        let mut a = vec![0f64; d * d];
        for sum in partial {
            a.iter_mut().zip(&sum).for_each(|(a, s)| *a += s / n);
        }
        let ridge = 1e-4 * (0..d).map(|i| a[i * d + i]).sum::<f64>() / d as f64 + 1e-12;
        for i in 0..d {
            a[i * d + i] += ridge;
            for j in 0..=i {
                let dot: f64 = (0..j).map(|k| a[i * d + k] * a[j * d + k]).sum();
                let left = a[i * d + j] - dot;
                // The ridge keeps the pivots positive; the floor is for rounding.
                a[i * d + j] = if i == j { left.max(1e-12).sqrt() } else { left / a[j * d + j] };
            }
        }
        Self { mean, cholesky: a }
    }

    /// Whitened rows, `[rows, width]`, f32.
    fn apply(&self, x: &[f32], rows: &[u32]) -> Vec<f32> {
        let d = self.mean.len();
        let mut white = vec![0f32; rows.len() * d];
        white.chunks_mut(d).zip(rows).for_each(|(out, &r)| {
            let mut z = vec![0f64; d];
            for i in 0..d {
                let l = &self.cholesky[i * d..i * d + i + 1];
                let dot: f64 = l[..i].iter().zip(&z).map(|(l, z)| l * z).sum();
                z[i] = (f64::from(x[r as usize * d + i]) - self.mean[i] - dot) / l[i];
            }
            out.iter_mut().zip(z).for_each(|(o, z)| *o = z as f32);
        });
        white
    }

    /// Weights and bias on whitened rows, as weights and bias on plain ones: w = L^-T v, b - w.mean.
    fn back(&self, v: &[f64]) -> (Vec<f64>, f64) {
        let d = self.mean.len();
        let mut w = v[..d].to_vec();
        for i in (0..d).rev() {
            let dot: f64 = (i + 1..d).map(|k| self.cholesky[k * d + i] * w[k]).sum();
            w[i] = (w[i] - dot) / self.cholesky[i * d + i];
        }
        let bias = v[d] - w.iter().zip(&self.mean).map(|(w, m)| w * m).sum::<f64>();
        (w, bias)
    }
}

/// Weights `[width + 1]`, bias last, by L-BFGS with backtracking.
fn logistic(z: &[f32], d: usize, y: &[f32], options: &ProbeOptions) -> Vec<f64> {
    const MEMORY: usize = 10;
    let n = y.len() as f64;
    let share = (f64::from(y.iter().sum::<f32>()) / n).clamp(1e-6, 1.0 - 1e-6);
    let mut w = vec![0f64; d + 1];
    w[d] = (share / (1.0 - share)).ln();
    let (mut loss, mut g) = objective(z, d, y, &w, options.l2);
    let mut memory: Vec<(Vec<f64>, Vec<f64>, f64)> = Vec::new();
    for _ in 0..options.max_iterations {
        if dot(&g, &g).sqrt() < 1e-5 {
            break;
        }
        // Two-loop recursion; the first step is scaled by the curvature p (1 - p) of whitened rows.
        let mut step: Vec<f64> = g.iter().map(|g| -g).collect();
        let mut alphas = Vec::new();
        for (s, q, rho) in memory.iter().rev() {
            let alpha = rho * dot(s, &step);
            step.iter_mut().zip(q).for_each(|(x, q)| *x -= alpha * q);
            alphas.push(alpha);
        }
        let scale = memory.last().map_or(1.0 / (share * (1.0 - share)), |(s, q, _)| dot(s, q) / dot(q, q));
        step.iter_mut().for_each(|x| *x *= scale);
        for ((s, q, rho), alpha) in memory.iter().zip(alphas.iter().rev()) {
            let beta = rho * dot(q, &step);
            step.iter_mut().zip(s).for_each(|(x, s)| *x += (alpha - beta) * s);
        }
        let slope = dot(&g, &step);
        let mut length = 1.0;
        let found = (0..20).find_map(|_| {
            let next: Vec<f64> = w.iter().zip(&step).map(|(w, x)| w + length * x).collect();
            let (next_loss, next_g) = objective(z, d, y, &next, options.l2);
            length *= 0.5;
            (next_loss <= loss + 1e-4 * 2.0 * length * slope).then_some((next, next_loss, next_g))
        });
        let Some((next, next_loss, next_g)) = found else { break };
        let s: Vec<f64> = next.iter().zip(&w).map(|(a, b)| a - b).collect();
        let q: Vec<f64> = next_g.iter().zip(&g).map(|(a, b)| a - b).collect();
        let curvature = dot(&s, &q);
        if curvature > 1e-14 {
            memory.push((s, q, 1.0 / curvature));
            if memory.len() > MEMORY {
                memory.remove(0);
            }
        }
        let gain = loss - next_loss;
        (w, loss, g) = (next, next_loss, next_g);
        if gain < 1e-8 {
            break;
        }
    }
    w
}

/// Mean logistic loss plus penalty, and its gradient. Dots in f32 over eight lanes, sums in f64.
fn objective(z: &[f32], d: usize, y: &[f32], w: &[f64], l2: f64) -> (f64, Vec<f64>) {
    const BLOCK: usize = 256;
    let n = y.len() as f64;
    let narrow: Vec<f32> = w.iter().map(|&w| w as f32).collect();
    let (weights, bias) = (&narrow[..d], narrow[d]);
    let (mut loss, mut g) = (0f64, vec![0f64; d + 1]);
    let mut block = vec![0f32; d];
    for (rows, ys) in z.chunks(BLOCK * d).zip(y.chunks(BLOCK)) {
        block.iter_mut().for_each(|b| *b = 0.0);
        for (row, &y) in rows.chunks_exact(d).zip(ys) {
            let logit = lanes_dot(row, weights) + bias;
            // log(1 + e^-|a|) + max(a, 0) - y a, stable for any a.
            let (e, a) = ((-logit.abs()).exp(), f64::from(logit));
            loss += f64::from(e).ln_1p() + a.max(0.0) - f64::from(y) * a;
            let p = if logit >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) };
            let error = p - y;
            g[d] += f64::from(error);
            block.iter_mut().zip(row).for_each(|(b, &v)| *b += error * v);
        }
        g.iter_mut().zip(&block).for_each(|(g, &b)| *g += f64::from(b));
    }
    for (g, w) in g[..d].iter_mut().zip(w) {
        loss += 0.5 * l2 * w * w;
        *g += l2 * w;
    }
    g.iter_mut().for_each(|g| *g /= n);
    (loss / n, g)
}

fn lanes_dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let (chunks_a, chunks_b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = chunks_a.remainder().iter().zip(chunks_b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in chunks_a.zip(chunks_b) {
        lanes.iter_mut().zip(a).zip(b).for_each(|((lane, a), b)| *lane += a * b);
    }
    lanes.iter().sum::<f32>() + rest
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gradient is that of the loss, and at the solution it is nearly zero.
    #[test]
    fn gradient_matches_differences_and_vanishes_at_the_solution() {
        let mut rng = Rng::stream(5, "test", 0);
        let (n, d) = (400, 11);
        let z: Vec<f32> = (0..n * d).map(|_| rng.normal() as f32).collect();
        let y: Vec<f32> = z.chunks(d).map(|row| f32::from(u8::from(f64::from(row[0] + 0.5 * row[3]) + rng.normal() > 1.0))).collect();
        let w: Vec<f64> = (0..=d).map(|_| 0.3 * rng.normal()).collect();
        let (_, g) = objective(&z, d, &y, &w, 2.0);
        for i in 0..=d {
            let nudge = |by: f64| {
                let mut w = w.clone();
                w[i] += by;
                objective(&z, d, &y, &w, 2.0).0
            };
            let difference = (nudge(1e-2) - nudge(-1e-2)) / 2e-2;
            assert!((difference - g[i]).abs() < 1e-4, "{i}: {difference} {}", g[i]);
        }
        let solution = logistic(&z, d, &y, &ProbeOptions { l2: 2.0, ..ProbeOptions::default() });
        let (_, g) = objective(&z, d, &y, &solution, 2.0);
        assert!(dot(&g, &g).sqrt() < 2e-4, "{}", dot(&g, &g).sqrt());
        assert!(solution[0] > 0.8 && solution[3] > 0.3 && solution[1].abs() < 0.5, "{solution:?}");
    }

    #[test]
    fn whitening_is_undone_exactly() {
        let mut rng = Rng::stream(6, "test", 0);
        let (n, d) = (500u32, 4);
        let x: Vec<f32> = (0..n)
            .flat_map(|_| {
                let a = rng.normal();
                [a, 100.0 * a + rng.normal(), 0.01 * rng.normal() + 3.0, rng.normal() - a].map(|v| v as f32)
            })
            .collect();
        let rows: Vec<u32> = (0..n).collect();
        let whitening = Whitening::fit(&x, d, &rows);
        let z = whitening.apply(&x, &rows);
        let v = [0.5, -1.0, 2.0, 0.25, 0.7];
        let (w, b) = whitening.back(&v);
        for (x, z) in x.chunks(d).zip(z.chunks(d)) {
            let plain: f64 = w.iter().zip(x).map(|(w, &x)| w * f64::from(x)).sum::<f64>() + b;
            let white: f64 = v.iter().zip(z).map(|(v, &z)| v * f64::from(z)).sum::<f64>() + v[d];
            assert!((plain - white).abs() < 1e-3, "{plain} {white}");
        }
    }
}
