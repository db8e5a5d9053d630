// The `total` largest codes of a whole batch, out of rows that are sorted already (finish.cu): a radix search for the smallest value that
// is kept, over the bits of the values, then each row keeps a prefix of itself. Equal values: the earlier row first, then the lower latent.

#include "common.cuh"

// What the search knows: `prefix` are the upper bits of the smallest kept value, `left` entries of those that share them are kept.
// `short_of` is set where there are fewer entries than wanted: then all are kept.
struct BatchSearch {
    u32 prefix, mask, left, short_of;
};

KERNEL batch_start(BatchSearch* search, u32 total) {
    if (threadIdx.x == 0 && blockIdx.x == 0) {
        *search = BatchSearch{0, 0, total, 0};
    }
}
REGISTER(batch_start)

// One warp per row adds its entries to `histogram` [2048]: of those that share the prefix, the digit of `bits` bits at `shift`.
KERNEL batch_histogram(const f32* values, const u32* lengths, u32 n, u32 width, const BatchSearch* search, u32 shift, u32 bits, u32* histogram) {
    __shared__ u32 bins[2048];
    for (u32 i = threadIdx.x; i < 2048; i += blockDim.x) {
        bins[i] = 0;
    }
    __syncthreads();
    u32 prefix = search->prefix, mask = search->mask;
    u32 warps = gridDim.x * (blockDim.x >> 5);
    for (u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5); row < n; row += warps) {
        for (u32 i = threadIdx.x & 31u; i < lengths[row]; i += 32) {
            u32 key = ordered(values[static_cast<u64>(row) * width + i]);
            if ((key & mask) == prefix) {
                atomicAdd(&bins[(key >> shift) & ((1u << bits) - 1u)], 1u);
            }
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < 2048; i += blockDim.x) {
        if (bins[i]) {
            atomicAdd(&histogram[i], bins[i]);
        }
    }
}
REGISTER(batch_histogram)

// One warp: the digit in which the entry sought lies. Empties the histogram for the next digit.
KERNEL batch_pick(u32* histogram, BatchSearch* search, u32 shift, u32 bits) {
    u32 lane = threadIdx.x, size = 1u << bits, part = size / 32;
    // Lane 0 has the largest digits.
    u32 top = size - lane * part, mine = 0;
    for (u32 i = 0; i < part; i++) {
        mine += histogram[top - 1 - i];
    }
    u32 before = 0;
    for (u32 i = 0; i < 32; i++) {
        u32 other = __shfl_sync(FULL, mine, i);
        before += i < lane ? other : 0;
    }
    u32 left = search->left, short_of = search->short_of;
    u32 all = __shfl_sync(FULL, before + mine, 31);
    __syncwarp();
    if (short_of || all < left) {
        // Only the first digit can say so.
        if (lane == 0) {
            *search = BatchSearch{0, 0xffffffffu, 0, 1};
        }
    } else if (before < left && left <= before + mine) {
        u32 above = before;
        for (u32 i = 0; i < part; i++) {
            u32 digit = top - 1 - i, count = histogram[digit];
            if (left <= above + count) {
                search->prefix |= digit << shift;
                search->mask |= (size - 1u) << shift;
                search->left = left - above;
                break;
            }
            above += count;
        }
    }
    __syncwarp();
    for (u32 i = lane; i < 2048; i += 32) {
        histogram[i] = 0;
    }
}
REGISTER(batch_pick)

// What came of it.
struct BatchFound {
    f32 smallest;  // kept value; infinity where there is none
    u32 kept;      // entries
    u32 too_few;   // fewer than wanted, though a guess held some back
    u32 cut;       // rows that held as many as a row may, and might have had more
};

// One block of 1024 threads. `starts` [n + 1]: where each row's kept entries go. `width` is how many a row may hold; `guessed` says whether
// smaller values were held back.
KERNEL batch_rows(const f32* values, const u32* lengths, u32 n, u32 width, const BatchSearch* search, const f32* guess, u32 d_sae, u32* starts,
                  BatchFound* found) {
    __shared__ u32 sums[33];
    __shared__ u32 carried[3];
    u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5, t = threadIdx.x;
    u32 least = search->prefix, left = search->left;
    bool everything = search->short_of != 0;
    if (t < 3) {
        carried[t] = t == 2 ? 0xffffffffu : 0;  // ties so far, kept so far, smallest key
    }
    u32 cut = 0;
    for (u32 base = 0; base < n; base += 1024) {
        u32 row = base + t, length = row < n ? lengths[row] : 0;
        const f32* own = values + static_cast<u64>(row < n ? row : 0) * width;
        // Sorted: the first entry that is not above, and the first that is below.
        u32 above = length, reach = length;
        if (!everything) {
            for (u32 strict = 0; strict < 2; strict++) {
                u32 low = 0, high = length;
                while (low < high) {
                    u32 mid = (low + high) / 2, key = ordered(own[mid]);
                    if (strict ? key > least : key >= least) {
                        low = mid + 1;
                    } else {
                        high = mid;
                    }
                }
                (strict ? above : reach) = low;
            }
        }
        u32 ties = reach - above;
        for (u32 pass = 0; pass < 2; pass++) {
            // First the ties before this row, then where its kept entries go.
            __syncthreads();
            u32 mine = pass == 0 ? ties : above;
            u32 inside = mine;
            for (u32 step = 1; step < 32; step <<= 1) {
                u32 other = __shfl_up_sync(FULL, inside, step);
                inside += lane >= step ? other : 0;
            }
            if (lane == 31) {
                sums[warp] = inside;
            }
            __syncthreads();
            u32 before = carried[pass] + inside - mine;
            for (u32 i = 0; i < warp; i++) {
                before += sums[i];
            }
            __syncthreads();
            if (t == 1023) {
                carried[pass] = before + mine;
            }
            if (pass == 0) {
                // `above` becomes what the row keeps.
                above += everything || before >= left ? 0 : (left - before < ties ? left - before : ties);
            } else if (row < n) {
                starts[row] = before;
            }
        }
        if (row < n && above > 0) {
            atomicMin(&carried[2], ordered(own[above - 1]));
        }
        cut += row < n && length == width && width < d_sae && (everything || ordered(own[length - 1]) >= least);
    }
    cut = warp_sum(cut);
    __syncthreads();
    if (lane == 0 && cut) {
        atomicAdd(&found->cut, cut);
    }
    if (t == 0) {
        starts[n] = carried[1];
        found->kept = carried[1];
        found->smallest = carried[1] ? unordered(carried[2]) : __uint_as_float(0x7f800000u);
        found->too_few = everything && guess && *guess > 0.0f;
    }
}
REGISTER(batch_rows)

// One warp per row: its kept prefix to where it goes.
KERNEL batch_emit(const f32* values, const u32* indices, u32 n, u32 width, const u32* starts, f32* to_values, u32* to_indices) {
    u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (row >= n) {
        return;
    }
    u32 start = starts[row], length = starts[row + 1] - start;
    for (u32 i = threadIdx.x & 31u; i < length; i += 32) {
        to_values[start + i] = values[static_cast<u64>(row) * width + i];
        to_indices[start + i] = indices[static_cast<u64>(row) * width + i];
    }
}
REGISTER(batch_emit)
