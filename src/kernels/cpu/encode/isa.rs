//! Which instructions this machine has.

use std::sync::OnceLock;

/// Width of ordinary arithmetic, from best to least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// AVX-512.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Avx512,
    /// AVX2 and FMA.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Avx2,
    /// Whatever the compiler was told (NEON on aarch64).
    Portable,
}

/// What may be used. All of them give the same results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa {
    /// Ordinary arithmetic.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub level: Level,
    /// AVX-512's dot products of bf16 pairs.
    pub bf16: bool,
    /// AVX-512's dot products of four bytes.
    pub vnni: bool,
}

impl Isa {
    /// No extensions at all.
    pub const PORTABLE: Self = Self { level: Level::Portable, bf16: false, vnni: false };

    /// Are registers 512 bits wide?
    pub fn is_wide(self) -> bool {
        self.level == Level::Avx512
    }

    /// The best that this machine has; looked up once.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    let (bf16, vnni) = (is_x86_feature_detected!("avx512bf16"), is_x86_feature_detected!("avx512vnni"));
                    return Self { level: Level::Avx512, bf16, vnni };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    return Self { level: Level::Avx2, ..Self::PORTABLE };
                }
            }
            Self::PORTABLE
        })
    }

    /// Everything that this machine can run, best first.
    #[cfg(test)]
    pub fn all() -> Vec<Self> {
        let best = Self::best();
        let mut all = vec![best];
        if best.level == Level::Avx512 {
            all.push(Self { bf16: false, vnni: false, ..best });
        }
        if best.level != Level::Portable {
            all.push(Self { level: Level::Avx2, ..Self::PORTABLE });
        }
        all.push(Self::PORTABLE);
        all.dedup();
        all
    }
}
