// Exact top-k out of a stream of columns whose scores are never stored: the part that the fused encodes share.
//
// A row's columns arrive in ascending order, spread over the four lanes of a quad; each lane keeps the candidates it saw in a list of its own.
// A column is listed iff its value exceeds the row's gate. Now and then the lists are compacted: a bound is found that at least k listed
// values reach, what is below goes, and the gate rises to it. Streams that look at other columns of the same row (another part of the grid,
// another warp) tell each other their bounds through one word per row; reading an old one is safe.
//
// The gate, in the order of `ordered`: emit iff ordered(v) > max(own, foreign - 1, floor). An own bound is strict: k entries that reach it
// have lower columns, so they win the ties. A foreign one must admit equality: the columns behind it may be higher. What is dropped has k
// better columns, so the union of the lists holds the k largest keys whatever the order of events, and `finish` picks them.
//
// A compaction leaves at most `most` = k + k / 10 entries per row, all of which may be in one list: a list needs room for these and for what
// one tile can add.
#pragma once

#include "common.cuh"

#ifdef __CUDACC__
#define ROLLED _Pragma("unroll 1")
#else
#define ROLLED
#endif

// A candidate: the bits of its f32 value, and its column.
struct alignas(8) Entry {
    u32 bits;
    u32 column;
};

static const u32 ORDERED_ZERO = 0x80000000u;
static const u32 ORDERED_INFINITY = 0xff800000u;
static const u32 ORDERED_MINUS_INFINITY = 0x007fffffu;

__device__ static inline u32 select_most(u32 k) { return k + k / 10; }

// Where the gate begins: +0 with ReLU, else -infinity; rows that do not exist choose nothing.
__device__ static inline u32 select_floor(bool relu, bool exists) {
    return !exists ? ORDERED_INFINITY : relu ? ORDERED_ZERO : ORDERED_MINUS_INFINITY;
}

// The gate after another stream's bound was read, 0: it has none. Below +0 comes not -0, which is the same value.
__device__ static inline u32 select_heed(u32 gate, u32 foreign) {
    u32 below = foreign == 0 ? 0 : foreign - (foreign == ORDERED_ZERO ? 2 : 1);
    return gate > below ? gate : below;
}

// Another stream's bound, as it is now or was a little ago.
__device__ static inline u32 select_peek(const u32* bound) { return *const_cast<const volatile u32*>(bound); }

// Lists v if it passes (v > gate, false for NaN); no branch. `end`: where this lane's list ends, in bytes from `entries`: the address of
// each entry is then a third of the instructions that it is in 64 bits.
__device__ static inline void select_offer(Entry* entries, u32& end, f32 v, f32 gate, u32 column) {
#ifdef __CUDACC__
    asm volatile(
        "{\n .reg .pred p;\n .reg .u64 to;\n setp.gt.f32 p, %1, %2;\n cvt.u64.u32 to, %0;\n add.u64 to, to, %5;\n"
        " @p st.global.v2.b32 [to], {%3, %4};\n @p add.u32 %0, %0, 8;\n}"
        : "+r"(end)
        : "f"(v), "f"(gate), "r"(__float_as_uint(v)), "r"(column), "l"(entries)
        : "memory");
#else
    if (v > gate) {
        entries[end / 8] = Entry{__float_as_uint(v), column};
        end += 8;
    }
#endif
}

__device__ static inline u32 quad_sum(u32 v) {
    v += __shfl_xor_sync(FULL, v, 1);
    return v + __shfl_xor_sync(FULL, v, 2);
}
__device__ static inline u32 quad_max(u32 v) {
    u32 other = __shfl_xor_sync(FULL, v, 1);
    v = other > v ? other : v;
    other = __shfl_xor_sync(FULL, v, 2);
    return other > v ? other : v;
}

// One row per quad, the whole warp together: rows with more than `most` entries lose what cannot win, and their gate rises.
// `begin` .. `end` is this lane's list, in bytes from `entries`; its new end is returned. The first 64 entries are read once, into registers
// (those of the idle accumulators), to search among them.
__device__ static inline u32 select_compact(Entry* entries, u32 begin, u32 end, u32& gate, u32 k, u32 most) {
    const u32 HELD = 64, BATCH = 16, MINUS_INFINITY = 0xff800000u;  // no list has it
    Entry* list = entries + begin / 8;
    u32 count = (end - begin) / 8, longest = warp_max(count);
    u32 held[HELD];
    UNROLL for (u32 i = 0; i < HELD; ++i) { held[i] = 0; }  // else their registers would be in use at all times
    u32 largest = 0;
    UNROLL for (u32 b = 0; b < HELD; b += BATCH) {
        if (longest > b) {
            UNROLL for (u32 i = b; i < b + BATCH; ++i) { held[i] = i < count ? list[i].bits : MINUS_INFINITY; }
            UNROLL for (u32 i = b; i < b + BATCH; ++i) {
                held[i] = ordered(__uint_as_float(held[i]));
                largest = held[i] > largest ? held[i] : largest;
            }
        }
    }
    for (u32 i = HELD; i < count; ++i) {
        u32 bits = ordered(__uint_as_float(list[i].bits));
        largest = bits > largest ? bits : largest;
    }
    // Bisection: `reach` >= k entries are >= low, `above` < k are >= high. First of all, how many reach the gate: entries from before a
    // foreign bound was read may not.
    u32 total = quad_sum(count), reach = total, above = 0;
    u32 low = gate, high = quad_max(largest) + 1, middle = low;
    bool crowded = total > most, search = crowded;
    while (__any_sync(FULL, search)) {
        u32 mine = 0;
        UNROLL for (u32 b = 0; b < HELD; b += BATCH) {
            if (longest > b) {
                UNROLL for (u32 i = b; i < b + BATCH; ++i) { mine += held[i] >= middle; }
            }
        }
        for (u32 i = HELD; i < count; ++i) {
            mine += ordered(__uint_as_float(list[i].bits)) >= middle;
        }
        u32 at = quad_sum(mine);
        if (search) {
            if (at >= k) {
                low = middle;
                reach = at;
            } else {
                high = middle;
                above = at;
            }
            search = reach > most && high > low + 1;
            middle = low + (high - low) / 2;
        }
    }
    // Too many at exactly `low`: of those the lowest columns, so that k stay. Fewer than `need` of them are < first, at least that many are
    // < last.
    u32 need = k - above, first = 0, last = PAD;
    search = crowded && reach > most && high == low + 1;
    while (__any_sync(FULL, search)) {
        u32 bound = first + (last - first) / 2, mine = 0;
        for (u32 i = 0; search && i < count; ++i) {
            Entry entry = list[i];
            mine += ordered(__uint_as_float(entry.bits)) == low && entry.column < bound;
        }
        u32 at = quad_sum(mine);
        if (search) {
            if (at >= need) {
                last = bound;
            } else {
                first = bound;
            }
            search = at != need && last - first > 1;
        }
    }
    if (!crowded) {
        return end;
    }
    gate = low;
    u32 kept = 0;
    for (u32 b = 0; b < count; b += BATCH) {
        Entry entry[BATCH];
        UNROLL for (u32 i = 0; i < BATCH; ++i) { entry[i] = b + i < count ? list[b + i] : Entry{0, PAD}; }
        UNROLL for (u32 i = 0; i < BATCH; ++i) {
            u32 bits = ordered(__uint_as_float(entry[i].bits));
            if (b + i < count && (bits > low || (bits == low && entry[i].column < last))) {
                list[kept] = entry[i];
                ++kept;
            }
        }
    }
    return begin + 8 * kept;
}

// All rows of a warp: lane's row r is `row` + 8 r and its list begins `step` bytes after that of row r - 1. Tells the other streams the
// bounds, if `bounds` [n] is not null.
template <u32 ROWS>
__device__ static inline void select_compact_rows(Entry* entries, u32 begin, u32 step, u32 (&end)[ROWS], u32 (&gate)[ROWS], u32 k, u32 most,
                                                  u32* bounds, u32 row, u32 n) {
    ROLLED for (u32 r = 0; r < ROWS; ++r) {
        u32 new_gate = gate[0];
        u32 new_end = select_compact(entries, begin + r * step, end[0], new_gate, k, most);
        if (bounds && (threadIdx.x & 3u) == 0 && row + 8 * r < n) {
            atomicMax(bounds + row + 8 * r, new_gate);
        }
        // The rows take turns in place 0: registers have no index.
        UNROLL for (u32 i = 0; i + 1 < ROWS; ++i) {
            end[i] = end[i + 1];
            gate[i] = gate[i + 1];
        }
        end[ROWS - 1] = new_end;
        gate[ROWS - 1] = new_gate;
    }
}
