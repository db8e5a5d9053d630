// Reconstructions from codes, and what they miss: out = factor base + sum v W_j, in the entries' order, with the sum of squares of each
// row. The same kernel makes residuals after each prefix of the latents: groups `from..to`, one after the other.

#include "rows.cuh"

// Rows of W in flight: 64 bytes of registers per thread and kind.
template <typename W, int E>
__device__ static inline void decode_row(const W* RESTRICT w, const f32* base, u64 base_stride, f32 factor, const u32* RESTRICT ends, u32 k,
                                         u32 capacity, const u32* RESTRICT indices, const f32* RESTRICT values, u32 from, u32 to, u32 d,
                                         f32* out, bf16* half, f64* squares) {
    __shared__ f64 scratch[33];
    const int B = E == 1 ? 2 : 4;
    u32 row = blockIdx.x, lane = threadIdx.x & 31u;
    f32 y[ITEMS];
    if (base) {
        Row<f32, E> of;
        of.load(base + row * base_stride, d);
        of.values(y);
        UNROLL
        for (int i = 0; i < ITEMS; i++) {
            y[i] *= factor;
        }
    } else {
        items_zero(y);
    }
    u32 begin = row * k, end = begin + k;
    if (ends) {
        begin = ends[row] < capacity ? ends[row] : capacity;
        end = ends[row + 1] < capacity ? ends[row + 1] : capacity;
    }
    for (u32 e = begin; e < end; e += 32) {
        u32 own = e + lane < end ? indices[e + lane] : PAD;
        f32 value = e + lane < end ? values[e + lane] : 0.0f;
        u32 left = __ballot_sync(FULL, own >= from && own < to);
        while (left) {
            Row<W, E> rows[B];
            f32 v[B];
            int taken = 0;
            UNROLL
            for (int b = 0; b < B; b++) {
                if (left) {
                    int source = __ffs(left) - 1;
                    left &= left - 1;
                    u32 j = __shfl_sync(FULL, own, source);
                    v[b] = __shfl_sync(FULL, value, source);
                    rows[b].load(w + static_cast<u64>(j) * d, d);
                    taken = b + 1;
                }
            }
            UNROLL
            for (int b = 0; b < B; b++) {
                if (b < taken) {
                    rows[b].add(v[b], y);
                }
            }
        }
    }
    u64 at = static_cast<u64>(row) * d;
    if (out) {
        items_store<f32, E>(out + at, d, y);
    }
    if (half) {
        items_store<bf16, E>(half + at, d, y);
    }
    if (squares) {
        f64 square = block_sum(static_cast<f64>(items_dot(y, y)), scratch);
        if (threadIdx.x == 0) {
            squares[row] = square;
        }
    }
}

// One block per row. `base` [n, d] with stride d, or one row for all with stride 0, or null. Codes as in columns.cu. `out` f32 and `half`
// bf16 [n, d] and `squares` [n] may be null; `out` may be `base`.
#define DECODE(name, W, E, threads)                                                                                                        \
    KERNEL BOUNDS(threads) name(const W* w, const f32* base, u64 base_stride, f32 factor, const u32* ends, u32 k, u32 capacity,            \
                                const u32* indices, const f32* values, u32 from, u32 to, u32 d, f32* out, bf16* half, f64* squares) {      \
        decode_row<W, E>(w, base, base_stride, factor, ends, k, capacity, indices, values, from, to, d, out, half, squares);               \
    }                                                                                                                                      \
    REGISTER(name)

DECODE(decode_f32, f32, 4, 1024)
DECODE(decode_bf16, bf16, 8, 1024)
DECODE(decode_f32_odd, f32, 1, 896)
DECODE(decode_bf16_odd, bf16, 1, 896)

// Suffix sums over the groups, in place or rounded into `half`: row p becomes the sum of rows p.. of errors [groups, count].
KERNEL suffix_sums(f32* errors, u32 groups, u64 count, bf16* half) {
    u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) {
        return;
    }
    f32 sum = 0;
    for (u32 p = groups; p-- > 0;) {
        u64 at = p * count + i;
        sum += errors[at];
        if (half) {
            half[at] = to_bf16(sum);
        } else {
            errors[at] = sum;
        }
    }
}
REGISTER(suffix_sums)
