// AuxK: which latents are dead, their encoder rows side by side, and the k largest positive scores of each row among them, for k of
// hundreds. Scores are there as a whole; what is selected goes by latent, ascending. Not for top-k over a dictionary (merge.cu).

#include "common.cuh"

// One block of 1024 threads: latents silent for `after` tokens, ascending, and how many.
KERNEL dead_list(const u64* silent, u64 after, u32 m, u32* list, u32* count) {
    __shared__ u32 sums[33];
    u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5;
    u32 part = (m + 1023u) / 1024u, from = threadIdx.x * part;
    u32 to = from + part < m ? from + part : m;
    u32 mine = 0;
    for (u32 j = from; j < to; j++) {
        mine += silent[j] >= after;
    }
    u32 inside = mine;
    for (u32 step = 1; step < 32; step <<= 1) {
        u32 other = __shfl_up_sync(FULL, inside, step);
        inside += lane >= step ? other : 0;
    }
    if (lane == 31) {
        sums[warp] = inside;
    }
    __syncthreads();
    u32 at = inside - mine;
    for (u32 i = 0; i < warp; i++) {
        at += sums[i];
    }
    if (threadIdx.x == 1023) {
        *count = at + mine;
    }
    for (u32 j = from; j < to; j++) {
        if (silent[j] >= after) {
            list[at++] = j;
        }
    }
}
REGISTER(dead_list)

// One warp per listed latent: `bytes` (a multiple of 2) of its row.
KERNEL gather_rows(const u16* rows, const u32* list, u32 count, u32 bytes, u16* to) {
    u32 i = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (i >= count) {
        return;
    }
    u32 width = bytes / 2;
    const u16* from = rows + static_cast<u64>(list[i]) * width;
    for (u32 c = threadIdx.x & 31u; c < width; c += 32) {
        to[static_cast<u64>(i) * width + c] = from[c];
    }
}
REGISTER(gather_rows)

// One block of 256 threads per row: the k largest positive of `scores` [n, stride] + bias among `count` listed latents. `indices` and
// `values` [n, k], padded, latents ascending. Ties: the lowest latent.
KERNEL select_rows(const f32* scores, u64 stride, const f32* bias, const u32* list, u32 n, u32 count, u32 k, u32* indices, f32* values) {
    __shared__ u32 bins[256];
    __shared__ u32 sums[9];
    __shared__ u32 found[2];
    u32 row = blockIdx.x, t = threadIdx.x, lane = t & 31u, warp = t >> 5;
    if (row >= n) {
        return;
    }
    const f32* own = scores + row * stride;
    // 0 is no key of a positive value.
    auto key = [&](u32 i) {
        f32 v = own[i] + bias[list[i]];
        return v > 0.0f ? ordered(v) : 0u;
    };
    u32 prefix = 0, mask = 0, left = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
        bins[t] = 0;
        __syncthreads();
        for (u32 i = t; i < count; i += 256) {
            u32 u = key(i);
            if (u && (u & mask) == prefix) {
                atomicAdd(&bins[(u >> shift) & 255u], 1u);
            }
        }
        __syncthreads();
        if (t == 0) {
            u32 above = 0;
            i32 digit = 255;
            while (digit >= 0 && above + bins[digit] < left) {
                above += bins[digit];
                digit--;
            }
            // Fewer than k: all of them.
            found[0] = digit < 0 ? PAD : static_cast<u32>(digit);
            found[1] = left - above;
        }
        __syncthreads();
        u32 digit = found[0];
        left = found[1];
        __syncthreads();
        if (digit == PAD) {
            prefix = 1;
            left = count;
            break;
        }
        prefix |= digit << shift;
        mask |= 255u << shift;
    }
    u32 at = 0, tied = 0;
    for (u32 base = 0; base < count; base += 256) {
        u32 i = base + t, u = i < count ? key(i) : 0;
        bool tie = u && u == prefix;
        u32 equal = __ballot_sync(FULL, tie);
        if (lane == 0) {
            sums[warp] = __popc(equal);
        }
        __syncthreads();
        u32 before = tied + __popc(equal & ((1u << lane) - 1u)), all = 0;
        for (u32 w = 0; w < 8; w++) {
            before += w < warp ? sums[w] : 0;
            all += sums[w];
        }
        tied += all;
        bool stay = u > prefix || (tie && before < left);
        u32 staying = __ballot_sync(FULL, stay);
        __syncthreads();
        if (lane == 0) {
            sums[warp] = __popc(staying);
        }
        __syncthreads();
        u32 to = at + __popc(staying & ((1u << lane) - 1u));
        for (u32 w = 0; w < 8; w++) {
            to += w < warp ? sums[w] : 0;
            at += sums[w];
        }
        if (stay) {
            indices[static_cast<u64>(row) * k + to] = list[i];
            values[static_cast<u64>(row) * k + to] = unordered(u);
        }
        __syncthreads();
    }
    for (u32 i = at + t; i < k; i += 256) {
        indices[static_cast<u64>(row) * k + i] = PAD;
        values[static_cast<u64>(row) * k + i] = 0.0f;
    }
}
REGISTER(select_rows)
