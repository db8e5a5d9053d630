// Streaming top-k: scores come a chunk of columns at a time, and each row keeps a list of those that may still be among its k largest.
// Exact: a column is dropped only when k earlier ones are at least as large. Not for sorting what is left (finish.cu).
//
// A row's state lives in global memory between launches: a list of (value bits, column) in ascending column order, its length, and the
// gate, which a new value must exceed. Chunks must come in ascending order of columns.
//
// The certified form screens with rounded operands: the true value lies within E of the score, so a column stays while its upper end
// reaches L, the k-th largest lower end so far. Every survivor is scored again in f64 afterwards (rescore).

#include "common.cuh"

// What bounds |true - score| for a row and a column.
struct Bound {
    f32 lost;  // |x - x_q|
    f32 kept;  // |x_q|
    f32 sum;   // of rounding while summing, relative to |x_q| |w_q|
};

// `norms` are |w_q| and |w - w_q| of the column. The last factor covers the roundings of this very formula and of adding the bias.
__device__ static inline f32 bound_of(Bound row, float2 norms, f32 score) {
    f32 e = row.lost * (norms.x + norms.y) + row.kept * norms.y + row.sum * row.kept * norms.x + 0x1p-22f * fabsf(score);
    // Products that underflow are flushed to zero on some units.
    return e * (1.0f + 0x1p-18f) + 1e-33f;
}

__device__ static inline u32 lanes_below(u32 mask, u32 lane) { return __popc(mask & ((1u << lane) - 1u)); }

// Values, or their lower ends; 0 where nothing bounds the value.
template <bool CERTIFIED>
__device__ static inline u32 merge_key(uint2 entry, Bound row, const float2* norms) {
    f32 v = __uint_as_float(entry.x);
    if (CERTIFIED) {
        v -= bound_of(row, norms[entry.y], v);
        return v == v && v < 0x1p127f ? ordered(v) : 0;
    }
    return ordered(v);
}

// May the value be at least `level`? Yes where nothing bounds it.
__device__ static inline bool may_reach(f32 v, Bound row, float2 norms, f32 level) { return !(v + bound_of(row, norms, v) < level); }

// Shortens a list to those that can still win, in place and in order; returns how many stay and raises the gate. All lanes call it.
template <bool CERTIFIED>
__device__ static u32 compact(uint2* list, u32 count, u32 k, f32* gate, Bound row, const float2* norms) {
    u32 lane = threadIdx.x & 31u;
    if (count <= k) {
        return count;
    }
    __syncwarp();
    u32 low = 0xffffffffu, high = 0;
    for (u32 i = lane; i < count; i += 32) {
        u32 key = merge_key<CERTIFIED>(list[i], row, norms);
        low = key < low ? key : low;
        high = key > high ? key : high;
    }
    low = ~warp_max(~low);
    high = warp_max(high);
    // The largest key that k entries reach; `at` of them do. A few more than k are as good, and end the search early.
    u32 at = count, slack = CERTIFIED ? 0 : k + (k >> 3);
    while (low < high && at > slack) {
        u32 mid = low + ((high - low) >> 1) + 1;
        u32 reach = 0;
        for (u32 i = lane; i < count; i += 32) {
            reach += merge_key<CERTIFIED>(list[i], row, norms) >= mid;
        }
        reach = warp_sum(reach);
        if (reach >= k) {
            low = mid;
            at = reach;
        } else {
            high = mid - 1;
        }
    }
    f32 level = unordered(low);
    // Ties at the level beyond k: the earliest stay.
    u32 above = 0;
    if (!CERTIFIED && at > slack) {
        for (u32 i = lane; i < count; i += 32) {
            above += ordered(__uint_as_float(list[i].x)) > low;
        }
        above = warp_sum(above);
    }
    u32 ties = !CERTIFIED && at > slack ? k - above : 0xffffffffu;
    u32 kept = 0, tied = 0;
    for (u32 base = 0; base < count; base += 32) {
        uint2 entry = base + lane < count ? list[base + lane] : make_uint2(0, 0);
        bool stay = base + lane < count;
        bool tie = false;
        if (CERTIFIED) {
            stay = stay && may_reach(__uint_as_float(entry.x), row, norms[stay ? entry.y : 0], level);
        } else {
            u32 key = ordered(__uint_as_float(entry.x));
            tie = stay && key == low;
            stay = stay && key >= low;
        }
        u32 equal = __ballot_sync(FULL, tie);
        if (tie && tied + lanes_below(equal, lane) >= ties) {
            stay = false;
        }
        tied += __popc(equal);
        u32 staying = __ballot_sync(FULL, stay);
        __syncwarp();
        if (stay) {
            list[kept + lanes_below(staying, lane)] = entry;
        }
        kept += __popc(staying);
        __syncwarp();
    }
    if (level > *gate) {
        *gate = level;
    }
    return kept;
}

// One warp's row and one run of scores, from memory of any kind. Returns the new length; `lost` is set where certified candidates no
// longer fit, and the row must be done in full.
template <bool CERTIFIED>
__device__ static u32 stream(const f32* scores, const f32* bias, u32 columns, u32 first, u32 k, u32 cap, uint2* list, u32 count, f32* gate,
                             Bound row, const float2* norms, bool* lost) {
    u32 lane = threadIdx.x & 31u;
    for (u32 base = 0; base < columns; base += 256) {
        f32 value[8];
        bool any = false;
        UNROLL for (u32 i = 0; i < 8; i++) {
            u32 c = base + 32 * i + lane;
            // What lies beyond the chunk never passes.
            value[i] = c < columns ? scores[c] + (bias ? bias[c] : 0.0f) : __uint_as_float(0x7fc00000u);
            any = any || (CERTIFIED ? true : value[i] > *gate);
        }
        if (!__any_sync(FULL, any)) {
            continue;
        }
        UNROLL for (u32 i = 0; i < 8; i++) {
            u32 c = base + 32 * i + lane;
            bool pass = value[i] > *gate;
            if (CERTIFIED) {
                // A gate of 0 under ReLU lets an upper end of 0 in: rescoring drops it.
                pass = c < columns && may_reach(value[i], row, norms[first + c], *gate);
            }
            u32 passing = __ballot_sync(FULL, pass);
            if (pass) {
                list[count + lanes_below(passing, lane)] = make_uint2(__float_as_uint(value[i] + 0.0f), first + c);
            }
            count += __popc(passing);
        }
        if (count > cap - 256) {
            count = compact<CERTIFIED>(list, count, k, gate, row, norms);
            if (CERTIFIED && count > cap - 256) {
                *lost = true;
                return 0;
            }
        }
    }
    return count;
}

__device__ static inline f32 start_gate(const f32* guess, bool relu) {
    f32 least = relu ? 0.0f : __uint_as_float(0xff800000u);
    return guess && *guess > least ? *guess : least;
}

// Before the first chunk. `guess` (may be null) points to a value that selections are believed to exceed.
KERNEL merge_start(u32 n, const f32* guess, u32 relu, u32* counts, f32* gates) {
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < n) {
        counts[row] = 0;
        gates[row] = start_gate(guess, relu);
    }
}
REGISTER(merge_start)

// One warp per row: `columns` scores of each row (row stride `stride`), which are the latents from `first` on. Lists hold `cap` >= k + 288.
KERNEL merge_topk(const f32* scores, u64 stride, const f32* bias, u32 n, u32 columns, u32 first, u32 k, u32 cap, uint2* lists, u32* counts,
                  f32* gates) {
    u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (row >= n) {
        return;
    }
    f32 gate = gates[row];
    bool lost = false;
    u32 count = stream<false>(scores + row * stride, bias ? bias + first : nullptr, columns, first, k, cap, lists + static_cast<u64>(row) * cap,
                              counts[row], &gate, Bound{0, 0, 0}, nullptr, &lost);
    __syncwarp();  // all lanes have read what one now writes
    if ((threadIdx.x & 31u) == 0) {
        counts[row] = count;
        gates[row] = gate;
    }
}
REGISTER(merge_topk)

static const u32 LOST = 0xffffffffu;

// The same with bounds: `row_norms` [n, 2] and `norms` [d_sae, 2] as cast_rows writes them. A row whose candidates do not fit is marked
// LOST in `counts`, and is left alone by later chunks.
KERNEL merge_certified(const f32* scores, u64 stride, const f32* bias, u32 n, u32 columns, u32 first, u32 k, u32 cap, uint2* lists,
                       u32* counts, f32* gates, f32 sum, const float2* row_norms, const float2* norms) {
    u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (row >= n || counts[row] == LOST) {
        return;
    }
    f32 gate = gates[row];
    float2 own = row_norms[row];
    Bound bound = Bound{own.y, own.x, sum};
    // Norms that are not finite bound nothing.
    bool lost = !(own.x < 0x1p100f && own.y < 0x1p100f);
    u32 count = 0;
    if (!lost) {
        count = stream<true>(scores + row * stride, bias ? bias + first : nullptr, columns, first, k, cap,
                             lists + static_cast<u64>(row) * cap, counts[row], &gate, bound, norms, &lost);
    }
    __syncwarp();
    if ((threadIdx.x & 31u) == 0) {
        counts[row] = lost ? LOST : count;
        gates[row] = gate;
    }
}
REGISTER(merge_certified)

// x . w + b in f64, one warp, rounded once.
__device__ static inline f32 exact_dot(const f32* x, const f32* w, f32 b, u32 d) {
    f64 sum = 0;
    for (u32 i = threadIdx.x & 31u; i < d; i += 32) {
        sum += static_cast<f64>(x[i]) * static_cast<f64>(w[i]);
    }
    sum = warp_sum(sum);
    return static_cast<f32>(sum + static_cast<f64>(b));
}

// One warp per row: survivors of the certified merge get their exact values, and those that are not selectable go.
KERNEL rescore(const f32* x, const f32* w, const f32* bias, u32 n, u32 d, u32 k, u32 cap, uint2* lists, u32* counts, f32* gates, u32 relu,
               f32 sum, const float2* row_norms, const float2* norms, u64* scored) {
    u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (row >= n || counts[row] == LOST) {
        return;
    }
    uint2* list = lists + static_cast<u64>(row) * cap;
    float2 own = row_norms[row];
    f32 gate = gates[row];
    u32 count = compact<true>(list, counts[row], k, &gate, Bound{own.y, own.x, sum}, norms);
    if (lane == 0) {
        atomicAdd(scored, static_cast<u64>(count));
    }
    f32 least = relu ? 0.0f : __uint_as_float(0xff800000u);
    u32 kept = 0;
    for (u32 i = 0; i < count; i++) {
        __syncwarp();
        u32 j = list[i].y;
        f32 v = exact_dot(x + static_cast<u64>(row) * d, w + static_cast<u64>(j) * d, bias ? bias[j] : 0.0f, d);
        __syncwarp();
        if (v > least) {
            if (lane == 0) {
                list[kept] = make_uint2(__float_as_uint(v + 0.0f), j);
            }
            kept++;
        }
    }
    __syncwarp();
    if (lane == 0) {
        counts[row] = kept;
    }
}
REGISTER(rescore)

// One block of 256 threads per row: rows marked LOST are done in full, in f64; all others return at once.
KERNEL exact_rows(const f32* x, const f32* w, const f32* bias, u32 n, u32 d, u32 m, u32 k, u32 cap, uint2* lists, u32* counts, u32 relu,
                  u32* done) {
    __shared__ f32 scores[256];
    u32 row = blockIdx.x, lane = threadIdx.x & 31u, warp = threadIdx.x >> 5;
    bool mine = row < n && counts[row] == LOST;
    // Every thread has read the mark before one of them overwrites it.
    __syncthreads();
    if (!mine) {
        return;
    }
    u32 count = 0;
    f32 gate = start_gate(nullptr, relu != 0);
    bool lost = false;
    for (u32 first = 0; first < m; first += 256) {
        u32 columns = m - first < 256 ? m - first : 256;
        for (u32 c = warp; c < columns; c += 8) {
            u32 j = first + c;
            f32 v = exact_dot(x + static_cast<u64>(row) * d, w + static_cast<u64>(j) * d, bias ? bias[j] : 0.0f, d);
            if (lane == 0) {
                scores[c] = v;
            }
        }
        __syncthreads();
        if (warp == 0) {
            count = stream<false>(scores, nullptr, columns, first, k, cap, lists + static_cast<u64>(row) * cap, count, &gate,
                                  Bound{0, 0, 0}, nullptr, &lost);
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        counts[row] = count;
        atomicAdd(done, 1u);
    }
}
REGISTER(exact_rows)
