//! The hierarchy of the MP-SAE paper (Costa et al., arXiv 2506.03093, section on conditional orthogonality): 20 features in R^20.
//!
//! Exactly one of 11 parents is on: 0, 4, 8 with probability 0.2 each, the leaves 12..19 with 0.05 each. Parents 0, 4 and 8 have three
//! children each (the next three numbers), mutually exclusive, 0.2 each, none with 0.4. E[L0] = 1.36.
//!
//! Directions: orthonormal Q, mixed inside each group of m siblings: `f_i = unit((1 - e) q_i + e/(m-1) sum_{other siblings} q_s)`. Any
//! two siblings then have the same cosine rho(e), and features of different groups are orthogonal.

use serde::{Deserialize, Serialize};

use super::{directions, within, Generator, Spec, Truth};
use crate::error::Result;
use crate::rng::Rng;

/// Features, which are as many as dimensions.
const N: usize = 20;
/// The parents in order: three with children, eight without.
const PARENTS: [usize; 11] = [0, 4, 8, 12, 13, 14, 15, 16, 17, 18, 19];
/// Parents with children: the three features after each.
const INTERNAL: usize = 3;

/// The paper's mixing weights e for three siblings at correlation 0, 0.1, .., 0.8 (rounded as printed there).
pub const SIBLING_E_CHILDREN: [f64; 9] = [0.0, 0.0895, 0.163, 0.226, 0.282, 0.3335, 0.3825, 0.431, 0.482];
/// The same for the eleven parents.
pub const SIBLING_E_PARENTS: [f64; 9] = [0.0, 0.3, 0.44, 0.529, 0.594, 0.6467, 0.692, 0.733, 0.7739];

/// Settings of `hierarchy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HierarchyConfig {
    /// Cosine of any two siblings, parents and children alike; the weight e is solved for it.
    pub sibling_correlation: f64,
    /// Mean magnitude of a parent.
    pub parent_mean: f64,
    /// Standard deviation of a parent's magnitude.
    pub parent_std: f64,
    /// Mean magnitude of a child.
    pub child_mean: f64,
    /// Standard deviation of a child's magnitude.
    pub child_std: f64,
    /// Standard deviation of the noise, per value.
    pub noise: f64,
}

impl Default for HierarchyConfig {
    fn default() -> Self {
        Self { sibling_correlation: 0.0, parent_mean: 1.5, parent_std: 0.25, child_mean: 1.5, child_std: 0.25, noise: 0.0 }
    }
}

/// Cosine of two of `m` siblings mixed with weight `e`.
fn correlation(m: usize, e: f64) -> f64 {
    let (own, other) = (1.0 - e, e / (m - 1) as f64);
    (2.0 * own * other + (m - 2) as f64 * other * other) / (own * own + (m - 1) as f64 * other * other)
}

/// The weight `e` that gives `m` siblings a cosine in [0, 1): it rises with e until all m coincide at e = (m-1)/m.
fn mixing(m: usize, rho: f64) -> f64 {
    let (mut low, mut high) = (0.0, (m - 1) as f64 / m as f64);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if correlation(m, middle) < rho {
            low = middle;
        } else {
            high = middle;
        }
    }
    if rho == 0.0 {
        0.0
    } else {
        0.5 * (low + high)
    }
}

impl Spec for HierarchyConfig {
    fn check(&self) -> Result<()> {
        within("sibling_correlation", self.sibling_correlation, 0.0..=0.99)?;
        for (key, value) in [
            ("parent_mean", self.parent_mean),
            ("parent_std", self.parent_std),
            ("child_mean", self.child_mean),
            ("child_std", self.child_std),
            ("noise", self.noise),
        ] {
            within(key, value, 0.0..=1e6)?;
        }
        Ok(())
    }

    fn d_in(&self) -> usize {
        N
    }

    fn noise(&self) -> f64 {
        self.noise
    }

    fn build(&self, seed: u64, _with_directions: bool) -> (Truth, Box<dyn Generator>) {
        let q = directions::orthonormal(seed, N, N);
        let mut features = vec![0f32; N * N];
        let children: Vec<Vec<usize>> = (0..INTERNAL).map(|i| (4 * i + 1..4 * i + 4).collect()).collect();
        for group in std::iter::once(&PARENTS.to_vec()).chain(&children) {
            let e = mixing(group.len(), self.sibling_correlation);
            let other = e / (group.len() - 1) as f64;
            for &g in group {
                let mixed = (0..N).map(|c| {
                    let weight = |s: usize| if s == g { 1.0 - e } else { other };
                    group.iter().map(|&s| weight(s) * q[s * N + c]).sum::<f64>()
                });
                let mixed: Vec<f64> = mixed.collect();
                let norm = mixed.iter().map(|v| v * v).sum::<f64>().sqrt();
                features[g * N..(g + 1) * N].iter_mut().zip(&mixed).for_each(|(f, v)| *f = (v / norm) as f32);
            }
        }
        let mut parents = vec![None; N];
        let mut firing = vec![0.05; N];
        for (i, group) in children.iter().enumerate() {
            firing[4 * i] = 0.2;
            for &child in group {
                parents[child] = Some(4 * i as u32);
                firing[child] = 0.2 * 0.2;
            }
        }
        let truth = Truth { d: N, features, bias: vec![0.0; N], parents, firing };
        (truth, Box::new(Hierarchy(self.clone())))
    }
}

#[derive(Debug)]
struct Hierarchy(HierarchyConfig);

impl Generator for Hierarchy {
    fn codes(&self, rng: &mut Rng, row: &mut Vec<(u32, f32)>) {
        let c = &self.0;
        let mut push = |g: usize, mean: f64, std: f64, rng: &mut Rng| {
            let value = (mean + std * rng.normal()) as f32;
            if value > 0.0 {
                row.push((g as u32, value));
            }
        };
        let u = rng.uniform();
        let parent = if u < 0.6 { PARENTS[(u / 0.2) as usize] } else { PARENTS[(INTERNAL + ((u - 0.6) / 0.05) as usize).min(10)] };
        push(parent, c.parent_mean, c.parent_std, rng);
        if parent < PARENTS[INTERNAL] {
            let v = rng.uniform();
            if v < 0.6 {
                push(parent + 1 + ((v / 0.2) as usize).min(2), c.child_mean, c.child_std, rng);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_weights_are_those_that_are_solved_for() {
        for (i, (children, parents)) in SIBLING_E_CHILDREN.iter().zip(SIBLING_E_PARENTS).enumerate() {
            let rho = i as f64 / 10.0;
            assert!((mixing(3, rho) - children).abs() < 2e-3, "{rho}: {} {children}", mixing(3, rho));
            assert!((mixing(11, rho) - parents).abs() < 2e-3, "{rho}: {} {parents}", mixing(11, rho));
        }
    }
}
