// Exact top-k out of a stream of columns, the part that all fused encodes share.
#pragma once

#include "common.cuh"

// A candidate: the bits of its f32 value, and its column.
struct alignas(8) Entry {
    u32 bits;
    u32 column;
};
