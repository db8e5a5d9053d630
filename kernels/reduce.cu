// Sums over many numbers in two stages of fixed shape: the same bits whatever runs first. f64 throughout.

#include "common.cuh"

// out[block] = the sum of x[block * per ..][.. per], times factor; with `add` on top of what is there.
KERNEL sum_f64(const f64* x, u64 count, u64 per, f32 factor, u32 add, f64* out) {
    __shared__ f64 scratch[33];
    u64 begin = blockIdx.x * per, end = begin + per < count ? begin + per : count;
    f64 sum = 0;
    for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
        sum += x[i];
    }
    sum = block_sum(sum, scratch) * factor;
    if (threadIdx.x == 0) {
        out[blockIdx.x] = add ? out[blockIdx.x] + sum : sum;
    }
}
REGISTER(sum_f64)

// Rows that a thread reads at once.
static const u32 COLUMN_ROWS = 8;

// Column sums of rows blockIdx.y * per ..: partials [chunks, d]. Each row may have a weight; rows of weight 0 are not read.
template <typename T>
__device__ static inline void column_partials(const T* x, const f32* weights, u32 n, u32 d, u32 per, f64* partials) {
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= d) {
        return;
    }
    u32 begin = blockIdx.y * per, end = begin + per < n ? begin + per : n;
    const T* at = x + static_cast<u64>(begin) * d + column;
    f64 sum = 0;
    for (u32 r = begin; r < end; r += COLUMN_ROWS, at += static_cast<u64>(COLUMN_ROWS) * d) {
        f32 weight[COLUMN_ROWS], value[COLUMN_ROWS];
        UNROLL
        for (u32 i = 0; i < COLUMN_ROWS; i++) {
            weight[i] = r + i < end ? (weights ? weights[r + i] : 1.0f) : 0.0f;
        }
        UNROLL
        for (u32 i = 0; i < COLUMN_ROWS; i++) {
            value[i] = weight[i] != 0.0f ? to_f32(at[static_cast<u64>(i) * d]) : 0.0f;
        }
        UNROLL
        for (u32 i = 0; i < COLUMN_ROWS; i++) {
            sum += static_cast<f64>(weight[i]) * value[i];
        }
    }
    partials[static_cast<u64>(blockIdx.y) * d + column] = sum;
}

KERNEL column_partials_f32(const f32* x, const f32* weights, u32 n, u32 d, u32 per, f64* partials) {
    column_partials(x, weights, n, d, per, partials);
}
REGISTER(column_partials_f32)

KERNEL column_partials_bf16(const bf16* x, const f32* weights, u32 n, u32 d, u32 per, f64* partials) {
    column_partials(x, weights, n, d, per, partials);
}
REGISTER(column_partials_bf16)

// total[c] = base[c] + factor * the sum of the chunks' partials; `base`, `total` and `rounded` may be null. 32 columns per block of 256
// threads: eight warps take every eighth chunk each.
KERNEL column_finish(const f64* partials, u32 chunks, u32 d, f32 factor, const f64* base, f64* total, f32* rounded) {
    __shared__ f64 scratch[256];
    u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5, column = blockIdx.x * 32 + lane;
    f64 sum = 0;
    if (column < d) {
        for (u32 c = warp; c < chunks; c += 8) {
            sum += partials[static_cast<u64>(c) * d + column];
        }
    }
    scratch[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && column < d) {
        for (u32 w = 1; w < 8; w++) {
            sum += scratch[w * 32 + lane];
        }
        sum = (base ? base[column] : 0.0) + factor * sum;
        if (total) {
            total[column] = sum;
        }
        if (rounded) {
            rounded[column] = static_cast<f32>(sum);
        }
    }
}
REGISTER(column_finish)

// squares[r] = |x_r - mean|^2, where the mean is sums / n. One warp per row.
KERNEL spread_rows(const f32* x, const f64* sums, u32 n, u32 d, f64* squares) {
    u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (row >= n) {
        return;
    }
    const f32* at = x + static_cast<u64>(row) * d;
    f64 square = 0, per_row = 1.0 / n;
    for (u32 c = lane; c < d; c += 32) {
        f64 off = at[c] - sums[c] * per_row;
        square += off * off;
    }
    square = warp_sum(square);
    if (lane == 0) {
        squares[row] = square;
    }
}
REGISTER(spread_rows)

// AuxK's normalisation: scale = 2 coef / spread, the factor that makes its error a gradient, and loss = coef square / spread; 0 where
// nothing is spread. One thread.
KERNEL aux_scale(const f64* spread, const f64* square, f32 coef, f32* scale, f64* loss) {
    f64 of = *spread;
    f64 factor = of > 0.0 ? coef / of : 0.0;
    *scale = static_cast<f32>(2.0 * factor);
    *loss = factor * *square;
}
REGISTER(aux_scale)
