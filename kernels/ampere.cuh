// What sm_80 has and C++ has not: copies to shared memory that go on beside the work, and products by a warp on 16-bit operands.
// Each thing stands behind one function: PTX under nvcc, and under the simulator the function of the same name in `sim` (sim/async.hpp, sim/tensor.hpp).
//
// Fragments (PTX ISA 9.0, mma.m16n8k16), lane l, g = l / 4, t = l % 4; a register holds two bf16, the lower column in the lower half:
//  * a [16, 16]: a[0] row g, columns 2t, 2t+1; a[1] row g + 8; a[2] row g, columns 2t+8, 2t+9; a[3] row g + 8 there;
//  * b [8, 16] (n-major: the transposed operand): b[0] row g, columns 2t, 2t+1; b[1] row g, columns 2t+8, 2t+9;
//  * c [16, 8]: c[0], c[1] row g, columns 2t, 2t+1; c[2], c[3] row g + 8.
#pragma once

#include "common.cuh"

#if !defined(__CUDACC__) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
#define AMPERE 1
#else
#define AMPERE 0
#endif

#if AMPERE

__device__ static inline void cp_async16(void* to, const void* from, bool wanted) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<u32>(__cvta_generic_to_shared(to))), "l"(from),
                 "r"(wanted ? 16 : 0)
                 : "memory");
#else
    sim::cp_async16(to, from, wanted);
#endif
}

__device__ static inline void cp_async_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    sim::cp_async_commit();
#endif
}

template <u32 PENDING>
__device__ static inline void cp_async_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
    sim::cp_async_wait(PENDING);
#endif
}

__device__ static inline void ldmatrix_x4(u32 (&r)[4], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(static_cast<u32>(__cvta_generic_to_shared(row)))
                 : "memory");
#else
    sim::ldmatrix_x4(r, row);
#endif
}

__device__ static inline void mma_m16n8k16(f32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef __CUDACC__
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    sim::mma_m16n8k16(c, a, b0, b1);
#endif
}

#endif  // AMPERE
