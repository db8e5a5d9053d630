// Fused encode for sm_80 and later by mma.sync: x w^T + bias, candidates chosen while the products are still in registers.
// Not for: sm_90, where mma.sync reaches 65 % of the rate (encode_hopper.cu), and the last step, `finish`. No score is stored.
//
// A block owns 128 rows of x and walks a range of w's tiles of 128 rows; each of its four warps has 64 x 64 of the products. A row lies in
// the quads of two warps, which are two streams for the selection (select.cuh): each has lists and bounds of its own, and heeds the other's.
// Copies run ahead through a ring, across tiles, so they go on while a warp chooses.

#include "ampere.cuh"
#include "select.cuh"

static const u32 AMPERE_SIDE = 128, AMPERE_DEPTH = 64;
static const u32 AMPERE_SIDE_BYTES = AMPERE_SIDE * AMPERE_DEPTH * 2, AMPERE_STAGE_BYTES = 2 * AMPERE_SIDE_BYTES;

// Tiles as the copy engine of sm_90 lays them out: rows of 128 bytes, piece c (16 bytes) of row r in place c ^ (r & 7), so that neither
// copies nor ldmatrix meet in a bank.
template <u32 STAGES>
struct AmpereShared {
    alignas(128) u8 stages[STAGES][AMPERE_STAGE_BYTES];
    f32 bias[2][AMPERE_SIDE];
};

#if AMPERE

// Starts the copies of rows `row` .. + 128, columns `column` .. + 64; zeroes beyond [rows, d].
__device__ static inline void ampere_copy(u8* to, const bf16* from, u32 row, u32 rows, u32 column, u32 d) {
    u32 piece = threadIdx.x % 8, at = threadIdx.x / 8;
    bool inside = column + piece * 8 < d;
    u8* place = to + at * 128 + (piece ^ (at & 7u)) * 16;
    const bf16* source = from + static_cast<u64>(row + at) * d + column + piece * 8;
    // Not unrolled: sixteen addresses would be kept in registers that the products need.
    ROLLED for (u32 r = row + at; r < row + AMPERE_SIDE; r += 16) {
        bool wanted = inside && r < rows;
        cp_async16(place, wanted ? source : from, wanted);
        place += 16 * 128;
        source += 16 * d;
    }
}

template <u32 STAGES>
__device__ static inline void ampere_encode(AmpereShared<STAGES>* shared, const bf16* x, const bf16* w, const f32* bias, u32 n, u32 m,
                                            u32 d, u32 k, bool relu, u32* bounds, Entry* entries, u32* counts, u32 cap) {
    u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5, quad = lane & 3u;
    u32 top = blockIdx.x * AMPERE_SIDE, row = top + warp / 2 * 64 + lane / 4;  // and row + 8, + 16, .. + 56
    u32 side = warp % 2;
    u32 lists = gridDim.y * 8, list = row * lists + (blockIdx.y * 2 + side) * 4 + quad;
    u32 step_bytes = 8 * lists * cap * 8, begin = list * cap * 8;
    u32 end[8], gate[8];
    UNROLL for (u32 r = 0; r < 8; ++r) {
        end[r] = begin + r * step_bytes;
        gate[r] = select_floor(relu, row + 8 * r < n);
    }
    u32 most = select_most(k), room = (cap - AMPERE_SIDE / 8) * 8;
    u32 tiles = (m + AMPERE_SIDE - 1) / AMPERE_SIDE, steps = (d + AMPERE_DEPTH - 1) / AMPERE_DEPTH;
    u32 first = static_cast<u32>(static_cast<u64>(tiles) * blockIdx.y / gridDim.y);
    u32 last = static_cast<u32>(static_cast<u64>(tiles) * (blockIdx.y + 1) / gridDim.y);

    u32 ahead_tile = first, ahead_step = 0, ahead_stage = 0;
    auto copy_next = [&]() {
        if (ahead_tile < last) {
            u8* to = shared->stages[ahead_stage];
            ampere_copy(to, x, top, n, ahead_step * AMPERE_DEPTH, d);
            ampere_copy(to + AMPERE_SIDE_BYTES, w, ahead_tile * AMPERE_SIDE, m, ahead_step * AMPERE_DEPTH, d);
            if (++ahead_step == steps) {
                ahead_step = 0;
                ++ahead_tile;
            }
            if (++ahead_stage == STAGES) {
                ahead_stage = 0;
            }
        }
        cp_async_commit();  // an empty group counts too
    };
    UNROLL for (u32 i = 0; i + 1 < STAGES; ++i) { copy_next(); }

    // ldmatrix: four 8 x 8 matrices are 16 rows x 16 columns. Of x the lane's row is lane % 16 and its half lane / 16, of w otherwise, so
    // that registers 0, 1 belong to the first 8 rows and 2, 3 to the others.
    u32 x_row = warp / 2 * 64 + lane % 16, x_half = lane / 16;
    u32 w_row = side * 64 + lane % 8 + lane / 16 * 8, w_half = lane / 8 % 2;
    u32 stage = 0, due = 1;
    for (u32 tile = first; tile < last; ++tile) {
        u32 turn = tile - first;
        f32* add = shared->bias[turn & 1];
        u32 own_column = tile * AMPERE_SIDE + threadIdx.x;
        add[threadIdx.x] = own_column < m ? bias[own_column] : unordered(ORDERED_MINUS_INFINITY);
        f32 acc[4][8][4];
        UNROLL for (u32 i = 0; i < 4; ++i) {
            UNROLL for (u32 j = 0; j < 8; ++j) {
                UNROLL for (u32 e = 0; e < 4; ++e) { acc[i][j][e] = 0.0f; }
            }
        }
        for (u32 step = 0; step < steps; ++step) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();  // this stage has come for everyone, and everyone is done with the one before
            copy_next();
            const u8* xs = shared->stages[stage];
            const u8* ws = xs + AMPERE_SIDE_BYTES;
            UNROLL for (u32 part = 0; part < AMPERE_DEPTH / 16; ++part) {
                u32 a[4][4], b[4][4];
                UNROLL for (u32 i = 0; i < 4; ++i) {
                    ldmatrix_x4(a[i], xs + (x_row + 16 * i) * 128 + ((2 * part + x_half) ^ (x_row & 7u)) * 16);
                    ldmatrix_x4(b[i], ws + (w_row + 16 * i) * 128 + ((2 * part + w_half) ^ (w_row & 7u)) * 16);
                }
                UNROLL for (u32 i = 0; i < 4; ++i) {
                    UNROLL for (u32 j = 0; j < 8; ++j) { mma_m16n8k16(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]); }
                }
            }
            if (++stage == STAGES) {
                stage = 0;
            }
        }
        // What others found is read now and then: it only saves work.
        if (turn % 4 == 3) {
            UNROLL for (u32 r = 0; r < 8; ++r) {
                u32 at = row + 8 * r;
                gate[r] = select_heed(gate[r], select_peek(bounds + (at < n ? at : 0)));
            }
        }
        u32 column = tile * AMPERE_SIDE + side * 64 + 2 * quad;
        const f32* mine = add + side * 64 + 2 * quad;
        bool tight = false;
        UNROLL for (u32 r = 0; r < 8; ++r) {
            u32 i = r / 2, e = r % 2 * 2;
            f32 above = unordered(gate[r]), best = above;
            UNROLL for (u32 j = 0; j < 8; ++j) {
                acc[i][j][e] += mine[8 * j];
                acc[i][j][e + 1] += mine[8 * j + 1];
                best = fmaxf(best, fmaxf(acc[i][j][e], acc[i][j][e + 1]));
            }
            if (__any_sync(FULL, best > above)) {
                UNROLL for (u32 j = 0; j < 8; ++j) {
                    select_offer(entries, end[r], acc[i][j][e], above, column + 8 * j);
                    select_offer(entries, end[r], acc[i][j][e + 1], above, column + 8 * j + 1);
                }
            }
            tight = tight || end[r] - begin - r * step_bytes > room;
        }
        // At tiles 1, 2, 4, 8, .. of the range, and whenever a list could not take another tile.
        if ((turn + 1 == due || __any_sync(FULL, tight)) && tile + 1 < last) {
            due = 2 * (turn + 1);
            select_compact_rows(entries, begin, step_bytes, end, gate, k, most, bounds, row, n);
        }
    }
    UNROLL for (u32 r = 0; r < 8; ++r) {
        if (row + 8 * r < n) {
            counts[list + r * 8 * lists] = (end[r] - begin - r * step_bytes) / 8;
        }
    }
}

#endif  // AMPERE

// x bf16 [n, d], w bf16 [m, d], 16-byte aligned, d a multiple of 8; bias f32 [m]. Grid: x = ceil(n / 128), y = splits of the tiles of w;
// 128 threads; dynamic shared memory: sizeof(AmpereShared<stages>). bounds u32 [n], zeroed beforehand, belongs to this call. Lists as `finish`
// wants them, 8 * splits per row: entries [n, 8 splits, cap], counts [n, 8 splits]; cap >= k + k / 10 + 16; entries are less than 4 GiB.
KERNEL __launch_bounds__(128)
    encode_ampere(const bf16* x, const bf16* w, const f32* bias, u32 n, u32 m, u32 d, u32 k, u32 relu, u32* bounds, Entry* entries,
                  u32* counts, u32 cap) {
#if AMPERE
    SHARED_DYN(AmpereShared<3>, shared);
    ampere_encode(shared, x, w, bias, n, m, d, k, relu != 0, bounds, entries, counts, cap);
#endif
}
REGISTER(encode_ampere)

// The same with two stages, for chips with 100 KB of shared memory per multiprocessor (sm_86, sm_89, sm_120).
KERNEL __launch_bounds__(128)
    encode_ampere_small(const bf16* x, const bf16* w, const f32* bias, u32 n, u32 m, u32 d, u32 k, u32 relu, u32* bounds, Entry* entries,
                        u32* counts, u32 cap) {
#if AMPERE
    SHARED_DYN(AmpereShared<2>, shared);
    ampere_encode(shared, x, w, bias, n, m, d, k, relu != 0, bounds, entries, counts, cap);
#endif
}
REGISTER(encode_ampere_small)
