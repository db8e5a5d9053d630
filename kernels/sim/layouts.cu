// Small products and copies through the wrappers of ampere.cuh and hopper.cuh, right ones and ones with planted faults: what the emulation does
// can be compared with a plain product. Not part of the fatbin.

#include "ampere.cuh"
#include "hopper.cuh"

// One warp: c [16, 8] += a [16, 16] b [8, 16]^T. Operands go through shared memory and ldmatrix, b's fragment is loaded by hand.
KERNEL layout_mma(const bf16* a, const bf16* b, f32* c) {
    __shared__ __align__(16) bf16 tile[16 * 16];
    u32 lane = threadIdx.x, g = lane / 4, t = 2 * (lane % 4);
    cp_async16(tile + lane * 8, a + lane * 8, true);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    u32 fragment[4];
    ldmatrix_x4(fragment, tile + lane % 16 * 16 + lane / 16 * 8);
    u32 b0 = b[g * 16 + t].bits | static_cast<u32>(b[g * 16 + t + 1].bits) << 16;
    u32 b1 = b[g * 16 + t + 8].bits | static_cast<u32>(b[g * 16 + t + 9].bits) << 16;
    f32 sums[4];
    for (u32 i = 0; i < 4; i++) {
        sums[i] = c[(g + 8 * (i >> 1)) * 8 + t + (i & 1)];
    }
    mma_m16n8k16(sums, fragment, b0, b1);
    for (u32 i = 0; i < 4; i++) {
        c[(g + 8 * (i >> 1)) * 8 + t + (i & 1)] = sums[i];
    }
}
REGISTER(layout_mma)

struct LayoutShared {
    alignas(1024) u8 a[2][64 * 128];
    alignas(1024) u8 b[2][256 * 128];
    u64 full[2], empty[2];
};

// 160 threads, the last warp copies: c [64, 256] = a [n, d] b [m, d]^T, n <= 64, m <= 256, two stages of 64 columns.
// `waits`: what is left out, 1 the wait for a stage to be full, 2 for one to be empty, 4 for products before their operands are given back.
__device__ static inline void layout_wgmma_without(u32 out, const TensorMap* a_map, const TensorMap* b_map, u32 d, f32* c) {
    SHARED_DYN(LayoutShared, shared);
    u32 steps = (d + 63) / 64;
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < 2; i++) {
            mbarrier_init(&shared->full[i], 1);
            mbarrier_init(&shared->empty[i], 128);
        }
        mbarrier_init_done();
    }
    __syncthreads();
    if (threadIdx.x >= 128) {
        if (threadIdx.x == 128) {
            for (u32 step = 0; step < steps; step++) {
                u32 stage = step % 2;
                if (!(out & 2)) {
                    mbarrier_wait(&shared->empty[stage], (step / 2 & 1) ^ 1);
                }
                mbarrier_expect(&shared->full[stage], 64 * 128 + 256 * 128);
                tma_load(shared->a[stage], a_map, &shared->full[stage], static_cast<i32>(step * 64), 0);
                tma_load(shared->b[stage], b_map, &shared->full[stage], static_cast<i32>(step * 64), 0);
            }
        }
        return;
    }
    f32 acc[128];
    for (u32 step = 0; step < steps; step++) {
        u32 stage = step % 2;
        if (!(out & 1)) {
            mbarrier_wait(&shared->full[stage], step / 2 & 1);
        }
        u64 a = wgmma_descriptor(shared->a[stage]), b = wgmma_descriptor(shared->b[stage]);
        wgmma_fence();
        for (u32 part = 0; part < 4; part++) {
            if (step == 0 && part == 0) {
                wgmma_begin(acc, a, b);
            } else {
                wgmma_add(acc, a + 2 * part, b + 2 * part);
            }
        }
        wgmma_commit();
        if (!(out & 4)) {
            wgmma_wait<0>();
        }
        mbarrier_arrive(&shared->empty[stage]);
    }
    wgmma_wait<0>();
    wgmma_settle(acc);
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (u32 i = 0; i < 128; i++) {
        c[(16 * warp + lane / 4 + 8 * (i / 2 % 2)) * 256 + 8 * (i / 4) + 2 * (lane % 4) + i % 2] = acc[i];
    }
}

KERNEL layout_wgmma(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map, u32 d, f32* c) {
    layout_wgmma_without(0, &a_map, &b_map, d, c);
}
REGISTER(layout_wgmma)
KERNEL fault_never_full(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map, u32 d, f32* c) {
    layout_wgmma_without(1, &a_map, &b_map, d, c);
}
REGISTER(fault_never_full)
KERNEL fault_never_empty(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map, u32 d, f32* c) {
    layout_wgmma_without(2, &a_map, &b_map, d, c);
}
REGISTER(fault_never_empty)
KERNEL fault_products_not_done(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map, u32 d, f32* c) {
    layout_wgmma_without(4, &a_map, &b_map, d, c);
}
REGISTER(fault_products_not_done)

// One warp copies 16 words through shared memory, and does not wait for the copy.
KERNEL fault_copy_without_wait(const u32* from, u32* to) {
    __shared__ __align__(16) u32 tile[128];
    cp_async16(tile + 4 * threadIdx.x, from + 4 * threadIdx.x, true);
    cp_async_commit();
    __syncthreads();
    for (u32 i = threadIdx.x; i < 128; i += 32) {
        to[i] = tile[i];
    }
    cp_async_wait<0>();
}
REGISTER(fault_copy_without_wait)

// A buffer is filled again while others read it: a barrier is missing at the end of the loop.
KERNEL fault_buffer_reused(const u32* from, u32* to, u32 rounds) {
    __shared__ __align__(16) u32 tile[128];
    for (u32 round = 0; round < rounds; round++) {
        if (threadIdx.x < 32) {
            cp_async16(tile + 4 * threadIdx.x, from + 128 * round + 4 * threadIdx.x, true);
            cp_async_commit();
            cp_async_wait<0>();
        }
        __syncthreads();
        to[128 * round + threadIdx.x] = tile[127 - threadIdx.x];
    }
}
REGISTER(fault_buffer_reused)

// Waits for a barrier on which nobody arrives.
KERNEL fault_nobody_arrives(u32* to) {
    __shared__ u64 barrier;
    if (threadIdx.x == 0) {
        mbarrier_init(&barrier, 1);
    }
    __syncthreads();
    mbarrier_wait(&barrier, 0);
    to[threadIdx.x] = 1;
}
REGISTER(fault_nobody_arrives)

// A barrier that was not initialised.
KERNEL fault_no_barrier(u32* to) {
    __shared__ u64 barrier;
    mbarrier_arrive(&barrier);
    to[threadIdx.x] = 1;
}
REGISTER(fault_no_barrier)
