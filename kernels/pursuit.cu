// Matching pursuit: rows are taken apart atom by atom, as kernels/cpu/pursuit.rs does on the host. A step's coefficient is always the
// inner product with the residual itself, in f64 and rounded once; which atom it is comes from f32 products, updated by rows of the Gram
// matrix, or from scores of all atoms. The orthogonal form fits all coefficients again after each step, by an incremental Cholesky factor
// in f64 (kernels/cpu/orthogonal.rs). Not for products of matrices, nor for gradients.
//
// A row's state between launches is the number of its steps, and whether it has ended. Launches name the rows that have not: `rows` [n] are
// their numbers in x; scores and lists lie in the order of that list.
//
// Coefficients times atoms are rounded before they are subtracted, as on the host.

#include "rows.cuh"

static const u32 ENDED = 0x80000000u;

// How atoms are chosen: kernels::Pick.
static const u32 PICK_POSITIVE = 0, PICK_LARGEST = 1, PICK_SIZE = 2;

struct PursuitRule {
    u32 steps;
    u32 pick;
    u32 stop_on_repeat;
};

__device__ static inline u64 warp_max_key(u64 v) {
    for (int step = 16; step > 0; step >>= 1) {
        u64 other = __shfl_xor_sync(FULL, v, step);
        v = other > v ? other : v;
    }
    return v;
}

// The same in every thread; `scratch` holds 32 keys. Every thread must call it.
__device__ static inline u64 block_max_key(u64 v, u64* scratch) {
    u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    v = warp_max_key(v);
    __syncthreads();
    if (lane == 0) {
        scratch[warp] = v;
    }
    __syncthreads();
    return warp_max_key(lane < warps ? scratch[lane] : 0);
}

// The best product of those that a thread meets in ascending order of columns. NaN fails every comparison.
struct Best {
    f32 size;
    u32 at;

    __device__ inline explicit Best(u32 pick) : size(pick == PICK_LARGEST ? __uint_as_float(0xff800000u) : 0.0f), at(PAD) {}
    __device__ inline void meet(f32 p, u32 j, u32 pick) {
        f32 s = pick == PICK_SIZE ? fabsf(p) : p;
        if (s > size) {
            size = s;
            at = j;
        }
    }
    // 0 where nothing may be picked.
    __device__ inline u64 key() const { return at == PAD ? 0 : key_of(size, at); }
};

// One step of a block's row, with atom j; `state` is the row's, the same in every thread. Returns the coefficient.
__device__ static inline f32 pursuit_take(u32 j, const f32* RESTRICT atom, u32 d, PursuitRule rule, f32 floor, f32* residual, u32* indices,
                                          f32* values, u32* state, f64* scratch) {
    f64 sum = 0;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        sum += static_cast<f64>(residual[i]) * static_cast<f64>(atom[i]);
    }
    f32 v = static_cast<f32>(block_sum(sum, scratch));
    // A step of 0 would only repeat itself, NaN spread.
    if (rule.pick == PICK_POSITIVE ? !(v > 0.0f) : v == 0.0f || v != v) {
        *state |= ENDED;
        return 0.0f;
    }
    sum = 0;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        f32 left = __fsub_rn(residual[i], __fmul_rn(v, atom[i]));
        residual[i] = left;
        sum += static_cast<f64>(left) * static_cast<f64>(left);
    }
    u32 taken = *state;
    bool ends = taken + 1 == rule.steps;
    if (!ends && rule.stop_on_repeat) {
        // Each warp looks for itself.
        bool again = false;
        for (u32 i = threadIdx.x & 31u; i < taken; i += 32) {
            again = again || indices[i] == j;
        }
        ends = __any_sync(FULL, again);
    }
    if (!ends && floor > 0.0f) {
        ends = static_cast<f32>(block_sum(sum, scratch)) < floor;
    }
    if (threadIdx.x == 0) {
        indices[taken] = j;
        values[taken] = v;
    }
    *state = (taken + 1) | (ends ? ENDED : 0);
    return v;
}

// One block per row of x: copies it, and begins. `floors` are the squared norms below which rows end.
KERNEL pursuit_start(const f32* x, u32 d, u32 steps, f32 tolerance, u32 relative, f32* residuals, u32* indices, f32* values, u32* states,
                     f32* floors) {
    __shared__ f64 scratch[33];
    u64 row = blockIdx.x;
    f64 sum = 0;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        f32 v = x[row * d + i];
        residuals[row * d + i] = v;
        sum += static_cast<f64>(v) * static_cast<f64>(v);
    }
    for (u32 i = threadIdx.x; i < steps; i += blockDim.x) {
        indices[row * steps + i] = PAD;
        values[row * steps + i] = 0.0f;
    }
    f32 size = static_cast<f32>(block_sum(sum, scratch));
    if (threadIdx.x == 0) {
        states[row] = 0;
        floors[row] = tolerance * tolerance * (relative ? size : 1.0f);
    }
}
REGISTER(pursuit_start)

// One block per row of the list: the residuals side by side.
KERNEL pursuit_gather(const f32* residuals, const u32* rows, u32 d, f32* to) {
    const f32* from = residuals + static_cast<u64>(rows[blockIdx.x]) * d;
    to += static_cast<u64>(blockIdx.x) * d;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        to[i] = from[i];
    }
}
REGISTER(pursuit_gather)

// This thread's part of a row's products, less v times those of an atom where `gram` is not null, and the best of them.
template <int E>
__device__ static inline u64 pursuit_sweep(const f32* from, f32* to, const f32* RESTRICT gram, f32 v, u32 m, u32 pick) {
    Best best(pick);
    if (gram) {
        // What comes from far is asked for before any of it is used.
        const u32 B = 4;
        u32 stride = blockDim.x * E;
        for (u32 base = threadIdx.x * E; base < m; base += B * stride) {
            Run<f32, E> g[B];
            UNROLL
            for (u32 b = 0; b < B; b++) {
                if (base + b * stride < m) {
                    g[b] = run_load<f32, E>(gram + base + b * stride);
                }
            }
            UNROLL
            for (u32 b = 0; b < B; b++) {
                u32 j = base + b * stride;
                if (j < m) {
                    Run<f32, E> p = run_load<f32, E>(from + j);
                    UNROLL
                    for (int i = 0; i < E; i++) {
                        p.set(i, __fsub_rn(p.at(i), __fmul_rn(v, g[b].at(i))));
                        best.meet(p.at(i), j + i, pick);
                    }
                    run_store<f32, E>(to + j, p);
                }
            }
        }
    } else {
        for (u32 j = threadIdx.x * E; j < m; j += blockDim.x * E) {
            Run<f32, E> p = run_load<f32, E>(from + j);
            UNROLL
            for (int i = 0; i < E; i++) {
                best.meet(p.at(i), j + i, pick);
            }
            if (to != from) {
                run_store<f32, E>(to + j, p);
            }
        }
    }
    return best.key();
}

// Up to `burst` steps of a block's row. The products of the residual, [n, m], are the row's own in `held` from the first on, if given.
template <int E>
__device__ static inline void pursuit_steps(f32* products, f32* held, const f32* RESTRICT atoms, const f32* RESTRICT gram, const u32* rows,
                                            u32 m, u32 d, u32 burst, PursuitRule rule, f32* residuals, u32* indices, f32* values,
                                            u32* states, const f32* floors) {
    __shared__ f64 sums[33];
    __shared__ u64 keys[32];
    u64 row = rows[blockIdx.x];
    const f32* first = products + static_cast<u64>(blockIdx.x) * m;
    u32 state = states[row];
    f32 floor = floors[row];
    u64 own = pursuit_sweep<E>(first, held, nullptr, 0.0f, m, rule.pick);
    for (u32 step = 0; step < burst; step++) {
        u64 key = block_max_key(own, keys);
        if (key == 0) {
            state |= ENDED;
            break;
        }
        u64 j = key_index(key);
        f32 v = pursuit_take(key_index(key), atoms + j * d, d, rule, floor, residuals + row * d, indices + row * rule.steps,
                             values + row * rule.steps, &state, sums);
        if (state & ENDED) {
            break;
        }
        if (step + 1 < burst) {
            own = pursuit_sweep<E>(held, held, gram + j * m, v, m, rule.pick);
        }
    }
    // Other threads have read the state, or are in no need of it.
    __syncthreads();
    if (threadIdx.x == 0) {
        states[row] = state;
    }
}

// One block per row of the list. Products stay in shared memory, m f32.
#define PURSUIT_GRAM(name, E)                                                                                                              \
    KERNEL BOUNDS(512) name(f32* products, const f32* atoms, const f32* gram, const u32* rows, u32 m, u32 d, u32 burst, u32 steps,         \
                            u32 pick, u32 stop_on_repeat, f32* residuals, u32* indices, f32* values, u32* states, const f32* floors) {     \
        SHARED_DYN(f32, held);                                                                                                             \
        pursuit_steps<E>(products, held, atoms, gram, rows, m, d, burst, PursuitRule{steps, pick, stop_on_repeat}, residuals, indices,     \
                         values, states, floors);                                                                                          \
    }                                                                                                                                      \
    REGISTER(name)

PURSUIT_GRAM(pursuit_gram, 4)
PURSUIT_GRAM(pursuit_gram_odd, 1)

// The same for products that do not fit there: they stay where they are.
KERNEL BOUNDS(512) pursuit_gram_wide(f32* products, const f32* atoms, const f32* gram, const u32* rows, u32 m, u32 d, u32 burst, u32 steps,
                                     u32 pick, u32 stop_on_repeat, f32* residuals, u32* indices, f32* values, u32* states,
                                     const f32* floors) {
    pursuit_steps<1>(products, products + static_cast<u64>(blockIdx.x) * m, atoms, gram, rows, m, d, burst,
                     PursuitRule{steps, pick, stop_on_repeat}, residuals, indices, values, states, floors);
}
REGISTER(pursuit_gram_wide)

// One warp per row of the list: the best of `columns` scores (row stride `stride`), which are the atoms from `first` on, into `best` [n],
// which holds the best so far, 0 before the first.
KERNEL pursuit_best(const f32* scores, u64 stride, u32 n, u32 columns, u32 first, u32 pick, u64* best) {
    u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (row >= n) {
        return;
    }
    Best own(pick);
    const f32* from = scores + row * stride;
    for (u32 c = lane; c < columns; c += 32) {
        own.meet(from[c], first + c, pick);
    }
    u64 key = warp_max_key(own.key());
    if (lane == 0 && key > best[row]) {
        best[row] = key;
    }
}
REGISTER(pursuit_best)

// The same from lists of (value bits, atom), positive all of them (merge.cu).
KERNEL pursuit_listed(const uint2* lists, const u32* counts, u32 n, u32 cap, u64* best) {
    u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (row >= n) {
        return;
    }
    const uint2* list = lists + static_cast<u64>(row) * cap;
    u64 key = 0;
    for (u32 i = lane; i < counts[row]; i += 32) {
        u64 other = key_of(__uint_as_float(list[i].x), list[i].y);
        key = other > key ? other : key;
    }
    key = warp_max_key(key);
    if (lane == 0) {
        best[row] = key;
    }
}
REGISTER(pursuit_listed)

// One block per row of the list: one step with the best atom.
KERNEL BOUNDS(512) pursuit_step(const u64* best, const f32* atoms, const u32* rows, u32 d, u32 steps, u32 pick, u32 stop_on_repeat,
                                f32* residuals, u32* indices, f32* values, u32* states, const f32* floors) {
    __shared__ f64 sums[33];
    u64 row = rows[blockIdx.x], key = best[blockIdx.x], j = key_index(key);
    u32 state = states[row];
    if (key == 0) {
        state |= ENDED;
    } else {
        pursuit_take(key_index(key), atoms + j * d, d, PursuitRule{steps, pick, stop_on_repeat}, floors[row], residuals + row * d,
                     indices + row * steps, values + row * steps, &state, sums);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        states[row] = state;
    }
}
REGISTER(pursuit_step)

// One warp per row of the list: the scores of atoms that the row has taken become NaN, which is never picked.
KERNEL pursuit_mask(f32* scores, u64 stride, u32 n, u32 columns, u32 first, const u32* rows, u32 steps, const u32* indices,
                    const u32* states) {
    u32 at = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (at >= n) {
        return;
    }
    u64 row = rows[at];
    for (u32 i = lane; i < states[row]; i += 32) {
        u32 c = indices[row * steps + i] - first;
        if (c < columns) {
            scores[at * stride + c] = __uint_as_float(0x7fc00000u);
        }
    }
}
REGISTER(pursuit_mask)

// <a, b> in f64, one warp.
__device__ static inline f64 warp_dot(const f32* a, const f32* b, u32 d) {
    f64 sum = 0;
    for (u32 i = threadIdx.x & 31u; i < d; i += 32) {
        sum += static_cast<f64>(a[i]) * static_cast<f64>(b[i]);
    }
    return warp_sum(sum);
}

// A residual of this share of the row's norm is rounding.
static const f64 FIT_NOISE = 1e-6;
// Squared distance of an atom from the span of the others, as a share of its squared norm, below which it depends on them.
static const f64 FIT_DEPENDENT = 1e-9;

// One block per row of the list: takes the best atom into the support, and fits x again. `factors` [n, steps, steps] are the rows of the
// lower Cholesky factor L of the support's inner products, `vectors` [n, 2, steps] are y with L y = atoms x, and the coefficients.
KERNEL BOUNDS(512) pursuit_fit(const u64* best, const f32* x, const f32* atoms, const u32* rows, u32 d, u32 steps, f32* residuals,
                               u32* indices, f32* values, u32* states, const f32* floors, f64* factors, f64* vectors) {
    __shared__ f64 sums[33];
    u64 row = rows[blockIdx.x], key = best[blockIdx.x];
    u32 count = states[row], lane = threadIdx.x & 31u, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const f32* of = x + row * d;
    const f32* atom = atoms + static_cast<u64>(key_index(key)) * d;
    f64* factor = factors + row * steps * steps;
    f64* line = factor + static_cast<u64>(count) * steps;
    f64* y = vectors + row * 2 * steps;
    f64* c = y + steps;
    indices += row * steps;
    values += row * steps;
    residuals += row * d;
    __syncthreads();
    if (key == 0) {
        if (threadIdx.x == 0) {
            states[row] = count | ENDED;
        }
        return;
    }
    // Inner products of the new atom with the support, with itself and with x; the latter two wait in c and y.
    for (u32 s = warp; s < count + 2; s += warps) {
        f64 v = warp_dot(s < count ? atoms + static_cast<u64>(indices[s]) * d : s == count ? atom : of, atom, d);
        if (lane == 0) {
            *(s < count ? line + s : s == count ? c + count : y + count) = v;
        }
    }
    __syncthreads();
    f64 own = c[count], rest = own;
    for (u32 s = 0; s < count; s++) {
        const f64* l = factor + static_cast<u64>(s) * steps;
        // Each warp would do the same: one does.
        if (warp == 0) {
            f64 below = 0;
            for (u32 i = lane; i < s; i += 32) {
                below += l[i] * line[i];
            }
            below = warp_sum(below);
            if (lane == 0) {
                line[s] = (line[s] - below) / l[s];
            }
            __syncwarp();
        }
    }
    __syncthreads();
    f64 square = 0, product = 0;
    for (u32 i = lane; i < count; i += 32) {
        square += line[i] * line[i];
        product += line[i] * y[i];
    }
    rest -= warp_sum(square);
    product = warp_sum(product);
    if (!(rest > FIT_DEPENDENT * own)) {
        if (threadIdx.x == 0) {
            states[row] = count | ENDED;
        }
        return;
    }
    // All warps are done with what the first now changes.
    __syncthreads();
    u32 taken = count + 1;
    if (warp == 0) {
        f64 diagonal = sqrt(rest);
        if (lane == 0) {
            line[count] = diagonal;
            y[count] = (y[count] - product) / diagonal;
            indices[count] = key_index(key);
        }
        __syncwarp();
        for (u32 s = lane; s < taken; s += 32) {
            c[s] = y[s];
        }
        __syncwarp();
        for (u32 s = taken; s-- > 0;) {
            const f64* l = factor + static_cast<u64>(s) * steps;
            f64 v = c[s] / l[s];
            __syncwarp();
            if (lane == 0) {
                c[s] = v;
            }
            for (u32 i = lane; i < s; i += 32) {
                c[i] -= l[i] * v;
            }
            __syncwarp();
        }
    }
    __syncthreads();
    for (u32 s = threadIdx.x; s < taken; s += blockDim.x) {
        values[s] = static_cast<f32>(c[s]);
    }
    f64 left = 0, size = 0;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        f64 v = of[i];
        size += v * v;
        for (u32 s = 0; s < taken; s++) {
            v -= c[s] * static_cast<f64>(atoms[static_cast<u64>(indices[s]) * d + i]);
        }
        f32 r = static_cast<f32>(v);
        residuals[i] = r;
        left += static_cast<f64>(r) * static_cast<f64>(r);
    }
    left = block_sum(left, sums);
    size = block_sum(size, sums);
    if (threadIdx.x == 0) {
        f32 floor = floors[row];
        bool ends = taken == steps || (floor > 0.0f && static_cast<f32>(left) < floor) || !(left > FIT_NOISE * FIT_NOISE * size);
        states[row] = taken | (ends ? ENDED : 0);
    }
}
REGISTER(pursuit_fit)
