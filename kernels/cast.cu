// Rows as the encoder sees them: x - b, in f32 and rounded to bf16, with the norms that the certificate needs.
// Not for parameters' shadows inside a step: the update writes those itself.

#include "common.cuh"

// One warp per row of x [n, d] (row stride d). `b` may be null. `full` [n, d] f32, `half` [n, d] bf16 and `norms` [n, 2] may be null:
// norms are |bf16(x - b)| and |x - b - bf16(x - b)|, rounded up. `bad` counts elements that are not finite.
KERNEL cast_rows(const f32* x, const f32* b, u32 n, u32 d, f32* full, bf16* half, f32* norms, u32* bad) {
    u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (row >= n) {
        return;
    }
    const f32* from = x + static_cast<u64>(row) * d;
    u64 at = static_cast<u64>(row) * d;
    f64 kept = 0, lost = 0;
    u32 odd = 0;
    for (u32 i = lane; i < d; i += 32) {
        f32 v = b ? from[i] - b[i] : from[i];
        odd += (__float_as_uint(v) & 0x7f800000u) == 0x7f800000u;
        if (full) {
            full[at + i] = v;
        }
        bf16 h = to_bf16(v);
        if (half) {
            half[at + i] = h;
        }
        if (norms) {
            f64 q = to_f32(h), r = static_cast<f64>(v) - q;
            kept += q * q;
            lost += r * r;
        }
    }
    odd = warp_sum(odd);
    if (lane == 0 && odd) {
        atomicAdd(bad, odd);
    }
    if (norms) {
        kept = warp_sum(kept);
        lost = warp_sum(lost);
        if (lane == 0) {
            // Sums of d squares in f64, then a root: 1 + 2^-20 is far above both roundings.
            norms[2 * static_cast<u64>(row)] = static_cast<f32>(sqrt(kept) * (1.0 + 0x1p-20));
            norms[2 * static_cast<u64>(row) + 1] = static_cast<f32>(sqrt(lost) * (1.0 + 0x1p-20));
        }
    }
}
REGISTER(cast_rows)
