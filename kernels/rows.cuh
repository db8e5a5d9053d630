// Rows of matrices in the registers of a block: thread t owns runs of E neighbouring elements, every blockDim.x runs, ITEMS in all.
// Not for products of matrices.
#pragma once

#include "common.cuh"

#ifdef __CUDACC__
#define BOUNDS(threads) __launch_bounds__(threads)
#else
#define BOUNDS(threads)
#endif

// Elements of a row that a thread may own: a block of T threads holds rows of up to ITEMS * T.
static const int ITEMS = 8;

// E neighbouring elements as they lie in memory: 16 bytes (8 for four bf16), or one element where rows are not aligned for that.
template <typename T, int E>
struct Run;

template <>
struct alignas(16) Run<f32, 4> {
    f32 v[4];
    __device__ inline f32 at(int i) const { return v[i]; }
    __device__ inline void set(int i, f32 x) { v[i] = x; }
};
template <>
struct Run<f32, 1> {
    f32 v;
    __device__ inline f32 at(int) const { return v; }
    __device__ inline void set(int, f32 x) { v = x; }
};
template <>
struct alignas(16) Run<f32, 8> {
    f32 v[8];
    __device__ inline f32 at(int i) const { return v[i]; }
    __device__ inline void set(int i, f32 x) { v[i] = x; }
};
// Pairs in words: unpacked they would take twice the registers. Elements are set in ascending order.
template <int E>
struct alignas(2 * E) Run<bf16, E> {
    u32 w[E / 2];
    __device__ inline f32 at(int i) const { return __uint_as_float(i & 1 ? w[i / 2] & 0xffff0000u : w[i / 2] << 16); }
    __device__ inline void set(int i, f32 x) {
        u32 bits = to_bf16(x).bits;
        w[i / 2] = i & 1 ? (w[i / 2] & 0xffffu) | (bits << 16) : bits;
    }
};
template <>
struct Run<bf16, 1> {
    bf16 v;
    __device__ inline f32 at(int) const { return to_f32(v); }
    __device__ inline void set(int, f32 x) { v = to_bf16(x); }
};

template <typename T, int E>
__device__ static inline Run<T, E> run_load(const T* p) {
    return *reinterpret_cast<const Run<T, E>*>(p);
}
template <typename T, int E>
__device__ static inline void run_store(T* p, const Run<T, E>& run) {
    *reinterpret_cast<Run<T, E>*>(p) = run;
}

// For what a kernel meets once: the caches keep rows that others gather.
template <int E>
__device__ static inline Run<f32, E> run_load_once(const f32* p) {
    Run<f32, E> run;
    if (E == 4) {
        float4 v = __ldcs(reinterpret_cast<const float4*>(p));
        run.set(0, v.x), run.set(1, v.y), run.set(2, v.z), run.set(3, v.w);
    } else {
        run.set(0, __ldcs(p));
    }
    return run;
}
template <int E>
__device__ static inline void run_store_once(f32* p, const Run<f32, E>& run) {
    if (E == 4) {
        __stcs(reinterpret_cast<float4*>(p), make_float4(run.at(0), run.at(1), run.at(2), run.at(3)));
    } else {
        __stcs(p, run.at(0));
    }
}

// The first column of this thread's run c.
template <int E>
__device__ static inline u32 run_column(int c) {
    return (static_cast<u32>(c) * blockDim.x + threadIdx.x) * E;
}

// This thread's part of a row, as it lies in memory; columns from d on are zero.
template <typename T, int E>
struct Row {
    Run<T, E> runs[ITEMS / E];

    __device__ inline void load(const T* p, u32 d) {
        UNROLL
        for (int c = 0; c < ITEMS / E; c++) {
            u32 column = run_column<E>(c);
            if (column < d) {
                runs[c] = run_load<T, E>(p + column);
            } else {
                UNROLL
                for (int i = 0; i < E; i++) {
                    runs[c].set(i, 0.0f);
                }
            }
        }
    }

    __device__ inline f32 dot(const f32* w) const {
        f32 sum = 0;
        UNROLL
        for (int c = 0; c < ITEMS / E; c++) {
            UNROLL
            for (int i = 0; i < E; i++) {
                sum += runs[c].at(i) * w[c * E + i];
            }
        }
        return sum;
    }

    // to += a row
    __device__ inline void add(f32 a, f32* to) const {
        UNROLL
        for (int c = 0; c < ITEMS / E; c++) {
            UNROLL
            for (int i = 0; i < E; i++) {
                to[c * E + i] += a * runs[c].at(i);
            }
        }
    }

    __device__ inline void values(f32* to) const {
        UNROLL
        for (int c = 0; c < ITEMS / E; c++) {
            UNROLL
            for (int i = 0; i < E; i++) {
                to[c * E + i] = runs[c].at(i);
            }
        }
    }
};

__device__ static inline void items_zero(f32* v) {
    UNROLL
    for (int i = 0; i < ITEMS; i++) {
        v[i] = 0;
    }
}

__device__ static inline f32 items_dot(const f32* a, const f32* b) {
    f32 sum = 0;
    UNROLL
    for (int i = 0; i < ITEMS; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

// Writes this thread's part of a row.
template <typename T, int E>
__device__ static inline void items_store(T* p, u32 d, const f32* v) {
    UNROLL
    for (int c = 0; c < ITEMS / E; c++) {
        u32 column = run_column<E>(c);
        if (column < d) {
            Run<T, E> run;
            UNROLL
            for (int i = 0; i < E; i++) {
                run.set(i, v[c * E + i]);
            }
            run_store<T, E>(p + column, run);
        }
    }
}

template <int E>
__device__ static inline void items_store_once(f32* p, u32 d, const f32* v) {
    UNROLL
    for (int c = 0; c < ITEMS / E; c++) {
        u32 column = run_column<E>(c);
        if (column < d) {
            Run<f32, E> run;
            UNROLL
            for (int i = 0; i < E; i++) {
                run.set(i, v[c * E + i]);
            }
            run_store_once<E>(p + column, run);
        }
    }
}

// B sums over the block at once, the same bits in every thread. `scratch` holds 32 B values; every thread must call it.
template <int B>
__device__ static inline void block_sums(f32* v, f32* scratch) {
    UNROLL
    for (int b = 0; b < B; b++) {
        v[b] = warp_sum(v[b]);
    }
    u32 warps = blockDim.x >> 5;
    if (warps == 1) {
        return;
    }
    __syncthreads();
    if ((threadIdx.x & 31u) == 0) {
        UNROLL
        for (int b = 0; b < B; b++) {
            scratch[(threadIdx.x >> 5) * B + b] = v[b];
        }
    }
    __syncthreads();
    UNROLL
    for (int b = 0; b < B; b++) {
        v[b] = 0;
    }
    for (u32 w = 0; w < warps; w++) {
        UNROLL
        for (int b = 0; b < B; b++) {
            v[b] += scratch[w * B + b];
        }
    }
}
