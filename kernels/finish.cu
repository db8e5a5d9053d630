// Lists of candidates -> the k with the largest keys of each row, in descending order: the last step of every fused encode.
// Not for: finding candidates. Whoever fills the lists promises that they hold the row's k largest (of all that may be chosen).

#include "select.cuh"

__device__ static inline u64 finish_max(u64 v) {
    for (int step = 16; step > 0; step >>= 1) {
        u64 other = __shfl_xor_sync(FULL, v, step);
        v = other > v ? other : v;
    }
    return v;
}

// Leaves the k largest of `count` keys at the front, in the order they had; returns the least of them. Keys are unique and >= `low`.
__device__ static inline u64 finish_reduce(u64* keys, u32 count, u32 k, u64 low, u32 lane) {
    u64 high = low;
    for (u32 i = lane; i < count; i += 32) {
        high = keys[i] > high ? keys[i] : high;
    }
    high = finish_max(high) + 1;
    // count(>= low) > k, count(>= high) = 0.
    while (high - low > 1) {
        u64 middle = low + (high - low) / 2;
        u32 above = 0;
        for (u32 i = lane; i < count; i += 32) {
            above += keys[i] >= middle;
        }
        above = warp_sum(above);
        if (above >= k) {
            low = middle;
        } else {
            high = middle;
        }
        if (above == k) {
            break;
        }
    }
    u32 kept = 0;
    for (u32 i = 0; i < count; i += 32) {
        u64 key = i + lane < count ? keys[i + lane] : 0;
        bool keep = key >= low && key != 0;
        u32 votes = __ballot_sync(FULL, keep);
        u32 at = kept + __popc(votes & ((1u << lane) - 1u));
        __syncwarp();
        if (keep && at < k) {
            keys[at] = key;
        }
        __syncwarp();
        kept += __popc(votes);
    }
    return low;
}

// One warp per row. Row r has the lists r * lists_per_row ..; list l is entries[l * cap .. l * cap + counts[l]].
// Dynamic shared memory: `slots` u64 for each warp of the block; slots >= next power of two of k, and >= k + 32; more is faster.
// Writes [n, k] values (0 beyond nnz) and indices (PAD there), descending by value, then ascending by index, and nnz [n].
KERNEL finish(const Entry* entries, const u32* counts, u32 lists_per_row, u32 cap, u32 n, u32 k, u32 slots, f32* values, u32* indices,
              u32* nnz) {
    SHARED_DYN(u64, shared);
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31u;
    u32 row = blockIdx.x * (blockDim.x >> 5) + warp;
    if (row >= n) {
        return;
    }
    u64* keys = shared + static_cast<u64>(warp) * slots;
    u64 first = static_cast<u64>(row) * lists_per_row;
    // Short lists side by side: `width` lanes read each.
    u32 width = 32;
    while (width > 1 && 32 / width < lists_per_row) {
        width >>= 1;
    }
    u32 held = 0;
    u64 least = 0;
    for (u32 base = 0; base < lists_per_row; base += 32 / width) {
        u32 list = base + lane / width;
        bool mine = list < lists_per_row;
        u32 length = mine ? counts[first + list] : 0;
        length = length < cap ? length : cap;
        const Entry* from = entries + (first + (mine ? list : 0)) * cap;
        u32 longest = warp_max(length);
        for (u32 i = 0; i < longest; i += width) {
            u32 at = i + lane % width;
            u64 key = 0;
            if (at < length) {
                Entry entry = from[at];
                key = key_of(__uint_as_float(entry.bits), entry.column);
            }
            bool take = key > least;
            u32 votes = __ballot_sync(FULL, take);
            if (take) {
                keys[held + __popc(votes & ((1u << lane) - 1u))] = key;
            }
            held += __popc(votes);
            __syncwarp();
            if (held + 32 > slots) {
                least = finish_reduce(keys, held, k, least, lane);  // held > slots - 32 >= k
                held = k;
            }
        }
    }
    if (held > k) {
        finish_reduce(keys, held, k, least, lane);
        held = k;
    }
    // Bitonic, descending; empty places are key 0 and sink to the end.
    u32 size = 1;
    while (size < k) {
        size <<= 1;
    }
    for (u32 i = held + lane; i < size; i += 32) {
        keys[i] = 0;
    }
    __syncwarp();
    for (u32 run = 2; run <= size; run <<= 1) {
        for (u32 step = run >> 1; step > 0; step >>= 1) {
            for (u32 i = lane; i < size >> 1; i += 32) {
                u32 low = 2 * i - (i & (step - 1)), high = low + step;
                u64 a = keys[low], b = keys[high];
                bool descending = (low & run) == 0;
                if ((a < b) == descending) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            __syncwarp();
        }
    }
    for (u32 i = lane; i < k; i += 32) {
        u64 at = static_cast<u64>(row) * k + i;
        u64 key = keys[i];
        values[at] = i < held ? key_value(key) : 0.0f;
        indices[at] = i < held ? key_index(key) : PAD;
    }
    if (lane == 0) {
        nnz[row] = held;
    }
}
REGISTER(finish)
