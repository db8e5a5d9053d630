//! Seeded randomness with named streams: xoshiro256++, seeded by SHA-256 of (seed, stream name, index).
//!
//! Written here, not taken from a crate, because "same seed, same bytes" is a promise across versions of every dependency.
//! Streams keep purposes apart: one seed used for both data and initialisation once started an SAE at the true dictionary.

use sha2::{Digest, Sha256};

/// A generator. Its whole state is four words, so a checkpoint can hold it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rng {
    s: [u64; 4],
}

impl Rng {
    /// The stream `name` of `seed`; `index` separates draws of one kind (an epoch, a window, a latent).
    pub fn stream(seed: u64, name: &str, index: u64) -> Self {
        let mut h = Sha256::new();
        h.update(seed.to_le_bytes());
        h.update((name.len() as u64).to_le_bytes());
        h.update(name.as_bytes());
        h.update(index.to_le_bytes());
        let digest = h.finalize();
        let word = |i: usize| u64::from_le_bytes(digest[i * 8..i * 8 + 8].try_into().expect("eight bytes of a 32-byte digest"));
        // All-zero is the one forbidden state; SHA-256 will not give it, but the guard costs nothing.
        Self { s: [word(0), word(1), word(2), word(3) | 1] }
    }

    /// 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.s;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in 0..n, without bias (Lemire's rejection).
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "Rng::below(0)");
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(n);
            let low = wide as u64;
            if low >= n.wrapping_neg() % n {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Standard normal (Box-Muller, one of the pair, so that the stream's position stays easy to reason about).
    pub fn normal(&mut self) -> f64 {
        let u = 1.0 - self.uniform(); // (0, 1]
        let v = self.uniform();
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// An index drawn with the given non-negative weights.
    ///
    /// # Panics
    /// When `weights` is empty.
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let mut left = self.uniform() * weights.iter().sum::<f64>();
        for (i, w) in weights.iter().enumerate() {
            left -= w;
            if left < 0.0 {
                return i;
            }
        }
        weights.len() - 1
    }
}

/// A 64-bit hash of a seed and a number (SplitMix64's finaliser), for decisions that need no stream, such as a document's split.
pub fn hash64(seed: u64, value: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15).wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_and_repeat() {
        let a = Rng::stream(0, "data", 0).next_u64();
        assert_eq!(a, Rng::stream(0, "data", 0).next_u64());
        assert_ne!(a, Rng::stream(0, "init", 0).next_u64());
        assert_ne!(a, Rng::stream(0, "data", 1).next_u64());
        assert_ne!(a, Rng::stream(1, "data", 0).next_u64());
    }

    #[test]
    fn moments_are_right() {
        let mut r = Rng::stream(7, "test", 0);
        let n = 200_000;
        let (mut m, mut v, mut u) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            let z = r.normal();
            m += z;
            v += z * z;
            u += r.uniform();
        }
        let n = f64::from(n);
        assert!((m / n).abs() < 0.01 && (v / n - 1.0).abs() < 0.02 && (u / n - 0.5).abs() < 0.005);
    }

    #[test]
    fn below_is_in_range_and_covers() {
        let mut r = Rng::stream(3, "test", 1);
        let mut seen = [0u32; 7];
        for _ in 0..7000 {
            seen[r.below(7) as usize] += 1;
        }
        assert!(seen.iter().all(|&c| c > 800 && c < 1200), "{seen:?}");
    }
}
