//! Which instructions this machine has.

use std::sync::OnceLock;

/// From best to least; all give the same results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 with bf16 dot products.
    Avx512Bf16,
    /// AVX-512.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// Whatever the compiler was told (NEON on aarch64).
    Portable,
}

impl Isa {
    /// Are registers 512 bits wide?
    pub fn is_wide(self) -> bool {
        matches!(self, Self::Avx512Bf16 | Self::Avx512)
    }

    /// The best that this machine has; looked up once.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx512f") {
                    return if is_x86_feature_detected!("avx512bf16") { Self::Avx512Bf16 } else { Self::Avx512 };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    return Self::Avx2;
                }
            }
            Self::Portable
        })
    }
}
