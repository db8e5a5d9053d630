// Exact top-k out of a stream of columns whose scores are never stored: the part that the fused encodes share.
//
// A row's columns arrive in ascending order, spread over the four lanes of a quad; each lane keeps the candidates it saw in a list of its own.
// A column is listed iff its value exceeds the row's gate. Now and then the lists are compacted: a bound `own` is found that at least k
// listed values reach, what is below goes, and the gate rises. Streams that look at other columns of the same row (another part of the
// grid) tell each other their bounds through one word per row; reading an old one is safe.
//
// The gate, in the order of `ordered`: emit iff ordered(v) > max(own, foreign - 1, floor). `own` is strict: k entries that reach it have
// lower columns, so they win the ties. `foreign` must admit equality: the columns behind it may be higher. The lists' union therefore holds
// the k largest keys whatever the order of events, and `finish` picks them. A lane's list needs room for `most` entries and those
// of one tile: a compaction leaves at most `most` = k + k / 10 per row, all of which may be in one list.
#pragma once

#include "common.cuh"

// A candidate: the bits of its f32 value, and its column.
struct alignas(8) Entry {
    u32 bits;
    u32 column;
};

static const u32 ORDERED_ZERO = 0x80000000u;
static const u32 ORDERED_INFINITY = 0xff800000u;
static const u32 ORDERED_MINUS_INFINITY = 0x007fffffu;

// What a row may keep after a compaction; between k and this a bound is good enough.
__device__ static inline u32 select_most(u32 k) { return k + k / 10; }

// Where `own` begins: above +0 with ReLU, else above -infinity; rows that do not exist choose nothing.
__device__ static inline u32 select_floor(bool relu, bool exists) {
    return !exists ? ORDERED_INFINITY : relu ? ORDERED_ZERO : ORDERED_MINUS_INFINITY;
}

// v is listed iff v > gate; false for NaN. `foreign` 0: none. Below +0 comes not -0, which is the same value.
__device__ static inline f32 select_gate(u32 own, u32 foreign) {
    u32 below = foreign == 0 ? 0 : foreign - (foreign == ORDERED_ZERO ? 2 : 1);
    return unordered(own > below ? own : below);
}

// Lists v if it passes; no branch. `end`: where this lane's list ends, in bytes from `entries` (32 bits are a third of the instructions).
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

// Another stream's bound, as it is now or was a little ago.
__device__ static inline u32 select_peek(const u32* bound) { return *const_cast<const volatile u32*>(bound); }

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

// One row per quad, the whole warp together: rows with more than `most` entries lose what cannot win, and their `own` rises.
// `begin` .. `end` is this lane's list, in bytes from `entries`; its new end is returned. Lists up to 64 long are read once into registers (in place of the idle accumulators) to search.
__device__ static inline u32 select_compact(Entry* entries, u32 begin, u32 end, u32& own, u32 foreign, u32 k, u32 most) {
    const u32 HELD = 64, BATCH = 16, MINUS_INFINITY = 0xff800000u;  // no list has it
    Entry* list = entries + begin / 8;
    u32 count = (end - begin) / 8;
    u32 longest = warp_max(count);
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
    // Bisection: `reach` entries are >= low, and `above` >= high.
    u32 total = quad_sum(count), reach = total, above = 0;
    u32 low = own, high = quad_max(largest) + 1;
    bool crowded = total > most;
    bool search = crowded;
    while (__any_sync(FULL, search)) {
        u32 middle = low + (high - low) / 2, mine = 0;
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
            search = reach > most && high - low > 1;
        }
    }
    // Too many at exactly `low`: of those the lowest columns, so that k stay.
    u32 need = k - above, first = 0, last = PAD;  // fewer than `need` of them are < first, at least that many are < last
    search = crowded && reach > most;
    while (__any_sync(FULL, search)) {
        u32 middle = first + (last - first) / 2, mine = 0;
        for (u32 i = 0; search && i < count; ++i) {
            Entry entry = list[i];
            mine += ordered(__uint_as_float(entry.bits)) == low && entry.column < middle;
        }
        u32 at = quad_sum(mine);
        if (search) {
            if (at >= need) {
                last = middle;
            } else {
                first = middle;
            }
            search = at != need && last - first > 1;
        }
    }
    if (!crowded) {
        return end;
    }
    own = low;
    u32 kept = 0;
    for (u32 b = 0; b < count; b += BATCH) {
        Entry entry[BATCH];
        UNROLL for (u32 i = 0; i < BATCH; ++i) { entry[i] = b + i < count ? list[b + i] : Entry{0, PAD}; }
        UNROLL for (u32 i = 0; i < BATCH; ++i) {
            u32 bits = ordered(__uint_as_float(entry[i].bits));
            bool keep = b + i < count && bits >= foreign && (bits > low || (bits == low && entry[i].column < last));
            if (keep) {
                list[kept] = entry[i];
                ++kept;
            }
        }
    }
    return begin + 8 * kept;
}
