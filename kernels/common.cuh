// What all kernels share: types, bfloat16 by hand, selection keys, warp helpers. No header of the toolkit is included, so that NVRTC can
// compile the same files, and the simulator (sim/) too: there `__CUDACC__` is absent and sim/shim.hpp supplies the language.
//
// Rules for every kernel file:
//  * kernels are declared `KERNEL name(...)` and named once more in `REGISTER(name)` below, which is how the simulator finds them (with
//    __cluster_dims__(n, 1, 1): `REGISTER_CLUSTER(name, n)`);
//  * file-local functions are `__device__ static` with names of their own (all files become one translation unit, all.cu);
//  * parameters are pointers, u32, i32, u64, f32; sizes that may exceed 2^32 are u64;
//  * dynamic shared memory through SHARED_DYN(type, name), once per kernel;
//  * results must not depend on the order in which blocks or warps run: no floating-point atomics.
#pragma once

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define REGISTER(name)
#define REGISTER_CLUSTER(name, blocks)
#define SHARED_DYN(T, name)                                        \
    extern __shared__ __align__(128) unsigned char lapidary_shared[]; \
    T* name = reinterpret_cast<T*>(lapidary_shared)
#define UNROLL _Pragma("unroll")
#define RESTRICT __restrict__
#else
#include "sim/shim.hpp"
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef float f32;
typedef double f64;

static const u32 PAD = 0xffffffffu;
static const u32 FULL = 0xffffffffu;

// bfloat16: the upper half of an f32.
struct bf16 {
    u16 bits;
};

__device__ static inline f32 to_f32(bf16 v) { return __uint_as_float(static_cast<u32>(v.bits) << 16); }
__device__ static inline f32 to_f32(f32 v) { return v; }

// Round to nearest, ties to even; a NaN stays one.
__device__ static inline bf16 to_bf16(f32 v) {
    u32 u = __float_as_uint(v);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return bf16{static_cast<u16>((u >> 16) | 0x40u)};
    }
    return bf16{static_cast<u16>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

template <typename T>
__device__ static inline T from_f32(f32 v);
template <>
__device__ inline f32 from_f32<f32>(f32 v) {
    return v;
}
template <>
__device__ inline bf16 from_f32<bf16>(f32 v) {
    return to_bf16(v);
}

// Bits that order like the values: -0 as +0. Callers keep NaN out.
__device__ static inline u32 ordered(f32 v) {
    u32 u = __float_as_uint(v + 0.0f);
    return u ^ (static_cast<u32>(static_cast<i32>(u) >> 31) | 0x80000000u);
}

__device__ static inline f32 unordered(u32 o) { return __uint_as_float(o ^ (static_cast<u32>(static_cast<i32>(~o) >> 31) | 0x80000000u)); }

// Larger key wins: the larger value, then the lowest index. Never 0 for a selectable entry.
__device__ static inline u64 key_of(f32 v, u32 index) { return (static_cast<u64>(ordered(v)) << 32) | static_cast<u32>(~index); }
__device__ static inline f32 key_value(u64 key) { return unordered(static_cast<u32>(key >> 32)); }
__device__ static inline u32 key_index(u64 key) { return ~static_cast<u32>(key); }

// The same bits in every lane.
__device__ static inline f32 warp_sum(f32 v) {
    for (int step = 16; step > 0; step >>= 1) {
        v += __shfl_xor_sync(FULL, v, step);
    }
    return v;
}
__device__ static inline f64 warp_sum(f64 v) {
    for (int step = 16; step > 0; step >>= 1) {
        v += __shfl_xor_sync(FULL, v, step);
    }
    return v;
}
__device__ static inline u32 warp_sum(u32 v) {
    for (int step = 16; step > 0; step >>= 1) {
        v += __shfl_xor_sync(FULL, v, step);
    }
    return v;
}
__device__ static inline u32 warp_max(u32 v) {
    for (int step = 16; step > 0; step >>= 1) {
        u32 other = __shfl_xor_sync(FULL, v, step);
        v = other > v ? other : v;
    }
    return v;
}

// Sum over the block, the same bits in every thread; `scratch` holds 33 values. Every thread must call it.
template <typename T>
__device__ static inline T block_sum(T v, T* scratch) {
    u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5, warps = (blockDim.x + 31u) >> 5;
    v = warp_sum(v);
    __syncthreads();
    if (lane == 0) {
        scratch[warp] = v;
    }
    __syncthreads();
    if (warp == 0) {
        T sum = lane < warps ? scratch[lane] : static_cast<T>(0);
        sum = warp_sum(sum);
        if (lane == 0) {
            scratch[32] = sum;
        }
    }
    __syncthreads();
    return scratch[32];
}
