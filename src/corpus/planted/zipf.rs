//! Superposition with Zipf frequencies: `n_features` unit directions in fewer dimensions, firing independently.
//!
//! `p_r = min(c r^-exponent, max_p)` with `sum p = l0`; magnitude of rank r: `N(m_r, std^2)`, clipped at 0, `m_r` linear from
//! `mean_first` to `mean_last`; directions random, then pushed apart.

use serde::{Deserialize, Serialize};

use super::{directions, firing, sized, within, wrong, Generator, Spec, Truth};
use crate::error::Result;
use crate::rng::Rng;

/// Settings of `zipf`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ZipfConfig {
    /// Width.
    pub d_in: usize,
    /// Features G.
    pub n_features: usize,
    /// Expected number of features on a row.
    pub l0: f64,
    /// Frequencies fall as rank to minus this.
    pub exponent: f64,
    /// No feature fires more often.
    pub max_p: f64,
    /// Mean magnitude of the most frequent feature.
    pub mean_first: f64,
    /// Mean magnitude of the rarest.
    pub mean_last: f64,
    /// Standard deviation of magnitudes.
    pub std: f64,
    /// Norm of the bias.
    pub bias_norm: f64,
    /// Standard deviation of the noise, per value.
    pub noise: f64,
    /// Rounds of `D <- unit(D - rate offdiag(D D^T) D)`.
    pub decorrelate_rounds: usize,
    /// Their rate.
    pub decorrelate_rate: f64,
}

impl Default for ZipfConfig {
    fn default() -> Self {
        Self {
            d_in: 64,
            n_features: 128,
            l0: 5.0,
            exponent: 0.7,
            max_p: 0.5,
            mean_first: 1.5,
            mean_last: 1.0,
            std: 0.25,
            bias_norm: 0.3,
            noise: 0.02,
            decorrelate_rounds: 200,
            decorrelate_rate: 0.1,
        }
    }
}

impl Spec for ZipfConfig {
    fn check(&self) -> Result<()> {
        sized("d_in", self.d_in, 1 << 16)?;
        sized("n_features", self.n_features, 1 << 20)?;
        within("max_p", self.max_p, f64::MIN_POSITIVE..=1.0)?;
        within("exponent", self.exponent, 0.0..=100.0)?;
        for (key, value) in [("mean_first", self.mean_first), ("mean_last", self.mean_last), ("std", self.std)] {
            within(key, value, 0.0..=1e6)?;
        }
        within("bias_norm", self.bias_norm, 0.0..=1e6)?;
        within("noise", self.noise, 0.0..=1e6)?;
        within("decorrelate_rate", self.decorrelate_rate, 0.0..=1.0)?;
        let most = self.max_p * self.n_features as f64;
        if !(self.l0 > 0.0 && self.l0 <= most) {
            return Err(wrong(
                "l0",
                format!(
                    "is {}: {} features that fire at most {} of the time give between 0 and {most}",
                    self.l0, self.n_features, self.max_p
                ),
                "lower l0, or raise n_features or max_p",
            ));
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
        let n = self.n_features;
        let firing = firing::zipf(n, self.exponent, self.l0, self.max_p);
        let mut features = Vec::new();
        if with_directions {
            features = directions::random(seed, n, self.d_in);
            directions::decorrelate(&mut features, self.d_in, self.decorrelate_rounds, self.decorrelate_rate as f32);
        }
        let bias = directions::bias(seed, self.bias_norm, self.d_in);
        let means = firing::linear(n, self.mean_first, self.mean_last);
        let truth = Truth { d: self.d_in, features, bias, parents: vec![None; n], firing: firing.clone() };
        (truth, Box::new(Zipf { firing, means, std: self.std }))
    }
}

#[derive(Debug)]
struct Zipf {
    firing: Vec<f64>,
    means: Vec<f64>,
    std: f64,
}

impl Generator for Zipf {
    fn codes(&self, rng: &mut Rng, row: &mut Vec<(u32, f32)>) {
        for (g, (&p, &mean)) in self.firing.iter().zip(&self.means).enumerate() {
            if rng.uniform() < p {
                let value = (mean + self.std * rng.normal()) as f32;
                if value > 0.0 {
                    row.push((g as u32, value));
                }
            }
        }
    }
}
