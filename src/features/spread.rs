//! How a latent's values spread, in little memory: counts by logarithm for quantiles, and equal bins for a picture.
//!
//! Neither depends on the order of the values.

/// Bits of the mantissa that the logarithmic bins keep: a bin is 1.6 % wide.
const KEPT: u32 = 6;
/// Most equal bins; at least half of them are in use.
const BINS: usize = 64;

/// Values above 0, counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Spread {
    /// Smallest logarithmic bin in use.
    base: usize,
    /// Counts from that bin on.
    by_log: Vec<u32>,
    /// Equal bins are 2^exponent wide.
    exponent: i32,
    /// Counts by equal bin.
    equal: Vec<u32>,
}

impl Spread {
    /// Counts a value above 0.
    pub fn add(&mut self, value: f32) {
        debug_assert!(value > 0.0 && value.is_finite());
        let bin = (value.to_bits() >> (23 - KEPT)) as usize;
        if self.by_log.is_empty() {
            self.base = bin;
        }
        if bin < self.base {
            let missing = self.base - bin;
            self.by_log.splice(0..0, std::iter::repeat_n(0, missing));
            self.base = bin;
        }
        if bin - self.base >= self.by_log.len() {
            self.by_log.resize(bin - self.base + 1, 0);
        }
        self.by_log[bin - self.base] += 1;

        // A value in [2^e, 2^(e + 1)) wants bins of 2^(e - 5): it then falls into one of 32 to 63.
        let wanted = exponent_of(value) - (BINS.trailing_zeros() as i32 - 1);
        if self.equal.is_empty() {
            self.exponent = wanted;
        }
        while self.exponent < wanted {
            self.equal = self.equal.chunks(2).map(|pair| pair.iter().sum()).collect();
            self.exponent += 1;
        }
        let bin = (f64::from(value) / 2f64.powi(self.exponent)) as usize;
        if bin >= self.equal.len() {
            self.equal.resize(bin + 1, 0);
        }
        self.equal[bin] += 1;
    }

    /// Number of values.
    fn n(&self) -> u64 {
        self.by_log.iter().map(|&c| u64::from(c)).sum()
    }

    /// The values that shares `q` do not exceed (nearest rank), each by the middle of its bin; none of no values.
    pub fn quantiles(&self, q: &[f64]) -> Vec<f32> {
        let n = self.n();
        if n == 0 {
            return Vec::new();
        }
        let of = |q: f64| {
            let rank = ((q * n as f64).ceil() as u64).clamp(1, n);
            let mut seen = 0;
            let at = self.by_log.iter().position(|&c| {
                seen += u64::from(c);
                seen >= rank
            });
            let bin = (self.base + at.unwrap_or(0)) as u32;
            let edge = |bin: u32| f32::from_bits(bin << (23 - KEPT));
            0.5 * (edge(bin) + edge(bin + 1))
        };
        q.iter().map(|&q| of(q)).collect()
    }

    /// Counts in equal bins from 0, and their width.
    pub fn histogram(&self) -> (Vec<u32>, Option<f32>) {
        let width = (!self.equal.is_empty()).then(|| 2f32.powi(self.exponent));
        (self.equal.clone(), width)
    }
}

/// e of a value in [2^e, 2^(e + 1)).
fn exponent_of(value: f32) -> i32 {
    let biased = (value.to_bits() >> 23) as i32;
    match biased {
        // Subnormal: so small that one bin for all of them will do.
        0 => -127,
        b => b - 127,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against sorting; and in any order the same.
        #[test]
        fn quantiles_and_bins_are_those_of_the_sorted_values(mut values in prop::collection::vec(1e-6f32..1e6, 1..300), q in 0.0f64..=1.0) {
            let fill = |values: &[f32]| {
                let mut spread = Spread::default();
                values.iter().for_each(|&v| spread.add(v));
                spread
            };
            let spread = fill(&values);
            values.sort_by(f32::total_cmp);
            prop_assert_eq!(&spread, &fill(&values));
            let rank = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1;
            let (got, want) = (spread.quantiles(&[q])[0], values[rank]);
            prop_assert!((got / want - 1.0).abs() <= 0.008, "{} {}", got, want);

            let (counts, width) = spread.histogram();
            let width = width.unwrap();
            let mut wanted = vec![0u32; (f64::from(values[values.len() - 1]) / f64::from(width)) as usize + 1];
            values.iter().for_each(|&v| wanted[(f64::from(v) / f64::from(width)) as usize] += 1);
            prop_assert!((33..=64).contains(&wanted.len()), "{}", wanted.len());
            prop_assert_eq!(counts, wanted);
        }
    }

    #[test]
    fn nothing_has_no_quantiles() {
        assert!(Spread::default().quantiles(&[0.5]).is_empty());
        assert_eq!(Spread::default().histogram(), (Vec::new(), None));
    }
}
