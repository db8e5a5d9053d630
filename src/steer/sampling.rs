//! The next token from logits: greedy, or drawn from the distribution at a temperature, cut to its top.

use crate::error::{Error, Result};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token (the lowest id of equals).
    pub temperature: f64,
    /// Only the so many likeliest.
    pub top_k: Option<usize>,
    /// Only the likeliest that together have at least this probability (the one that reaches it included).
    pub top_p: Option<f64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: None }
    }
}

impl Sampling {
    /// Refuses what is no sampling.
    pub(super) fn check(&self, samples: usize) -> Result<()> {
        let refuse = |problem: String, help: &str| Err(Error::request(problem, help));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return refuse(format!("{} is no temperature", self.temperature), "0 is greedy, 1 samples from the host's own distribution");
        }
        if self.top_k == Some(0) {
            return refuse("the 0 likeliest tokens leave none to draw".into(), "leave top-k out, or give 1 or more");
        }
        if self.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
            return refuse("top-p is no probability above 0".into(), "give a number above 0, up to 1");
        }
        if self.temperature == 0.0 && (self.top_k.is_some() || self.top_p.is_some()) {
            return refuse("greedy text takes the likeliest token, whatever top-k and top-p".into(), "give a temperature above 0 too");
        }
        if samples == 0 {
            return refuse("0 samples show nothing".into(), "give 1 or more");
        }
        if self.temperature == 0.0 && samples > 1 {
            return refuse(format!("{samples} greedy samples would be the same text"), "give a temperature above 0, or one sample");
        }
        Ok(())
    }

    /// The next token. `uniform` in [0, 1) decides by the inverse of the cumulative distribution over tokens from the likeliest down, so the
    /// same number gives like tokens under like distributions.
    pub(super) fn choose(&self, logits: &[f32], uniform: f64) -> u32 {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if self.temperature == 0.0 {
            return order.into_iter().min_by(by_logit).unwrap_or(0);
        }
        order.sort_unstable_by(by_logit);
        order.truncate(self.top_k.unwrap_or(usize::MAX));
        let top = f64::from(logits[order[0] as usize]);
        let mut weights: Vec<f64> = order.iter().map(|&i| ((f64::from(logits[i as usize]) - top) / self.temperature).exp()).collect();
        if let Some(p) = self.top_p {
            let all: f64 = weights.iter().sum();
            let mut sum = 0.0;
            let kept = weights.iter().position(|w| {
                sum += w;
                sum >= p * all
            });
            weights.truncate(kept.map_or(weights.len(), |last| last + 1));
        }
        let mut left = uniform * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|w| {
            left -= w;
            left < 0.0
        });
        // Rounding can leave a hair: the last one takes it.
        order[drawn.unwrap_or(weights.len() - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_is_cut_and_draws_follow_the_distribution() {
        let logits = [0.0, 2f32.ln(), 5f32.ln(), 2f32.ln()]; // .1 .2 .5 .2
        let draw = |s: Sampling, u: f64| s.choose(&logits, u);
        assert_eq!(draw(Sampling::default(), 0.99), 2);
        let plain = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_eq!([0.0, 0.49, 0.51, 0.69, 0.71, 0.89, 0.91].map(|u| draw(plain, u)), [2, 2, 1, 1, 3, 3, 0]);
        assert_eq!(draw(Sampling { top_k: Some(2), ..plain }, 0.99), 1);
        assert_eq!(draw(Sampling { top_p: Some(0.5), ..plain }, 0.99), 2);
        assert_eq!(draw(Sampling { top_p: Some(0.71), ..plain }, 0.99), 3);
        assert_eq!(draw(Sampling { temperature: 1e-3, ..plain }, 0.99), 2);
        for wrong in [
            Sampling { temperature: -1.0, ..plain },
            Sampling { top_k: Some(0), ..plain },
            Sampling { top_p: Some(1.5), ..plain },
            Sampling { top_k: Some(3), ..Sampling::default() },
        ] {
            assert_eq!(wrong.check(1).unwrap_err().exit_code(), 2);
        }
        assert!(Sampling::default().check(2).is_err() && plain.check(2).is_ok() && plain.check(0).is_err());
    }
}
