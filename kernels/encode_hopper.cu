// Fused encode for sm_90a: x w^T + bias by TMA and wgmma, candidates chosen while the products are still in registers.
// Not for: other chips (encode_ampere.cu), and the last step, `finish`. No score is stored.
//
// A block owns 128 rows of x and walks a range of w's tiles of 256 rows. Warpgroup 0 produces: one thread starts the copies, one warp
// brings the bias. Warpgroups 1 and 2 own 64 rows each: a quad of lanes has two rows, all 64 scores of a row in a lane go through that row's gate
// (select.cuh). The two do not wait for each other: while one selects, the other multiplies.
//
// In a cluster of two, blocks of other rows and the same tiles, each block copies half of a tile of w, and the copy engine puts it into
// both.
//
// -DHOPPER_STAGES=n: depth of the ring. -DHOPPER_LAG=n: warpgroup 2 starts n nanoseconds late. -DBRING_UP=1: `entries` is f32 [n, m] and
// gets the scores. -DBRING_UP=2: no compaction; cap must hold a lane's share of the range, 64 per tile.

#include "hopper.cuh"
#include "select.cuh"

#ifndef HOPPER_STAGES
#define HOPPER_STAGES 4
#endif
#ifndef HOPPER_LAG
#define HOPPER_LAG 0
#endif
#ifndef BRING_UP
#define BRING_UP 0
#endif

static const u32 HOPPER_ROWS = 128, HOPPER_COLUMNS = 256, HOPPER_DEPTH = 64;
static const u32 HOPPER_X_BYTES = HOPPER_ROWS * HOPPER_DEPTH * 2, HOPPER_W_BYTES = HOPPER_COLUMNS * HOPPER_DEPTH * 2;
static const u32 HOPPER_STAGE_BYTES = HOPPER_X_BYTES + HOPPER_W_BYTES;
static const u32 HOPPER_BOX_ROWS = 128;  // of both tensor maps

struct HopperShared {
    alignas(1024) u8 stages[HOPPER_STAGES][HOPPER_STAGE_BYTES];
    alignas(128) Pair bias[2][HOPPER_COLUMNS / 2];
    u64 full[HOPPER_STAGES], empty[HOPPER_STAGES];
    u64 bias_full[2], bias_empty[2];
};

#if HOPPER

// One thread: copies of every step of every tile, as far ahead as the ring allows.
template <u32 BLOCKS>
__device__ static inline void hopper_copy(HopperShared* shared, const TensorMap* x_map, const TensorMap* w_map, u32 first, u32 last,
                                          u32 steps) {
    u32 stage = 0, phase = 0, half = blockIdx.x % BLOCKS;
    for (u32 tile = first; tile < last; ++tile) {
        for (u32 step = 0; step < steps; ++step) {
            mbarrier_wait(&shared->empty[stage], phase ^ 1);
            u64* full = &shared->full[stage];
            u8* to = shared->stages[stage];
            i32 column = static_cast<i32>(step * HOPPER_DEPTH);
            mbarrier_expect(full, HOPPER_STAGE_BYTES);
            tma_load(to, x_map, full, column, static_cast<i32>(blockIdx.x * HOPPER_ROWS));
            for (u32 box = half; box < 2; box += BLOCKS) {
                u8* place = to + HOPPER_X_BYTES + box * (HOPPER_W_BYTES / 2);
                i32 row = static_cast<i32>(tile * HOPPER_COLUMNS + box * HOPPER_BOX_ROWS);
                if (BLOCKS == 2) {
                    tma_load_both(place, w_map, full, column, row);
                } else {
                    tma_load(place, w_map, full, column, row);
                }
            }
            if (++stage == HOPPER_STAGES) {
                stage = 0;
                phase ^= 1;
            }
        }
    }
}

// One warp: the bias of every tile; columns beyond m can never be chosen.
__device__ static inline void hopper_bias(HopperShared* shared, const f32* bias, u32 m, u32 first, u32 last) {
    u32 lane = threadIdx.x & 31u;
    for (u32 tile = first; tile < last; ++tile) {
        u32 turn = tile - first, half = turn & 1;
        mbarrier_wait(&shared->bias_empty[half], (turn >> 1 & 1) ^ 1);
        f32* to = &shared->bias[half][0].even;
        for (u32 i = lane; i < HOPPER_COLUMNS; i += 32) {
            u32 column = tile * HOPPER_COLUMNS + i;
            to[i] = column < m ? bias[column] : unordered(ORDERED_MINUS_INFINITY);
        }
        mbarrier_arrive(&shared->bias_full[half]);
    }
}

// A warpgroup starts the products of one step, the first of a tile or a later one, when its operands are there.
template <bool FIRST>
__device__ static inline void hopper_multiply(HopperShared* shared, u32 group, u32& stage, u32& phase, f32 (&acc)[128]) {
    mbarrier_wait(&shared->full[stage], phase);
    u64 a = wgmma_descriptor(shared->stages[stage] + group * (HOPPER_X_BYTES / 2));
    u64 b = wgmma_descriptor(shared->stages[stage] + HOPPER_X_BYTES);
    wgmma_fence();
    if (FIRST) {
        wgmma_begin(acc, a, b);
    } else {
        wgmma_add(acc, a, b);
    }
    UNROLL for (u32 part = 1; part < HOPPER_DEPTH / 16; ++part) { wgmma_add(acc, a + 2 * part, b + 2 * part); }
    wgmma_commit();
    if (++stage == HOPPER_STAGES) {
        stage = 0;
        phase ^= 1;
    }
}

// The calling warp has read the stage: whoever fills it, here or in the other block, may know.
template <u32 BLOCKS>
__device__ static inline void hopper_release(u64* empty, bool leader) {
    if (leader) {
        if (BLOCKS == 2) {
            mbarrier_arrive_at(empty, 0);
            mbarrier_arrive_at(empty, 1);
        } else {
            mbarrier_arrive(empty);
        }
    }
}

// A warpgroup: products and selection for its 64 rows.
template <u32 BLOCKS>
__device__ static inline void hopper_choose(HopperShared* shared, u32 n, u32 m, u32 steps, u32 k, bool relu, u32 first, u32 last,
                                            u32* bounds, Entry* entries, u32* counts, u32 cap) {
    u32 group = __shfl_sync(FULL, threadIdx.x / 128 - 1, 0);  // tells the compiler that the warp agrees
    u32 lane = threadIdx.x & 31u, quad = lane & 3u;
    u32 row = blockIdx.x * HOPPER_ROWS + group * 64 + (threadIdx.x % 128) / 32 * 16 + lane / 4;  // and row + 8
    bool leader = lane == 0;
    u32 splits = gridDim.y, lists = splits * 4;
    u32 list = row * lists + blockIdx.y * 4 + quad;
    u32 step_bytes = 8 * lists * cap * 8, begin = list * cap * 8;
    u32 end[2] = {begin, begin + step_bytes};
    u32 gate[2] = {select_floor(relu, row < n), select_floor(relu, row + 8 < n)};
    const u32* bound = bounds + (row < n ? row : 0);
    const u32* bound8 = bounds + (row + 8 < n ? row + 8 : 0);
    u32 most = select_most(k), room = (cap - HOPPER_COLUMNS / 4) * 8;
    u32 stage = 0, phase = 0, due = 1;
#if HOPPER_LAG
    if (group == 1) {
        __nanosleep(HOPPER_LAG);
    }
#endif
    f32 acc[128];
    for (u32 tile = first; tile < last; ++tile) {
        u32 foreign = 0, foreign8 = 0;
        if (splits > 1) {
            foreign = select_peek(bound);
            foreign8 = select_peek(bound8);
        }
        u32 previous = stage;
        hopper_multiply<true>(shared, group, stage, phase, acc);
        for (u32 step = 1; step < steps; ++step) {
            u32 current = stage;
            hopper_multiply<false>(shared, group, stage, phase, acc);
            // All but the products just started are done: the stage before is free.
            wgmma_wait<1>();
            hopper_release<BLOCKS>(&shared->empty[previous], leader);
            previous = current;
        }
        wgmma_wait<0>();
        wgmma_settle(acc);
        hopper_release<BLOCKS>(&shared->empty[previous], leader);
        u32 turn = tile - first, half = turn & 1;
        mbarrier_wait(&shared->bias_full[half], turn >> 1 & 1);
        const Pair* bias = shared->bias[half] + quad;
        gate[0] = select_heed(gate[0], foreign);
        gate[1] = select_heed(gate[1], foreign8);
        f32 above = unordered(gate[0]), above8 = unordered(gate[1]);
        u32 column = tile * HOPPER_COLUMNS + 2 * quad;
        UNROLL for (u32 part = 0; part < 8; ++part) {
            f32* v = acc + part * 16;
            UNROLL for (u32 i = 0; i < 4; ++i) {
                Pair add = load_pair(bias + part * 16 + i * 4);
                v[4 * i] += add.even;
                v[4 * i + 1] += add.odd;
                v[4 * i + 2] += add.even;
                v[4 * i + 3] += add.odd;
            }
            if (BRING_UP == 1) {
                f32* scores = reinterpret_cast<f32*>(entries);
                UNROLL for (u32 i = 0; i < 16; ++i) {
                    u32 at = column + part * 32 + i / 4 * 8 + (i & 1), to = row + (i & 2) * 4;
                    if (to < n && at < m) {
                        scores[static_cast<u64>(to) * m + at] = v[i];
                    }
                }
                continue;
            }
            f32 best = fmaxf(fmaxf(fmaxf(v[0], v[1]), fmaxf(v[4], v[5])), fmaxf(fmaxf(v[8], v[9]), fmaxf(v[12], v[13])));
            f32 best8 = fmaxf(fmaxf(fmaxf(v[2], v[3]), fmaxf(v[6], v[7])), fmaxf(fmaxf(v[10], v[11]), fmaxf(v[14], v[15])));
            if (__any_sync(FULL, best > above || best8 > above8)) {
                UNROLL for (u32 i = 0; i < 4; ++i) {
                    u32 at = column + part * 32 + i * 8;
                    select_offer(entries, end[0], v[4 * i], above, at);
                    select_offer(entries, end[0], v[4 * i + 1], above, at + 1);
                    select_offer(entries, end[1], v[4 * i + 2], above8, at);
                    select_offer(entries, end[1], v[4 * i + 3], above8, at + 1);
                }
            }
        }
        __syncwarp();
        if (leader) {
            mbarrier_arrive(&shared->bias_empty[half]);
        }
        // At tiles 1, 2, 4, 8, .. of the range, and whenever a list could not take another tile.
        bool tight = end[0] - begin > room || end[1] - begin - step_bytes > room;
        if (BRING_UP == 0 && (turn + 1 == due || __any_sync(FULL, tight)) && tile + 1 < last) {
            due = 2 * (turn + 1);
            select_compact_rows(entries, begin, step_bytes, end, gate, k, most, splits > 1 ? bounds : nullptr, row, n);
        }
    }
    if (row < n) {
        counts[list] = (end[0] - begin) / 8;
    }
    if (row + 8 < n) {
        counts[list + 8 * lists] = (end[1] - begin - step_bytes) / 8;
    }
}

template <u32 BLOCKS>
__device__ static inline void hopper_encode(u8* bytes, const TensorMap* x_map, const TensorMap* w_map, const f32* bias, u32 n, u32 m, u32 d,
                                            u32 k, bool relu, u32* bounds, Entry* entries, u32* counts, u32 cap) {
    HopperShared* shared = reinterpret_cast<HopperShared*>(bytes + (1024 - (shared_address(bytes) & 1023u)) % 1024);
    if (threadIdx.x == 0) {
        tma_prefetch(x_map);
        tma_prefetch(w_map);
        for (u32 i = 0; i < HOPPER_STAGES; ++i) {
            mbarrier_init(&shared->full[i], 1);
            mbarrier_init(&shared->empty[i], 8 * BLOCKS);  // a lane of each warp that reads, or whose block is written to
        }
        for (u32 i = 0; i < 2; ++i) {
            mbarrier_init(&shared->bias_full[i], 32);
            mbarrier_init(&shared->bias_empty[i], 8);
        }
        mbarrier_init_done();
    }
    if (BLOCKS == 2) {
        cluster_sync();
    } else {
        __syncthreads();
    }
    u32 tiles = (m + HOPPER_COLUMNS - 1) / HOPPER_COLUMNS, steps = (d + HOPPER_DEPTH - 1) / HOPPER_DEPTH;
    u32 first = static_cast<u32>(static_cast<u64>(tiles) * blockIdx.y / gridDim.y);
    u32 last = static_cast<u32>(static_cast<u64>(tiles) * (blockIdx.y + 1) / gridDim.y);
    if (threadIdx.x < 128) {
        registers_down<24>();
        if (threadIdx.x == 0) {
            hopper_copy<BLOCKS>(shared, x_map, w_map, first, last, steps);
        } else if (threadIdx.x >= 32 && threadIdx.x < 64) {
            hopper_bias(shared, bias, m, first, last);
        }
        __syncwarp();
    } else {
        registers_up<240>();
        hopper_choose<BLOCKS>(shared, n, m, steps, k, relu, first, last, bounds, entries, counts, cap);
    }
    if (BLOCKS == 2) {
        cluster_sync();  // shared memory stays while the other block may arrive or copy into it
    }
}

#endif  // HOPPER

// x_map: bf16 [n, d], w_map: bf16 [m, d], boxes of 64 columns x 128 rows, both swizzled by 128 bytes, zeroes outside; d a multiple of 8.
// bias f32 [m]. Grid: x = ceil(n / 128), y = splits of the tiles of w; 384 threads; dynamic shared memory: sizeof(HopperShared) + 1024.
// bounds u32 [n], zeroed beforehand, belongs to this call. Lists as `finish` wants them, 4 * splits per row: entries [n, 4 splits, cap],
// counts [n, 4 splits]; cap >= k + k / 10 + 64; entries are less than 4 GiB.
KERNEL __launch_bounds__(384, 1)
    encode_hopper(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map, const f32* bias, u32 n, u32 m, u32 d,
                  u32 k, u32 relu, u32* bounds, Entry* entries, u32* counts, u32 cap) {
#if HOPPER
    SHARED_DYN(u8, bytes);
    hopper_encode<1>(bytes, &x_map, &w_map, bias, n, m, d, k, relu != 0, bounds, entries, counts, cap);
#endif
}
REGISTER(encode_hopper)

// The same in clusters of two blocks: the grid's x is rounded up to even.
#if HOPPER
#define IN_PAIRS __cluster_dims__(2, 1, 1)
#else
#define IN_PAIRS
#endif
KERNEL IN_PAIRS __launch_bounds__(384, 1)
    encode_hopper_pair(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map, const f32* bias, u32 n, u32 m,
                       u32 d, u32 k, u32 relu, u32* bounds, Entry* entries, u32* counts, u32 cap) {
#if HOPPER
    SHARED_DYN(u8, bytes);
    hopper_encode<2>(bytes, &x_map, &w_map, bias, n, m, d, k, relu != 0, bounds, entries, counts, cap);
#endif
}
REGISTER_CLUSTER(encode_hopper_pair, 2)
