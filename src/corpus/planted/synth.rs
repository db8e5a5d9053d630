//! Many correlated features in superposition, partly in trees: after SynthSAEBench (SAELens' `synthetic` package, its 16k model).
//!
//! 1. Unit directions pushed towards orthogonality by Adam on `sum offdiag^2 + n sum (diag - 1)^2`.
//! 2. Frequencies: a Zipf law stretched to [`min_p`, `max_p`], by rank; features are numbered by rank, roots first, then level by level.
//! 3. Correlation: a Gaussian copula of low rank, `u = F eps + sqrt(1 - |F|^2) eta`, F ~ scale N; a feature is a candidate where
//!    `u > z(q)` with `P(N > z(q)) = q`.
//! 4. Trees: a child needs its parent; of several sibling candidates a random one stays. So that a child still fires with about p, its
//!    `q = min(1, p / p_parent * (1 + sum of siblings' p / p_parent))`; without parent `q = p`. Its magnitude is multiplied by
//!    (parent's value) / (parent's mean).
//! 5. Magnitudes `max(0, N(mean_i, std_i^2))`, means linear in rank, `std_i = |N(std_mean, std_std^2)|`.
//!
//! A row costs the roots, the children of what is on, and the features outside the trees: memory is the truth and a block of rows.

use serde::{Deserialize, Serialize};

use super::forest::Forest;
use super::normal::{tail_inverse, TailTable};
use super::{directions, firing, sized, within, wrong, Generator, Spec, Truth};
use crate::error::Result;
use crate::rng::Rng;

/// Settings of `synth`. The defaults are a size for one machine; the full benchmark is `d_in = 768, n_features = 16384, roots = 128,
/// depth = 3`, whose directions take long to make (`orthogonalise_steps`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SynthConfig {
    /// Width.
    pub d_in: usize,
    /// Features G, in trees or not.
    pub n_features: usize,
    /// Trees.
    pub roots: usize,
    /// Children of each inner node; siblings exclude each other.
    pub branching: usize,
    /// Levels below the roots.
    pub depth: usize,
    /// Frequencies fall as rank to minus this, before they are stretched.
    pub exponent: f64,
    /// Frequency of the rarest feature.
    pub min_p: f64,
    /// Frequency of the most frequent feature.
    pub max_p: f64,
    /// Rank of the correlation.
    pub rank: usize,
    /// Standard deviation of the entries of F; 0 for none.
    pub correlation_scale: f64,
    /// Mean magnitude of the most frequent feature.
    pub mean_first: f64,
    /// Mean magnitude of the rarest.
    pub mean_last: f64,
    /// Mean of the normal behind the standard deviations of magnitudes.
    pub std_mean: f64,
    /// Its standard deviation.
    pub std_std: f64,
    /// Norm of the bias.
    pub bias_norm: f64,
    /// Standard deviation of the noise, per value.
    pub noise: f64,
    /// Adam steps towards orthogonality.
    pub orthogonalise_steps: usize,
    /// Their learning rate.
    pub orthogonalise_lr: f64,
}

impl Default for SynthConfig {
    fn default() -> Self {
        Self {
            d_in: 128,
            n_features: 1024,
            roots: 32,
            branching: 4,
            depth: 2,
            exponent: 0.5,
            min_p: 5e-4,
            max_p: 0.4,
            rank: 25,
            correlation_scale: 0.1,
            mean_first: 5.0,
            mean_last: 4.0,
            std_mean: 0.5,
            std_std: 0.5,
            bias_norm: 0.5,
            noise: 0.0,
            orthogonalise_steps: 100,
            orthogonalise_lr: 3e-4,
        }
    }
}

impl Spec for SynthConfig {
    fn check(&self) -> Result<()> {
        sized("d_in", self.d_in, 1 << 16)?;
        sized("n_features", self.n_features, 1 << 20)?;
        sized("branching", self.branching, 1 << 16)?;
        sized("rank", self.rank, 1 << 12)?;
        let trees = Forest::count(self.roots, self.branching, self.depth);
        if trees.is_none_or(|n| n > self.n_features) {
            let found = trees.map_or("more than can be counted".to_string(), |n| n.to_string());
            return Err(wrong(
                "roots",
                format!(
                    "{} trees of {} x {} levels take {found} features, there are {}",
                    self.roots, self.branching, self.depth, self.n_features
                ),
                "lower roots, branching or depth, or raise n_features",
            ));
        }
        within("exponent", self.exponent, 0.0..=100.0)?;
        within("max_p", self.max_p, f64::MIN_POSITIVE..=1.0)?;
        within("min_p", self.min_p, f64::MIN_POSITIVE..=self.max_p)?;
        within("correlation_scale", self.correlation_scale, 0.0..=10.0)?;
        let explained = self.rank as f64 * self.correlation_scale.powi(2);
        if explained >= 1.0 {
            return Err(wrong(
                "correlation_scale",
                format!("{} at rank {} explains {explained} of a variance of 1", self.correlation_scale, self.rank),
                format!("choose less than {}, or a lower rank", 1.0 / (self.rank as f64).sqrt()),
            ));
        }
        for (key, value) in [
            ("mean_first", self.mean_first),
            ("mean_last", self.mean_last),
            ("std_mean", self.std_mean),
            ("std_std", self.std_std),
            ("bias_norm", self.bias_norm),
            ("noise", self.noise),
        ] {
            within(key, value, 0.0..=1e6)?;
        }
        within("orthogonalise_lr", self.orthogonalise_lr, 0.0..=1.0)
    }

    fn d_in(&self) -> usize {
        self.d_in
    }

    fn noise(&self) -> f64 {
        self.noise
    }

    fn build(&self, seed: u64, with_directions: bool) -> (Truth, Box<dyn Generator>) {
        let n = self.n_features;
        let mut forest = Forest::new(self.roots, self.branching, self.depth);
        let in_trees = forest.parents.len();
        forest.parents.resize(n, None);
        forest.children.resize(n, 0..0);
        let p = firing::zipf_between(n, self.exponent, self.min_p, self.max_p);
        let (mut q, mut fires) = (p.clone(), p.clone());
        for parent in 0..in_trees {
            let siblings = forest.children[parent].clone();
            let total: f64 = siblings.clone().map(|g| p[g]).sum();
            for g in siblings.clone() {
                q[g] = (p[g] / p[parent] * (1.0 + (total - p[g]).max(0.0) / p[parent])).min(1.0);
            }
            for g in siblings.clone() {
                let others: Vec<f64> = siblings.clone().filter(|&s| s != g).map(|s| q[s]).collect();
                fires[g] = fires[parent] * q[g] * wins(&others);
            }
        }
        let mut rng = Rng::stream(seed, "planted.correlation", 0);
        let mut factors: Vec<f32> = (0..n * self.rank).map(|_| (self.correlation_scale * rng.normal()) as f32).collect();
        let mut own = Vec::with_capacity(n);
        for row in factors.chunks_exact_mut(self.rank) {
            let sq: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
            // A row that explains more than all but 1 % of its variance is shrunk to that, as SAELens does.
            let shrink = if sq > 0.99 { (0.99 / sq).sqrt() } else { 1.0 };
            row.iter_mut().for_each(|v| *v = (f64::from(*v) * shrink) as f32);
            own.push((1.0 - sq * shrink * shrink).sqrt());
        }
        let thresholds = q.iter().map(|&q| tail_inverse(q)).collect();
        let mut rng = Rng::stream(seed, "planted.std", 0);
        let stds = (0..n).map(|_| (self.std_mean + self.std_std * rng.normal()).abs()).collect();
        let mut features = Vec::new();
        if with_directions {
            features = directions::random(seed, n, self.d_in);
            directions::orthogonalise(&mut features, self.d_in, self.orthogonalise_steps, self.orthogonalise_lr);
        }
        let bias = directions::bias(seed, self.bias_norm, self.d_in);
        let truth = Truth { d: self.d_in, features, bias, parents: forest.parents.clone(), firing: fires };
        let means = firing::linear(n, self.mean_first, self.mean_last);
        let synth =
            Synth { rank: self.rank, roots: self.roots, in_trees, forest, factors, own, thresholds, means, stds, table: TailTable::new() };
        (truth, Box::new(synth))
    }
}

/// E[1 / (1 + B)] for B the number of successes of independent trials: how often a candidate stays.
fn wins(others: &[f64]) -> f64 {
    let mut counts = vec![1.0];
    for &q in others {
        counts.push(0.0);
        for b in (0..counts.len()).rev() {
            counts[b] = counts[b] * (1.0 - q) + if b > 0 { counts[b - 1] * q } else { 0.0 };
        }
    }
    counts.iter().enumerate().map(|(b, p)| p / (1.0 + b as f64)).sum()
}

#[derive(Debug)]
struct Synth {
    rank: usize,
    roots: usize,
    /// Features before this number are in trees.
    in_trees: usize,
    forest: Forest,
    /// `[n, rank]`.
    factors: Vec<f32>,
    /// What the factors leave: `sqrt(1 - |F_i|^2)`.
    own: Vec<f64>,
    thresholds: Vec<f64>,
    means: Vec<f64>,
    stds: Vec<f64>,
    table: TailTable,
}

impl Synth {
    /// Is `u_g` above its threshold, given the common part?
    fn is_candidate(&self, g: usize, eps: &[f32], rng: &mut Rng) -> bool {
        let common: f32 = self.factors[g * self.rank..(g + 1) * self.rank].iter().zip(eps).map(|(f, e)| f * e).sum();
        self.table.is_below(rng.uniform(), (self.thresholds[g] - f64::from(common)) / self.own[g])
    }

    /// A magnitude, before its parent's share.
    fn magnitude(&self, g: usize, rng: &mut Rng) -> f64 {
        (self.means[g] + self.stds[g] * rng.normal()).max(0.0)
    }
}

impl Generator for Synth {
    fn codes(&self, rng: &mut Rng, row: &mut Vec<(u32, f32)>) {
        let eps: Vec<f32> = (0..self.rank).map(|_| rng.normal() as f32).collect();
        let mut on: Vec<(usize, f64)> = Vec::new();
        for g in 0..self.roots {
            if self.is_candidate(g, &eps, rng) {
                on.push((g, self.magnitude(g, rng)));
            }
        }
        on.retain(|(_, value)| *value > 0.0);
        let mut at = 0;
        let mut candidates = Vec::new();
        while let Some(&(parent, parent_value)) = on.get(at) {
            at += 1;
            candidates.clear();
            candidates.extend(self.forest.children[parent].clone().filter(|&g| self.is_candidate(g, &eps, rng)));
            let chosen = match candidates.len() {
                0 => continue,
                1 => candidates[0],
                n => candidates[rng.below(n as u64) as usize],
            };
            // A parent without a mean magnitude has no scale to pass on.
            let scale = if self.means[parent] > 0.0 { parent_value / self.means[parent] } else { 1.0 };
            let value = self.magnitude(chosen, rng) * scale;
            if value > 0.0 {
                on.push((chosen, value));
            }
        }
        for g in self.in_trees..self.means.len() {
            if self.is_candidate(g, &eps, rng) {
                on.push((g, self.magnitude(g, rng)));
            }
        }
        row.extend(on.into_iter().map(|(g, value)| (g as u32, value as f32)).filter(|(_, value)| *value > 0.0));
    }
}
