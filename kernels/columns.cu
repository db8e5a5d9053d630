// Codes by latent, within a latent by row: a counting sort. Counts do not depend on order; where atomics scattered a latent's entries in
// any order, their rows put them right again, for a latent is at most once in a row.
//
// Codes come as padded rows (`ends` null, k entries each) or as rows of any length (`ends` [n + 1], at most `capacity` entries).
// Indices from m on, PAD among them, are skipped.

#include "common.cuh"

// Latents per block of the scan, by 256 threads.
static const u32 SCAN_BLOCK = 1024;
// Rows that are ranked at once by the bits that they set.
static const u32 RANK_WINDOW = 65536;

__device__ static inline void row_range(const u32* ends, u32 k, u32 capacity, u32 row, u32* begin, u32* end) {
    if (ends) {
        *begin = ends[row] < capacity ? ends[row] : capacity;
        *end = ends[row + 1] < capacity ? ends[row + 1] : capacity;
    } else {
        *begin = row * k;
        *end = *begin + k;
    }
}

// One warp per row. counts [m] start at zero.
KERNEL columns_count(const u32* ends, u32 k, u32 capacity, const u32* indices, u32 n, u32 m, u32* counts) {
    u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), begin, end;
    if (row >= n) {
        return;
    }
    row_range(ends, k, capacity, row, &begin, &end);
    for (u32 e = begin + (threadIdx.x & 31u); e < end; e += 32) {
        u32 j = indices[e];
        if (j < m) {
            atomicAdd(counts + j, 1u);
        }
    }
}
REGISTER(columns_count)

// Segments of a latent that has more than `segment` entries; few entries need none.
__device__ static inline u32 segments_of(u32 count, u32 segment) { return count > segment ? (count + segment - 1) / segment : 0; }

// Entries in the lower half, segments in the upper: both are summed at once.
__device__ static inline u64 scan_item(const u32* counts, u32 m, u32 segment, u32 j) {
    u32 count = j < m ? counts[j] : 0;
    return (static_cast<u64>(segments_of(count, segment)) << 32) | count;
}

// The sum before this thread's value, over a block of up to 32 warps; and of all of them. `scratch` holds 33 values.
__device__ static inline u64 scan_exclusive(u64 v, u64* scratch, u64* total) {
    u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    u64 sum = v;
    for (u32 step = 1; step < 32; step <<= 1) {
        u64 before = __shfl_up_sync(FULL, sum, step);
        if (lane >= step) {
            sum += before;
        }
    }
    __syncthreads();
    if (lane == 31) {
        scratch[warp] = sum;
    }
    __syncthreads();
    u64 earlier = 0, all = 0;
    for (u32 w = 0; w < warps; w++) {
        u64 of = scratch[w];
        earlier += w < warp ? of : 0;
        all += of;
    }
    *total = all;
    return earlier + sum - v;
}

// sums [blocks]: of SCAN_BLOCK latents each. 256 threads.
KERNEL columns_sums(const u32* counts, u32 m, u32 segment, u64* sums) {
    __shared__ u64 scratch[33];
    u64 sum = 0, total;
    for (u32 i = 0; i < SCAN_BLOCK / 256; i++) {
        sum += scan_item(counts, m, segment, blockIdx.x * SCAN_BLOCK + i * 256 + threadIdx.x);
    }
    scan_exclusive(sum, scratch, &total);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = total;
    }
}
REGISTER(columns_sums)

// sums [blocks]: what comes before each. One block.
KERNEL columns_carry(u64* sums, u32 blocks) {
    __shared__ u64 scratch[33];
    u64 carry = 0, total;
    for (u32 first = 0; first < blocks; first += blockDim.x) {
        u32 i = first + threadIdx.x;
        u64 before = scan_exclusive(i < blocks ? sums[i] : 0, scratch, &total);
        if (i < blocks) {
            sums[i] = carry + before;
        }
        carry += total;
        __syncthreads();
    }
}
REGISTER(columns_carry)

// starts [m + 1]; counts [m] become where the next entry of each latent goes; segments [m + 1]: the first segment of each latent, and
// owners [segments]: the latent of each. 256 threads.
KERNEL columns_starts(u32* counts, u32 m, u32 segment, const u64* sums, u32* starts, u32* segments, u32* owners, u32 max_segments) {
    __shared__ u64 scratch[33];
    u64 carry = sums[blockIdx.x], total;
    for (u32 i = 0; i < SCAN_BLOCK / 256; i++) {
        u32 j = blockIdx.x * SCAN_BLOCK + i * 256 + threadIdx.x;
        u64 item = scan_item(counts, m, segment, j);
        u64 at = carry + scan_exclusive(item, scratch, &total);
        carry += total;
        u32 start = static_cast<u32>(at), first = static_cast<u32>(at >> 32);
        if (j <= m) {
            starts[j] = start;
            segments[j] = first;
        }
        if (j < m) {
            counts[j] = start;
            for (u32 s = first; s < first + static_cast<u32>(item >> 32) && s < max_segments; s++) {
                owners[s] = j;
            }
        }
        __syncthreads();
    }
}
REGISTER(columns_starts)

// One warp per row: entries to their latents, in any order: row in the upper half, the value's bits in the lower.
KERNEL columns_scatter(const u32* ends, u32 k, u32 capacity, const u32* indices, const f32* values, u32 n, u32 m, u32* next, u64* entries) {
    u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), begin, end;
    if (row >= n) {
        return;
    }
    row_range(ends, k, capacity, row, &begin, &end);
    for (u32 e = begin + (threadIdx.x & 31u); e < end; e += 32) {
        u32 j = indices[e];
        if (j < m) {
            u32 slot = atomicAdd(next + j, 1u);
            entries[slot] = (static_cast<u64>(row) << 32) | __float_as_uint(values[e]);
        }
    }
}
REGISTER(columns_scatter)

// Eight latents per block of 256 threads: a warp each where it has at most 32 entries, else all threads one after the other.
KERNEL columns_sort(const u32* starts, const u64* entries, u32 n, u32 m, u32* rows, f32* values) {
    __shared__ u64 scratch[33];
    __shared__ u32 bits[RANK_WINDOW / 32];
    __shared__ u32 before[RANK_WINDOW / 32];
    u32 lane = threadIdx.x & 31u, first = blockIdx.x * 8, own = first + (threadIdx.x >> 5);
    if (own < m) {
        u32 begin = starts[own], count = starts[own + 1] - begin;
        if (count && count <= 32) {
            u64 entry = lane < count ? entries[begin + lane] : ~0ull;
            u32 rank = 0;
            for (u32 i = 0; i < count; i++) {
                rank += __shfl_sync(FULL, entry, i) < entry;
            }
            if (lane < count) {
                rows[begin + rank] = static_cast<u32>(entry >> 32);
                values[begin + rank] = __uint_as_float(static_cast<u32>(entry));
            }
        }
    }
    for (u32 j = first; j < first + 8 && j < m; j++) {
        u32 begin = starts[j], end = starts[j + 1];
        if (end - begin <= 32) {
            continue;
        }
        u32 ranked = begin;
        for (u32 low = 0; low < n; low += RANK_WINDOW) {
            u32 words = ((n - low < RANK_WINDOW ? n - low : RANK_WINDOW) + 31) / 32;
            for (u32 w = threadIdx.x; w < words; w += blockDim.x) {
                bits[w] = 0;
            }
            __syncthreads();
            for (u32 e = begin + threadIdx.x; e < end; e += blockDim.x) {
                u32 at = static_cast<u32>(entries[e] >> 32) - low;
                if (at < RANK_WINDOW) {
                    atomicOr(bits + (at >> 5), 1u << (at & 31u));
                }
            }
            __syncthreads();
            u32 per = (words + blockDim.x - 1) / blockDim.x, set = 0;
            for (u32 i = 0; i < per; i++) {
                u32 w = threadIdx.x * per + i;
                set += w < words ? __popc(bits[w]) : 0;
            }
            u64 total, sum = scan_exclusive(set, scratch, &total);
            for (u32 i = 0; i < per; i++) {
                u32 w = threadIdx.x * per + i;
                if (w < words) {
                    before[w] = static_cast<u32>(sum);
                    sum += __popc(bits[w]);
                }
            }
            __syncthreads();
            for (u32 e = begin + threadIdx.x; e < end; e += blockDim.x) {
                u64 entry = entries[e];
                u32 row = static_cast<u32>(entry >> 32), at = row - low;
                if (at < RANK_WINDOW) {
                    u32 slot = ranked + before[at >> 5] + __popc(bits[at >> 5] & ((1u << (at & 31u)) - 1));
                    rows[slot] = row;
                    values[slot] = __uint_as_float(static_cast<u32>(entry));
                }
            }
            ranked += static_cast<u32>(total);
            __syncthreads();
        }
    }
}
REGISTER(columns_sort)
