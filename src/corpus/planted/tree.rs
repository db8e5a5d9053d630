//! A conditional forest: every node fires only with its parent, siblings independently or one at most.
//!
//! The same idea as `hierarchy` with free sizes and depths: roots fire with `root_p`, a child with `child_p` given its parent. Roots
//! have magnitudes `N(root_mean, root_std^2)`, all others `N(child_mean, child_std^2)`, clipped at 0. Directions are orthonormal where
//! the width allows, else random and pushed apart. Reconstruction alone rewards a latent that fires for a child to carry part of its
//! parent (absorption): the parent's latent then need not fire.

use serde::{Deserialize, Serialize};

use super::forest::Forest;
use super::{directions, sized, within, wrong, Generator, Spec, Truth};
use crate::error::Result;
use crate::rng::Rng;

/// Settings of `tree`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TreeConfig {
    /// Width.
    pub d_in: usize,
    /// Trees.
    pub roots: usize,
    /// Children of each inner node.
    pub branching: usize,
    /// Levels below the roots.
    pub depth: usize,
    /// Probability that a root fires.
    pub root_p: f64,
    /// Probability that a child fires when its parent does.
    pub child_p: f64,
    /// At most one of several siblings.
    pub exclusive: bool,
    /// Mean magnitude of a root.
    pub root_mean: f64,
    /// Standard deviation of a root's magnitude.
    pub root_std: f64,
    /// Mean magnitude below the roots.
    pub child_mean: f64,
    /// Standard deviation of magnitudes below the roots.
    pub child_std: f64,
    /// Norm of the bias.
    pub bias_norm: f64,
    /// Standard deviation of the noise, per value.
    pub noise: f64,
}

impl Default for TreeConfig {
    fn default() -> Self {
        Self {
            d_in: 64,
            roots: 4,
            branching: 3,
            depth: 2,
            root_p: 0.4,
            child_p: 0.25,
            exclusive: false,
            root_mean: 1.0,
            root_std: 0.25,
            child_mean: 1.0,
            child_std: 0.25,
            bias_norm: 0.0,
            noise: 0.0,
        }
    }
}

impl Spec for TreeConfig {
    fn check(&self) -> Result<()> {
        sized("d_in", self.d_in, 1 << 16)?;
        sized("roots", self.roots, 1 << 20)?;
        sized("branching", self.branching, 1 << 16)?;
        if Forest::count(self.roots, self.branching, self.depth).is_none_or(|n| n > 1 << 20) {
            return Err(wrong("depth", format!("{} levels of {} children are too many features", self.depth, self.branching), "lower it"));
        }
        within("root_p", self.root_p, f64::MIN_POSITIVE..=1.0)?;
        within("child_p", self.child_p, f64::MIN_POSITIVE..=1.0)?;
        if self.exclusive && self.child_p * self.branching as f64 > 1.0 + 1e-12 {
            return Err(wrong(
                "child_p",
                format!("{} exclusive siblings cannot each fire with {}", self.branching, self.child_p),
                format!("choose at most {}, or exclusive = false", 1.0 / self.branching as f64),
            ));
        }
        for (key, value) in [
            ("root_mean", self.root_mean),
            ("root_std", self.root_std),
            ("child_mean", self.child_mean),
            ("child_std", self.child_std),
            ("bias_norm", self.bias_norm),
            ("noise", self.noise),
        ] {
            within(key, value, 0.0..=1e6)?;
        }
        Ok(())
    }

    fn d_in(&self) -> usize {
        self.d_in
    }

    fn noise(&self) -> f64 {
        self.noise
    }

    fn build(&self, seed: u64, with_directions: bool) -> (Truth, Box<dyn Generator>) {
        let forest = Forest::new(self.roots, self.branching, self.depth);
        let n = forest.parents.len();
        let mut firing = vec![self.root_p; n];
        for g in 0..n {
            if let Some(parent) = forest.parents[g] {
                firing[g] = firing[parent as usize] * self.child_p;
            }
        }
        let features = if !with_directions {
            Vec::new()
        } else if n <= self.d_in {
            directions::orthonormal(seed, n, self.d_in).iter().map(|&v| v as f32).collect()
        } else {
            let mut rows = directions::random(seed, n, self.d_in);
            directions::decorrelate(&mut rows, self.d_in, 200, 0.1);
            rows
        };
        let bias = directions::bias(seed, self.bias_norm, self.d_in);
        let truth = Truth { d: self.d_in, features, bias, parents: forest.parents.clone(), firing };
        (truth, Box::new(Tree { config: self.clone(), forest }))
    }
}

#[derive(Debug)]
struct Tree {
    config: TreeConfig,
    forest: Forest,
}

impl Generator for Tree {
    fn codes(&self, rng: &mut Rng, row: &mut Vec<(u32, f32)>) {
        let c = &self.config;
        let mut on: Vec<usize> = (0..c.roots).filter(|_| rng.uniform() < c.root_p).collect();
        let mut at = 0;
        while let Some(&g) = on.get(at) {
            at += 1;
            let (mean, std) = if g < c.roots { (c.root_mean, c.root_std) } else { (c.child_mean, c.child_std) };
            let value = (mean + std * rng.normal()) as f32;
            if value > 0.0 {
                row.push((g as u32, value));
            }
            let children = self.forest.children[g].clone();
            if c.exclusive && !children.is_empty() {
                let chosen = (rng.uniform() / c.child_p) as usize;
                on.extend(children.clone().nth(chosen));
            } else {
                on.extend(children.filter(|_| rng.uniform() < c.child_p));
            }
        }
    }
}
