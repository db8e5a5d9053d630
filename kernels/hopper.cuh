// What sm_90a has and C++ has not: barriers in shared memory that count bytes, the copy engine (TMA), and products by a warpgroup (wgmma).
// Each thing stands behind one function: PTX under nvcc, and under the simulator the function of the same name in `sim` (sim/async.hpp, sim/tensor.hpp).
//
// Layouts that all of them agree on (PTX ISA 9.0, "Asynchronous Warpgroup Level Matrix Instructions"):
//  * a tile of rows of 64 bf16 = 128 bytes, rows one after another, begins at a multiple of 1024 bytes of shared memory. Its 16-byte pieces
//    are swizzled: the piece at byte address a lies at a ^ ((a >> 7 & 7) << 4). The copy engine writes so and wgmma reads so;
//  * a descriptor holds address >> 4 in bits 0-13, 1 in bits 16-29 (unused in this layout), 1024 >> 4 in bits 32-45 (from 8 rows to the next 8)
//    and 1 in bits 62-63 (swizzle of 128 bytes). 16 columns further on is the same descriptor + 2: the swizzle applies to the address;
//  * thread t of a warpgroup (warp w = t / 32, lane l = t % 32) holds in acc[i], i < 128, row 16 w + l / 4 + 8 (i / 2 % 2) and
//    column 8 (i / 4) + 2 (l % 4) + i % 2 of the 64 x 256 product.
#pragma once

#include "common.cuh"

// Code for sm_90a only; elsewhere in the fatbin the bodies are empty.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
#define HOPPER 1
#else
#define HOPPER 0
#endif

// A tensor map, by value, `const __grid_constant__ TensorMap`. On the device it is what cuTensorMapEncodeTiled made. In the simulator:
// words[0] address of row 0, [1] columns, [2] rows, [3] bytes from row to row, [4] columns and [5] rows of the box; elements of 2 bytes.
struct alignas(64) TensorMap {
    u64 words[16];
};

// Two values side by side in shared memory.
struct alignas(8) Pair {
    f32 even, odd;
};

#if HOPPER

__device__ static inline u32 shared_address(const void* at) {
#ifdef __CUDACC__
    return static_cast<u32>(__cvta_generic_to_shared(at));
#else
    return sim::shared_offset(at);
#endif
}

__device__ static inline void mbarrier_init(u64* barrier, u32 arrivals) {
#ifdef __CUDACC__
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#else
    sim::mbarrier_init(barrier, arrivals);
#endif
}

// After all inits: the copy engine, and the other block of a cluster, see them.
__device__ static inline void mbarrier_init_done() {
#ifdef __CUDACC__
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ static inline void mbarrier_arrive(u64* barrier) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#else
    sim::mbarrier_arrive(barrier);
#endif
}

__device__ static inline void mbarrier_expect(u64* barrier, u32 bytes) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
#else
    sim::mbarrier_expect(barrier, bytes);
#endif
}

__device__ static inline void mbarrier_wait(u64* barrier, u32 parity) {
#ifdef __CUDACC__
    u32 at = shared_address(barrier), done;
    do {
        asm volatile(
            "{\n .reg .pred p;\n mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(at), "r"(parity)
            : "memory");
    } while (!done);
#else
    sim::mbarrier_wait(barrier, parity);
#endif
}

__device__ static inline void tma_load(void* to, const TensorMap* map, u64* barrier, i32 column, i32 row) {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                     shared_address(to)),
                 "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row)
                 : "memory");
#else
    sim::tma_load(to, map, barrier, column, row);
#endif
}

// To the same place in both blocks of a cluster of two; the bytes count on the barrier at the same place in each.
__device__ static inline void tma_load_both(void* to, const TensorMap* map, u64* barrier, i32 column, i32 row) {
#ifdef __CUDACC__
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(
            shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "h"(static_cast<u16>(3))
        : "memory");
#else
    sim::tma_load_all(to, map, barrier, column, row);
#endif
}

// On the barrier at the same place in block `rank` of the cluster.
__device__ static inline void mbarrier_arrive_at(u64* barrier, u32 rank) {
#ifdef __CUDACC__
    asm volatile(
        "{\n .reg .b32 at;\n mapa.shared::cluster.u32 at, %0, %1;\n mbarrier.arrive.release.cluster.shared::cluster.b64 _, [at];\n}" ::"r"(
            shared_address(barrier)),
        "r"(rank)
        : "memory");
#else
    sim::mbarrier_arrive_at(barrier, rank);
#endif
}

// All threads of the cluster that have not returned.
__device__ static inline void cluster_sync() {
#ifdef __CUDACC__
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    sim::cluster_sync();
#endif
}

__device__ static inline void tma_prefetch(const TensorMap* map) {
#ifdef __CUDACC__
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#else
    static_cast<void>(map);
#endif
}

__device__ static inline u64 wgmma_descriptor(const void* tile) {
    return static_cast<u64>((shared_address(tile) & 0x3ffffu) >> 4) | (1ull << 16) | (static_cast<u64>(1024 >> 4) << 32) | (1ull << 62);
}

// Registers of the accumulators are handed over: before the first product, and again before they are read.
__device__ static inline void wgmma_fence() {
#ifdef __CUDACC__
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    sim::wgmma_fence();
#endif
}

__device__ static inline void wgmma_commit() {
#ifdef __CUDACC__
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    sim::wgmma_commit();
#endif
}

template <u32 PENDING>
__device__ static inline void wgmma_wait() {
#ifdef __CUDACC__
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#else
    sim::wgmma_wait(PENDING);
#endif
}

// The compiler keeps reads of the accumulators on this side of a wait.
__device__ static inline void wgmma_settle(f32 (&acc)[128]) {
#ifdef __CUDACC__
    UNROLL for (u32 i = 0; i < 128; ++i) { asm volatile("" : "+f"(acc[i])::"memory"); }
#else
    static_cast<void>(acc);
#endif
}

#define ACC8(x, i) x(acc[i]), x(acc[i + 1]), x(acc[i + 2]), x(acc[i + 3]), x(acc[i + 4]), x(acc[i + 5]), x(acc[i + 6]), x(acc[i + 7])
#define ACC64(x, i) \
    ACC8(x, i), ACC8(x, i + 8), ACC8(x, i + 16), ACC8(x, i + 24), ACC8(x, i + 32), ACC8(x, i + 40), ACC8(x, i + 48), ACC8(x, i + 56)
#define ACC_NAMES                                                                                                                        \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"           \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"  \
    "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"  \
    "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,"    \
    "%122,%123,%124,%125,%126,%127}"

// acc = a b^T: what was in the accumulators is neither read nor kept alive. Zeroing them beforehand instead would make ptxas wait after
// each product (C7515).
__device__ static inline void wgmma_begin(f32 (&acc)[128], u64 a, u64 b) {
#ifdef __CUDACC__
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.u32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " ACC_NAMES ", %128, %129, p, 1, 1, 0, 0;\n}"
        : ACC64("=f", 0), ACC64("=f", 64)
        : "l"(a), "l"(b));
#else
    sim::wgmma_m64n256k16(acc, a, b, false);
#endif
}

// acc += a b^T.
__device__ static inline void wgmma_add(f32 (&acc)[128], u64 a, u64 b) {
#ifdef __CUDACC__
    asm volatile(
        "{\n .reg .pred p;\n setp.eq.u32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " ACC_NAMES ", %128, %129, p, 1, 1, 0, 0;\n}"
        : ACC64("+f", 0), ACC64("+f", 64)
        : "l"(a), "l"(b));
#else
    sim::wgmma_m64n256k16(acc, a, b, true);
#endif
}

#undef ACC8
#undef ACC64
#undef ACC_NAMES

// In one piece and in program order: otherwise the compiler fetches the bias of a whole tile at once, and then lacks registers.
__device__ static inline Pair load_pair(const Pair* at) {
#ifdef __CUDACC__
    Pair pair;
    asm volatile("ld.volatile.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.even), "=f"(pair.odd) : "r"(shared_address(at)));
    return pair;
#else
    return *at;
#endif
}

// Registers per thread of this warpgroup from here on; of all its threads at once.
template <u32 REGISTERS>
__device__ static inline void registers_down() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}
template <u32 REGISTERS>
__device__ static inline void registers_up() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

#endif  // HOPPER
