// The backward pass and Adam by latent: no gradient of the weights' size exists.
//
//   dz  = scale <grad_r, D_j>            for an entry of latent j on row r with value z
//   D_j gets sum scale z grad_r, less the part parallel to D_j where decoder rows have norm 1
//   W_j gets sum dz x_r,  b_j gets sum dz
//
// Clipping by the global norm needs the norm before the first update, so `measure` walks the same gradients first and keeps dz. Latents
// with many entries are summed beforehand, segment by segment (`gather_segments`), and both passes add their segments in order.
//
// Gradients come from two lists of entries (columns.cu): the codes, whose latents are taught by the gradient of the first group that
// holds them, and a second one (AuxK) with a gradient and a factor of its own. A list may be absent (`starts` null). A latent that has
// segments is not looked up in the list itself: sums that were made otherwise (matrix products) may stand there.
//
// Blocks are as wide as rows.cuh needs for the longer of both rows; one latent each.

#include "rows.cuh"

template <typename G>
struct Source {
    const u32* starts;    // [m + 1]
    const u32* rows;      // [entries], ascending within a latent
    const f32* values;    // [entries]
    f32* dz;              // [entries]
    const u32* segments;  // [m + 1]: the first segment of each latent, or null
    f32* sums;            // [segments, d_out + d_in]: of the decoder's row, then of the encoder's
    f32* biases;          // [segments]
    const G* grads;       // [groups, n, d_out]
    const u32* ends;      // [groups]: the latent after each group's last
    u32 groups;
    u64 stride;  // n d_out
    const f32* times;  // or null
    f32 base_scale;

    // Made where it is needed: registers are short.
    __device__ inline f32 scale() const { return times ? base_scale * *times : base_scale; }
    __device__ inline u32 n_segments(u32 j) const { return segments ? segments[j + 1] - segments[j] : 0; }
    __device__ inline u32 begin(u32 j) const { return starts ? starts[j] : 0; }
    __device__ inline u32 end(u32 j) const { return starts ? starts[j + 1] : 0; }
    __device__ inline const G* grad(u32 j) const {
        u32 p = 0;
        while (p + 1 < groups && j >= ends[p]) {
            p++;
        }
        return grads + p * stride;
    }
};

// A list among a kernel's parameters. `times` may be null: a factor on top of `scale` that only the device knows.
#define SOURCE(G, p)                                                                                                                       \
    const u32 *p##_starts, const u32 *p##_rows, const f32 *p##_values, f32 *p##_dz, const u32 *p##_segments, f32 *p##_sums, f32 *p##_biases, \
        const G *p##_grads, const f32 *p##_times, f32 p##_scale
#define SOURCE_OF(G, p, ends, groups, stride)                                                                                              \
    Source<G> {                                                                                                                            \
        p##_starts, p##_rows, p##_values, p##_dz, p##_segments, p##_sums, p##_biases, p##_grads, ends, groups, stride,                     \
            p##_times, p##_scale                                                                                                           \
    }

// Rows in flight.
template <typename T, int E>
__device__ static inline constexpr int gathered() {
    return E == 1 ? 1 : sizeof(T) == 2 ? 4 : 2;
}

// sum += scale a_e matrix[rows_e] for entries begin..end, in order.
template <typename T, int E>
__device__ static inline void gather(const u32* rows, const f32* a, f32 scale, u32 begin, u32 end, const T* matrix, u32 d, f32* sum) {
    const int B = gathered<T, E>();
    for (u32 e = begin; e < end; e += B) {
        Row<T, E> of[B];
        f32 by[B];
        UNROLL
        for (int b = 0; b < B; b++) {
            if (e + b < end) {
                by[b] = a[e + b] * scale;
                of[b].load(matrix + static_cast<u64>(rows[e + b]) * d, d);
            }
        }
        UNROLL
        for (int b = 0; b < B; b++) {
            if (e + b < end) {
                of[b].add(by[b], sum);
            }
        }
    }
}

// Finds dz of entries begin..end against the atom `w` and keeps it; sum += scale z grad_r. `scratch` holds 32 * 4 values.
template <typename G, int E>
__device__ static inline void gather_dz(const Source<G>& s, u32 begin, u32 end, const G* grad, u32 d_out, const f32* w, f32* sum,
                                        f32* scratch) {
    const int B = gathered<G, E>();
    f32 scale = s.scale();
    for (u32 e = begin; e < end; e += B) {
        Row<G, E> of[B];
        f32 dots[B];
        UNROLL
        for (int b = 0; b < B; b++) {
            if (e + b < end) {
                of[b].load(grad + static_cast<u64>(s.rows[e + b]) * d_out, d_out);
                dots[b] = of[b].dot(w);
            } else {
                dots[b] = 0;
            }
        }
        block_sums<B>(dots, scratch);
        UNROLL
        for (int b = 0; b < B; b++) {
            if (e + b < end) {
                if (threadIdx.x == 0) {
                    s.dz[e + b] = dots[b] * scale;
                }
                of[b].add(s.values[e + b] * scale, sum);
            }
        }
    }
}

// The sum of dz over entries begin..end, the same bits in every thread.
__device__ static inline f32 sum_dz(const f32* dz, u32 begin, u32 end, f32* scratch) {
    f32 sum[1] = {0};
    for (u32 e = begin + threadIdx.x; e < end; e += blockDim.x) {
        sum[0] += dz[e];
    }
    block_sums<1>(sum, scratch);
    return sum[0];
}

// Adds rows first.. of sums [_, width], from `offset` on.
template <int E>
__device__ static inline void add_segments(const f32* sums, u32 first, u32 count, u32 width, u32 offset, u32 d, f32* sum) {
    for (u32 s = first; s < first + count; s++) {
        Row<f32, E> of;
        of.load(sums + static_cast<u64>(s) * width + offset, d);
        of.add(1.0f, sum);
    }
}

// One segment of a latent with many entries: its dz, sums and bias.
template <typename G, int E>
__device__ static inline void one_segment(const Source<G>& s, const u32* owners, u32 segment, u32 m, u32 max_segments, const G* x,
                                          const f32* w_dec, u32 d_in, u32 d_out) {
    __shared__ f32 scratch[128];
    u32 at = blockIdx.x, total = s.segments[m] < max_segments ? s.segments[m] : max_segments;
    if (at >= total) {
        return;
    }
    u32 j = owners[at], begin = s.starts[j] + (at - s.segments[j]) * segment, last = s.starts[j + 1];
    u32 end = begin + segment < last ? begin + segment : last;
    f32* to = s.sums + static_cast<u64>(at) * (d_out + d_in);
    f32 sum[ITEMS];
    {
        f32 w[ITEMS];
        Row<f32, E> atom;
        atom.load(w_dec + static_cast<u64>(j) * d_out, d_out);
        atom.values(w);
        items_zero(sum);
        gather_dz<G, E>(s, begin, end, s.grad(j), d_out, w, sum, scratch);
    }
    items_store<f32, E>(to, d_out, sum);
    __syncthreads();
    items_zero(sum);
    gather<G, E>(s.rows, s.dz, 1.0f, begin, end, x, d_in, sum);
    items_store<f32, E>(to + d_out, d_in, sum);
    f32 bias = sum_dz(s.dz, begin, end, scratch);
    if (threadIdx.x == 0) {
        s.biases[at] = bias;
    }
}

// Segments of a list: a block each; `max_segments` blocks are started, those beyond the last segment have nothing to do.
#define GATHER_SEGMENTS(name, G, E, threads)                                                                                               \
    KERNEL BOUNDS(threads) name(SOURCE(G, a), const u32* ends, u32 groups, u64 stride, const u32* owners, u32 segment, u32 max_segments,   \
                                u32 m, const G* x, const f32* w_dec, u32 d_in, u32 d_out) {                                                \
        one_segment<G, E>(SOURCE_OF(G, a, ends, groups, stride), owners, segment, m, max_segments, x, w_dec, d_in, d_out);                 \
    }                                                                                                                                      \
    REGISTER(name)

GATHER_SEGMENTS(gather_segments_f32, f32, 4, 1024)
GATHER_SEGMENTS(gather_segments_bf16, bf16, 4, 1024)
GATHER_SEGMENTS(gather_segments_f32_odd, f32, 1, 896)
GATHER_SEGMENTS(gather_segments_bf16_odd, bf16, 1, 896)

// What `measure` finds out about each latent, [m] each.
struct Found {
    f32* parallel;  // <gradient of the decoder's row, the row>, 0 where it is not taken away
    f32* bias;      // gradient of the encoder's bias
    f64* squares;   // squared norm of the whole gradient of the latent
};

template <typename G, int E>
__device__ static inline void measure_latent(const Source<G>& a, const Source<G>& b, const G* x, const f32* w_dec, u32 d_in, u32 d_out,
                                             u32 unit_norm, const Found& found) {
    __shared__ f32 scratch[128];
    __shared__ f64 wide[33];
    u32 j = blockIdx.x;
    const Source<G>* sources[2] = {&a, &b};
    bool any = false;
    UNROLL
    for (int i = 0; i < 2; i++) {
        any |= sources[i]->end(j) > sources[i]->begin(j) || sources[i]->n_segments(j);
    }
    if (!any) {
        if (threadIdx.x == 0) {
            found.parallel[j] = 0;
            found.bias[j] = 0;
            found.squares[j] = 0;
        }
        return;
    }
    f32 sum[ITEMS], of_decoder;
    items_zero(sum);
    {
        f32 w[ITEMS], parallel[1] = {0};
        Row<f32, E> atom;
        atom.load(w_dec + static_cast<u64>(j) * d_out, d_out);
        atom.values(w);
        UNROLL
        for (int i = 0; i < 2; i++) {
            const Source<G>& s = *sources[i];
            u32 segments = s.n_segments(j);
            if (segments) {
                add_segments<E>(s.sums, s.segments[j], segments, d_out + d_in, 0, d_out, sum);
            } else if (s.begin(j) < s.end(j)) {
                gather_dz<G, E>(s, s.begin(j), s.end(j), s.grad(j), d_out, w, sum, scratch);
            }
        }
        if (unit_norm) {
            parallel[0] = items_dot(sum, w);
            block_sums<1>(parallel, scratch);
            UNROLL
            for (int i = 0; i < ITEMS; i++) {
                sum[i] -= parallel[0] * w[i];
            }
        }
        if (threadIdx.x == 0) {
            found.parallel[j] = parallel[0];
        }
        of_decoder = items_dot(sum, sum);
    }
    // dz is read by all threads of the block from here on.
    __syncthreads();
    items_zero(sum);
    f32 bias = 0;
    UNROLL
    for (int i = 0; i < 2; i++) {
        const Source<G>& s = *sources[i];
        u32 segments = s.n_segments(j);
        if (segments) {
            add_segments<E>(s.sums, s.segments[j], segments, d_out + d_in, d_out, d_in, sum);
            for (u32 at = s.segments[j]; at < s.segments[j] + segments; at++) {
                bias += s.biases[at];
            }
        } else if (s.begin(j) < s.end(j)) {
            gather<G, E>(s.rows, s.dz, 1.0f, s.begin(j), s.end(j), x, d_in, sum);
            bias += sum_dz(s.dz, s.begin(j), s.end(j), scratch);
        }
    }
    f64 square = block_sum(static_cast<f64>(of_decoder) + items_dot(sum, sum), wide);
    if (threadIdx.x == 0) {
        found.bias[j] = bias;
        found.squares[j] = square + static_cast<f64>(bias) * bias;
    }
}

#define MEASURE(name, G, E, threads)                                                                                                       \
    KERNEL BOUNDS(threads) name(SOURCE(G, a), SOURCE(G, b), const u32* ends, u32 groups, u64 stride, const G* x, const f32* w_dec,         \
                                u32 d_in, u32 d_out, u32 unit_norm, f32* parallel, f32* bias, f64* squares) {                              \
        measure_latent<G, E>(SOURCE_OF(G, a, ends, groups, stride), SOURCE_OF(G, b, nullptr, 1u, 0ull), x, w_dec, d_in, d_out, unit_norm,   \
                             Found{parallel, bias, squares});                                                                              \
    }                                                                                                                                      \
    REGISTER(name)

MEASURE(measure_f32, f32, 4, 1024)
MEASURE(measure_bf16, bf16, 4, 1024)
MEASURE(measure_f32_odd, f32, 1, 896)
MEASURE(measure_bf16_odd, bf16, 1, 896)

// The factor that clips the gradient: squares [count] are parts of its squared norm, b_dec [d] the gradient of the decoder's bias.
// control [2]: the factor, and 1, or 0 where the norm is not finite: then `bad` counts the step and nothing is applied.
// One block of any width; `limit` 0 clips nothing.
KERNEL clip_factor(const f64* squares, u32 count, const f32* b_dec, u32 d, f32 limit, f32* control, f64* norm, u32* bad) {
    __shared__ f64 scratch[33];
    f64 sum = 0;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        sum += squares[i];
    }
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        sum += static_cast<f64>(b_dec[i]) * b_dec[i];
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        f64 root = sqrt(sum);
        bool finite = root - root == 0.0;
        control[0] = limit > 0.0f && root > limit ? static_cast<f32>(limit / root) : 1.0f;
        control[1] = finite ? 1.0f : 0.0f;
        *norm = root;
        if (!finite) {
            atomicAdd(bad, 1u);
        }
    }
}
REGISTER(clip_factor)

// Adam (Kingma & Ba), with constants folded: step_size = lr / (1 - beta1^t), root = 1 / sqrt(1 - beta2^t).
struct AdamRule {
    f32 beta1, beta2, eps, step_size, root, factor;

    __device__ inline f32 step(f32 p, f32* m, f32* v, f32 g) const {
        g *= factor;
        *m = beta1 * *m + (1.0f - beta1) * g;
        *v = beta2 * *v + (1.0f - beta2) * g * g;
        return p - step_size * *m / (sqrtf(*v) * root + eps);
    }
};

#define RULE const f32 *control, f32 beta1, f32 beta2, f32 eps, f32 step_size, f32 root

// A step of this thread's part of a row along g less `parallel` times the row; g becomes the row; moments are written.
template <int E>
__device__ static inline void adam_row(const AdamRule& rule, const f32* p, f32* m, f32* v, u32 d, f32 parallel, f32* g) {
    UNROLL
    for (int c = 0; c < ITEMS / E; c++) {
        u32 column = run_column<E>(c);
        if (column < d) {
            Run<f32, E> of = run_load_once<E>(p + column), first = run_load_once<E>(m + column), second = run_load_once<E>(v + column);
            UNROLL
            for (int i = 0; i < E; i++) {
                f32 a = first.at(i), b = second.at(i);
                g[c * E + i] = rule.step(of.at(i), &a, &b, g[c * E + i] - parallel * of.at(i));
                first.set(i, a);
                second.set(i, b);
            }
            run_store_once<E>(m + column, first);
            run_store_once<E>(v + column, second);
        }
    }
}

// W_dec and W_enc with their moments and bf16 shadows, and what goes with each latent.
struct Weights {
    f32 *w_dec, *m_dec, *v_dec;
    f32 *w_enc, *m_enc, *v_enc;
    f32 *b_enc, *m_bias, *v_bias;
    bf16 *half_dec, *half_enc;  // or null
    f32* norms;                 // [m, 2] of half_enc as in cast.cu, or null
    u64* silent;                // tokens since the latent last fired, or null
};

template <typename G, int E>
__device__ static inline void update_latent(const Source<G>& a, const Source<G>& b, u32 n, const G* x, u32 d_in, u32 d_out, u32 unit_norm,
                                            const Found& found, const AdamRule& rule, const Weights& w) {
    __shared__ f32 scratch[32];
    __shared__ f64 wide[33];
    u32 j = blockIdx.x;
    bool decoder = blockIdx.y == 0;
    u32 d = decoder ? d_out : d_in;
    const Source<G>* sources[2] = {&a, &b};
    f32 g[ITEMS];
    items_zero(g);
    UNROLL
    for (int i = 0; i < 2; i++) {
        const Source<G>& s = *sources[i];
        u32 segments = s.n_segments(j), begin = s.begin(j), end = s.end(j);
        if (segments) {
            add_segments<E>(s.sums, s.segments[j], segments, d_out + d_in, decoder ? 0 : d_out, d, g);
        } else if (begin < end) {
            gather<G, E>(s.rows, decoder ? s.values : s.dz, decoder ? s.scale() : 1.0f, begin, end, decoder ? s.grad(j) : x, d, g);
        }
    }
    u64 at = static_cast<u64>(j) * d;
    if (decoder) {
        adam_row<E>(rule, w.w_dec + at, w.m_dec + at, w.v_dec + at, d, found.parallel[j], g);
        if (unit_norm) {
            f32 square[1] = {items_dot(g, g)};
            block_sums<1>(square, scratch);
            f32 norm = sqrtf(square[0]);
            if (norm > 0.0f) {
                UNROLL
                for (int i = 0; i < ITEMS; i++) {
                    g[i] /= norm;
                }
            }
        }
        items_store_once<E>(w.w_dec + at, d, g);
        if (w.half_dec) {
            items_store<bf16, E>(w.half_dec + at, d, g);
        }
        return;
    }
    adam_row<E>(rule, w.w_enc + at, w.m_enc + at, w.v_enc + at, d, 0.0f, g);
    items_store_once<E>(w.w_enc + at, d, g);
    if (w.half_enc) {
        items_store<bf16, E>(w.half_enc + at, d, g);
    }
    if (w.norms) {
        f64 kept = 0, lost = 0;
        UNROLL
        for (int i = 0; i < ITEMS; i++) {
            f64 q = to_f32(to_bf16(g[i])), r = static_cast<f64>(g[i]) - q;
            kept += q * q;
            lost += r * r;
        }
        kept = block_sum(kept, wide);
        lost = block_sum(lost, wide);
        if (threadIdx.x == 0) {
            w.norms[2 * static_cast<u64>(j)] = static_cast<f32>(sqrt(kept) * (1.0 + 0x1p-20));
            w.norms[2 * static_cast<u64>(j) + 1] = static_cast<f32>(sqrt(lost) * (1.0 + 0x1p-20));
        }
    }
    if (threadIdx.x == 0) {
        w.b_enc[j] = rule.step(w.b_enc[j], w.m_bias + j, w.v_bias + j, found.bias[j]);
        if (w.silent) {
            w.silent[j] = a.end(j) > a.begin(j) ? 0 : w.silent[j] + n;
        }
    }
}

// Blocks [m, 2]: latents' decoder rows, and their encoder rows with all else. Masters, moments and shadows in place.
#define UPDATE(name, G, E, threads)                                                                                                        \
    KERNEL BOUNDS(threads) name(SOURCE(G, a), SOURCE(G, b), const u32* ends, u32 groups, u64 stride, u32 n, const G* x, u32 d_in,          \
                                u32 d_out, u32 unit_norm, f32* parallel, f32* bias, RULE, f32* w_dec, f32* m_dec, f32* v_dec, f32* w_enc,  \
                                f32* m_enc, f32* v_enc, f32* b_enc, f32* m_bias, f32* v_bias, bf16* half_dec, bf16* half_enc, f32* norms,  \
                                u64* silent) {                                                                                             \
        if (control[1] == 0.0f) {                                                                                                          \
            return;                                                                                                                        \
        }                                                                                                                                  \
        update_latent<G, E>(SOURCE_OF(G, a, ends, groups, stride), SOURCE_OF(G, b, nullptr, 1u, 0ull), n, x, d_in, d_out, unit_norm,        \
                            Found{parallel, bias, nullptr}, AdamRule{beta1, beta2, eps, step_size, root, control[0]},                      \
                            Weights{w_dec, m_dec, v_dec, w_enc, m_enc, v_enc, b_enc, m_bias, v_bias, half_dec, half_enc, norms, silent});  \
    }                                                                                                                                      \
    REGISTER(name)

UPDATE(update_f32, f32, 4, 1024)
UPDATE(update_bf16, bf16, 4, 1024)
UPDATE(update_f32_odd, f32, 1, 896)
UPDATE(update_bf16_odd, bf16, 1, 896)

// Adam on one vector.
KERNEL update_vector(f32* p, f32* m, f32* v, const f32* g, u32 count, RULE) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count && control[1] != 0.0f) {
        p[i] = AdamRule{beta1, beta2, eps, step_size, root, control[0]}.step(p[i], m + i, v + i, g[i]);
    }
}
REGISTER(update_vector)
