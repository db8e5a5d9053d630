//! The upper tail of the standard normal distribution, its inverse, and a quick comparison with it.

use std::f64::consts::{PI, SQRT_2};

/// `P(N > z)`: the series of the error function near 0, a continued fraction in the tail. Relative error below 1e-12.
pub(super) fn tail(z: f64) -> f64 {
    if z < 0.0 {
        return 1.0 - tail(-z);
    }
    let density = (-z * z / 2.0).exp() / (SQRT_2 * PI.sqrt());
    if z < 2.5 {
        // density * (z + z^3/3 + z^5/15 + ..)
        let (mut term, mut sum, mut k) = (z, z, 1.0);
        while term > 1e-18 * sum {
            k += 2.0;
            term *= z * z / k;
            sum += term;
        }
        return 0.5 - density * sum;
    }
    // density / (z + 1/(z + 2/(z + 3/(z + ..))))
    let mut fraction = z;
    for k in (1..=200).rev() {
        fraction = z + f64::from(k) / fraction;
    }
    density / fraction
}

/// The z with `tail(z) = p`, by bisection; plus or minus 38 at p = 0 and 1.
pub(super) fn tail_inverse(p: f64) -> f64 {
    let (mut low, mut high) = (-38.0, 38.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if tail(middle) > p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// Answers `u < tail(z)` from a table, except where u falls between two of its entries.
#[derive(Debug)]
pub(super) struct TailTable(Vec<f64>);

const STEPS: f64 = 64.0;
const REACH: f64 = 8.0;

impl TailTable {
    pub(super) fn new() -> Self {
        Self((0..=(2.0 * REACH * STEPS) as usize).map(|i| tail(i as f64 / STEPS - REACH)).collect())
    }

    /// `u < tail(z)`, exactly.
    pub(super) fn is_below(&self, u: f64, z: f64) -> bool {
        let at = (z + REACH) * STEPS;
        if at >= 0.0 && at < (self.0.len() - 1) as f64 {
            let i = at as usize;
            if u >= self.0[i] {
                return false;
            }
            if u < self.0[i + 1] {
                return true;
            }
        }
        u < tail(z)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn tails_are_the_known_ones() {
        for (z, p) in [
            (0.0, 0.5),
            (1.0, 0.158_655_253_931_457_05),
            (2.4, 0.008_197_535_924_596_13),
            (2.5, 0.006_209_665_325_776_132),
            (3.0, 0.001_349_898_031_630_094_6),
            (6.0, 9.865_876_450_376_98e-10),
            (-1.0, 0.841_344_746_068_542_9),
        ] {
            assert!((tail(z) / p - 1.0).abs() < 1e-12, "{z}: {} {p}", tail(z));
            assert!((tail_inverse(p) - z).abs() < 1e-9, "{z} {}", tail_inverse(p));
        }
    }

    #[test]
    fn the_table_agrees_with_the_function() {
        let (table, mut rng) = (TailTable::new(), Rng::stream(0, "test", 0));
        for _ in 0..20_000 {
            let (u, z) = (rng.uniform() * rng.uniform(), 3.0 * rng.normal());
            assert_eq!(table.is_below(u, z), u < tail(z), "{u} {z}");
        }
        assert!(table.is_below(0.5, -20.0) && !table.is_below(1e-9, 20.0));
    }
}
