// Kernels with planted faults: the simulator must report each. Not part of the fatbin.

#include "common.cuh"

// Reverses each block's part of `from` through shared memory; right.
KERNEL fault_none(const u32* from, u32* to, u32 n) {
    SHARED_DYN(u32, tile);
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    tile[threadIdx.x] = i < n ? from[i] : 0;
    __syncthreads();
    if (i < n) {
        to[i] = tile[blockDim.x - 1 - threadIdx.x];
    }
}
REGISTER(fault_none)

// Reads what another warp may not have written yet.
KERNEL fault_missing_barrier(const u32* from, u32* to, u32 n) {
    SHARED_DYN(u32, tile);
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    tile[threadIdx.x] = i < n ? from[i] : 0;
    if (i < n) {
        to[i] = tile[blockDim.x - 1 - threadIdx.x];
    }
}
REGISTER(fault_missing_barrier)

// Sums neighbours within a warp, without waiting for the neighbour.
KERNEL fault_missing_syncwarp(const u32* from, u32* to, u32 n) {
    __shared__ u32 tile[1024];
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    tile[threadIdx.x] = i < n ? from[i] : 0;
    u32 other = tile[threadIdx.x ^ 1u];
    if (i < n) {
        to[i] = other;
    }
}
REGISTER(fault_missing_syncwarp)

// All blocks write the same words.
KERNEL fault_blocks_meet(const u32* from, u32* to, u32 n) {
    if (threadIdx.x < n) {
        to[threadIdx.x] = from[threadIdx.x] + blockIdx.x;
    }
}
REGISTER(fault_blocks_meet)

// The last block to come adds up what the others left: right, as the counter orders them.
KERNEL fault_none_last_block(const u32* from, u32* to, u32 n) {
    __shared__ u32 turn;
    u32* counter = to + gridDim.x;
    if (threadIdx.x == 0) {
        to[blockIdx.x] = from[blockIdx.x] * n;
        __threadfence();
        turn = atomicAdd(counter, 1u);
    }
    __syncthreads();
    if (turn % gridDim.x == gridDim.x - 1 && threadIdx.x < gridDim.x) {
        atomicAdd(to + gridDim.x + 1, to[threadIdx.x]);
    }
}
REGISTER(fault_none_last_block)

// Reads shared memory that nobody wrote.
KERNEL fault_stale_shared(u32* to) {
    __shared__ u32 tile[64];
    if (threadIdx.x < 32) {
        tile[threadIdx.x] = blockIdx.x;
    }
    __syncthreads();
    to[blockIdx.x * 64 + threadIdx.x] = tile[threadIdx.x];
}
REGISTER(fault_stale_shared)

// Writes one element beyond dynamic shared memory.
KERNEL fault_shared_overrun(u32* to, u32 n) {
    SHARED_DYN(u32, tile);
    tile[threadIdx.x + 1] = threadIdx.x;
    __syncthreads();
    if (threadIdx.x < n) {
        to[threadIdx.x] = tile[threadIdx.x];
    }
}
REGISTER(fault_shared_overrun)

// Writes one element beyond a `__shared__` array.
KERNEL fault_static_overrun(u32* to, u32 n) {
    __shared__ u32 tile[32];
    tile[threadIdx.x + 1] = threadIdx.x;
    __syncthreads();
    if (threadIdx.x < n) {
        to[threadIdx.x] = tile[threadIdx.x];
    }
}
REGISTER(fault_static_overrun)

// Writes beyond a buffer where the grid is not a divisor of n.
KERNEL fault_global_overrun(u32* to) { to[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x; }
REGISTER(fault_global_overrun)

// Two barriers where all threads must come to one.
KERNEL fault_divergent_barrier(u32* to) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        to[threadIdx.x] = 1;
        __syncthreads();
    }
}
REGISTER(fault_divergent_barrier)

// Lane 5 stays away from the sum.
KERNEL fault_missing_lane(u32* to) {
    u32 sum = threadIdx.x;
    if (threadIdx.x != 5) {
        sum = warp_sum(sum);
    }
    to[threadIdx.x] = sum;
}
REGISTER(fault_missing_lane)

// The mask leaves out a lane that calls.
KERNEL fault_mask(u32* to) { to[threadIdx.x] = __ballot_sync(0xffffu, threadIdx.x & 1u); }
REGISTER(fault_mask)

// Half of the warp shuffles while the other half votes.
KERNEL fault_two_collectives(u32* to) {
    u32 v;
    if (threadIdx.x < 16) {
        v = __shfl_sync(FULL, threadIdx.x, 0);
    } else {
        v = __ballot_sync(FULL, 1);
    }
    to[threadIdx.x] = v;
}
REGISTER(fault_two_collectives)

// The first warp waits for the second, and the second for the first lane of its own.
KERNEL fault_deadlock(u32* to) {
    if (threadIdx.x != 40) {
        __syncthreads();
    } else {
        __syncwarp();
    }
    to[threadIdx.x] = 1;
}
REGISTER(fault_deadlock)

// Polls for what never comes.
KERNEL fault_livelock(u32* to) {
    while (atomicAdd(to, 0u) == 0) {
        __nanosleep(100);
    }
}
REGISTER(fault_livelock)

KERNEL fault_trap(u32* to) {
    if (to[0] != threadIdx.x) {
        __trap();
    }
}
REGISTER(fault_trap)
