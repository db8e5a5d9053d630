// All columns above their latent's threshold, exactly: a screen with bounds finds who may be, an f64 dot product decides. Rows have as
// many as they have, so the screen runs twice: once to count, once to write. Not for top-k (merge.cu).

#include "common.cuh"

// One warp per row. With `entries` null: adds the row's candidates to `counts`. Else writes their columns from `starts[row] + counts[row]`.
KERNEL threshold_screen(const f32* scores, u64 stride, const f32* bias, const f32* threshold, u32 n, u32 columns, u32 first, f32 sum,
                        const float2* row_norms, const float2* norms, u32* counts, const u64* starts, u32* entries) {
    u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (row >= n) {
        return;
    }
    float2 own = row_norms[row];
    Bound bound = Bound{own.y, own.x, sum};
    u32 count = counts[row];
    for (u32 base = 0; base < columns; base += 32) {
        u32 c = base + lane;
        bool pass = false;
        if (c < columns) {
            f32 v = scores[row * stride + c] + bias[first + c];
            pass = may_reach(v, bound, norms[first + c], threshold[first + c]);
        }
        u32 passing = __ballot_sync(FULL, pass);
        if (pass && entries) {
            entries[starts[row] + count + lanes_below(passing, lane)] = first + c;
        }
        count += __popc(passing);
    }
    __syncwarp();  // all lanes have read what one now writes
    if (lane == 0) {
        counts[row] = count;
    }
}
REGISTER(threshold_screen)

// One warp per row: exact values of the candidates; those above the threshold move to the front, `counts` becomes their number.
KERNEL threshold_rescore(const f32* x, const f32* w, const f32* bias, const f32* threshold, u32 n, u32 d, u32* counts, const u64* starts,
                         u32* entries, f32* values) {
    u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (row >= n) {
        return;
    }
    u64 start = starts[row];
    u32 count = counts[row], kept = 0;
    for (u32 i = 0; i < count; i++) {
        __syncwarp();
        u32 j = entries[start + i];
        f32 v = exact_dot(x + static_cast<u64>(row) * d, w + static_cast<u64>(j) * d, bias[j], d);
        __syncwarp();
        if (v > threshold[j]) {
            if (lane == 0) {
                entries[start + kept] = j;
                values[start + kept] = v + 0.0f;
            }
            kept++;
        }
    }
    __syncwarp();
    if (lane == 0) {
        counts[row] = kept;
    }
}
REGISTER(threshold_rescore)
