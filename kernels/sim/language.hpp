// CUDA's words: qualifiers, built-in variables, vector types, atomics, intrinsics for bits and rounding. Only what nvcc has is here, and only
// for the types that it has it for.
#pragma once

#include <math.h>

#include "meet.hpp"

#define KERNEL __attribute__((noinline)) static void
// Finds the kernel by name, with the types of its parameters (launch.hpp).
#define REGISTER(name) static ::sim::Registered<&name> sim_registered_##name(#name, 1);
// In clusters of so many blocks in a row, as its __cluster_dims__ say.
#define REGISTER_CLUSTER(name, blocks) static ::sim::Registered<&name> sim_registered_##name(#name, blocks);
#define SHARED_DYN(T, name) T* name = ::sim::dynamic_shared<T>()
#define UNROLL
#define RESTRICT __restrict__

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __constant__
// One block at a time: a static is its own. Side by side in a section, so that each block finds them poisoned.
#if defined(__ELF__)
#define __shared__ static __attribute__((section("lapidary_shared")))
#else
#define __shared__ static
#endif

#define threadIdx (::sim::self->thread)
#define blockIdx (::sim::self->block->index)
#define blockDim (::sim::machine.block_size)
#define gridDim (::sim::machine.blocks)
#define warpSize 32

namespace sim {
template <class T>
static inline T* dynamic_shared() {
    if (!self->block->shared) {
        die("the kernel uses dynamic shared memory, and the launch gave it none");
    }
    return reinterpret_cast<T*>(self->block->shared);
}
}  // namespace sim

// --- vectors: aligned as on the device, so that the sanitizer sees a misaligned access ---

#define SIM_VECTORS(T, NAME)                                                                     \
    struct alignas(2 * sizeof(T)) NAME##2 {                                                      \
        T x, y;                                                                                  \
    };                                                                                           \
    struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) NAME##4 {                            \
        T x, y, z, w;                                                                            \
    };                                                                                           \
    static inline NAME##2 make_##NAME##2(T x, T y) { return NAME##2{x, y}; }                     \
    static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return NAME##4{x, y, z, w}; }
SIM_VECTORS(float, float)
SIM_VECTORS(int, int)
SIM_VECTORS(unsigned, uint)
SIM_VECTORS(short, short)
SIM_VECTORS(unsigned short, ushort)
SIM_VECTORS(unsigned char, uchar)
#undef SIM_VECTORS
#define SIM_PAIRS(T, NAME)                                                    \
    struct alignas(16) NAME##2 {                                              \
        T x, y;                                                               \
    };                                                                        \
    static inline NAME##2 make_##NAME##2(T x, T y) { return NAME##2{x, y}; }
SIM_PAIRS(double, double)
SIM_PAIRS(long long, longlong)
SIM_PAIRS(unsigned long long, ulonglong)
#undef SIM_PAIRS

// --- memory ---

template <class T>
static inline T __ldg(const T* at) {
    return *at;
}
template <class T>
static inline T __ldcg(const T* at) {
    return *at;
}
template <class T>
static inline T __ldcs(const T* at) {
    return *at;
}
template <class T>
static inline T __ldca(const T* at) {
    return *at;
}
template <class T>
static inline T __ldlu(const T* at) {
    return *at;
}
template <class T>
static inline T __ldcv(const T* at) {
    return *at;
}
template <class T>
static inline void __stcg(T* at, T v) {
    *at = v;
}
template <class T>
static inline void __stcs(T* at, T v) {
    *at = v;
}
template <class T>
static inline void __stwt(T* at, T v) {
    *at = v;
}
// Everybody sees every write at once here: fences are places where others may get in between, and nothing else.
static inline void __threadfence() { sim::maybe_leave(); }
static inline void __threadfence_block() { sim::maybe_leave(); }
static inline void __threadfence_system() { sim::maybe_leave(); }
static inline void __nanosleep(unsigned) { sim::leave(); }
static inline void __trap() { sim::die(sim::text("thread %u called __trap", sim::self->rank)); }
static inline long long clock64() { return static_cast<long long>(++sim::self->calls); }

// --- atomics ---

namespace sim {
template <class T, class... Of>
struct one_of {
    static const bool is = false;
};
template <class T, class First, class... Of>
struct one_of<T, First, Of...> {
    static const bool is = one_of<T, Of...>::is;
};
template <class T, class... Of>
struct one_of<T, T, Of...> {
    static const bool is = true;
};
template <class T>
struct same {
    typedef T type;
};
}  // namespace sim

#define SIM_ATOMIC(NAME, EXPRESSION, ...)                                                                    \
    template <class T>                                                                                       \
    static inline T NAME(T* at, typename sim::same<T>::type v) {                                             \
        static_assert(sim::one_of<T, __VA_ARGS__>::is, #NAME " of this type is not what a device has");      \
        sim::maybe_leave();                                                                                  \
        sim::Atomic atomic;                                                                                  \
        (void)atomic;                                                                                        \
        T old = *at;                                                                                         \
        *at = static_cast<T>(EXPRESSION);                                                                    \
        return old;                                                                                          \
    }
// Signed sums wrap.
#define SIM_WRAPPED(OP) sim::wrapped(old, v, [](auto a, auto b) { return a OP b; })
namespace sim {
template <class T, class F>
static inline T wrapped(T a, T b, F f) {
    return f(a, b);
}
template <class F>
static inline int wrapped(int a, int b, F f) {
    return static_cast<int>(f(static_cast<unsigned>(a), static_cast<unsigned>(b)));
}
}  // namespace sim
SIM_ATOMIC(atomicAdd, SIM_WRAPPED(+), int, unsigned, unsigned long long, float, double)
SIM_ATOMIC(atomicSub, SIM_WRAPPED(-), int, unsigned)
SIM_ATOMIC(atomicExch, v, int, unsigned, unsigned long long, float)
SIM_ATOMIC(atomicMin, v < old ? v : old, int, unsigned, long long, unsigned long long)
SIM_ATOMIC(atomicMax, v > old ? v : old, int, unsigned, long long, unsigned long long)
SIM_ATOMIC(atomicAnd, old & v, int, unsigned, unsigned long long)
SIM_ATOMIC(atomicOr, old | v, int, unsigned, unsigned long long)
SIM_ATOMIC(atomicXor, old ^ v, int, unsigned, unsigned long long)
SIM_ATOMIC(atomicInc, old >= v ? 0 : old + 1, unsigned)
SIM_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1, unsigned)
#undef SIM_WRAPPED
#undef SIM_ATOMIC

template <class T>
static inline T atomicCAS(T* at, typename sim::same<T>::type expected, typename sim::same<T>::type v) {
    static_assert(sim::one_of<T, int, unsigned, unsigned long long, unsigned short>::is, "atomicCAS of this type is not what a device has");
    sim::maybe_leave();
    sim::Atomic atomic;
    (void)atomic;
    T old = *at;
    if (old == expected) {
        *at = v;
    }
    return old;
}

#include "intrinsics.hpp"
