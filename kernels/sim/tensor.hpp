// Products by a warp (mma.sync, ldmatrix) and by a warpgroup (wgmma), on bf16 with f32 sums, in PTX's layouts of fragments. Sums go in an order
// of their own: the chip's is not documented.
#pragma once

#include "async.hpp"

namespace sim {

static inline float bf16_value(u16 bits) {
    u32 word = static_cast<u32>(bits) << 16;
    float v;
    memcpy(&v, &word, 4);
    return v;
}

// --- a warp ---

struct MatrixRow {
    const void* row;
    u32* out;
    bool transposed;
};

static void load_matrices(Fibre** lanes) {
    u16 element[4][8][8];
    for (u32 i = 0; i < 32; i++) {
        memcpy(element[i / 8][i % 8], static_cast<MatrixRow*>(lanes[i]->frame)->row, 16);
    }
    for (u32 lane = 0; lane < 32; lane++) {
        MatrixRow& to = *static_cast<MatrixRow*>(lanes[lane]->frame);
        for (u32 j = 0; j < 4; j++) {
            u32 g = lane / 4, t = 2 * (lane % 4);
            u32 low = to.transposed ? element[j][t][g] : element[j][g][t], high = to.transposed ? element[j][t + 1][g] : element[j][g][t + 1];
            to.out[j] = low | high << 16;
        }
    }
}

static inline void ldmatrix_any(const char* what, u32 (&r)[4], const void* row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) & 15u) {
        die(text("%s: the row of thread %u begins at no multiple of 16 bytes", what, self->rank));
    }
    shared_offset(row);
    copied(nullptr, row);
    MatrixRow mine = {row, r, transposed};
    meet_warp(what, 0xffffffffu, NOWHERE, &mine, load_matrices);
}
static inline void ldmatrix_x4(u32 (&r)[4], const void* row) { ldmatrix_any("ldmatrix", r, row, false); }
static inline void ldmatrix_x4_trans(u32 (&r)[4], const void* row) { ldmatrix_any("ldmatrix.trans", r, row, true); }

struct Fragment {
    float* c;
    const u32* a;
    u32 b[2];
};

static void multiply_fragments(Fibre** lanes) {
    float a[16][16], b[8][16];
    for (u32 lane = 0; lane < 32; lane++) {
        const Fragment& from = *static_cast<Fragment*>(lanes[lane]->frame);
        u32 g = lane / 4, t = 2 * (lane % 4);
        for (u32 half = 0; half < 2; half++) {
            for (u32 i = 0; i < 4; i++) {
                a[g + 8 * (i & 1)][t + 8 * (i >> 1) + half] = bf16_value(static_cast<u16>(from.a[i] >> 16 * half));
            }
            for (u32 i = 0; i < 2; i++) {
                b[g][t + 8 * i + half] = bf16_value(static_cast<u16>(from.b[i] >> 16 * half));
            }
        }
    }
    for (u32 lane = 0; lane < 32; lane++) {
        Fragment& to = *static_cast<Fragment*>(lanes[lane]->frame);
        for (u32 i = 0; i < 4; i++) {
            u32 row = lane / 4 + 8 * (i >> 1), column = 2 * (lane % 4) + (i & 1);
            double sum = to.c[i];
            for (u32 k = 0; k < 16; k++) {
                sum += static_cast<double>(a[row][k]) * b[column][k];
            }
            to.c[i] = static_cast<float>(sum);
        }
    }
}

static inline void mma_m16n8k16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    Fragment mine = {c, a, {b0, b1}};
    meet_warp("mma.m16n8k16", 0xffffffffu, NOWHERE, &mine, multiply_fragments);
}

// --- a warpgroup ---

// The 128 threads from a multiple of 128 on. `finish` sees them by rank.
static void meet_warpgroup(const char* what, Finish finish) {
    Quiet quiet;
    Fibre& me = *self;
    u32 first = me.rank & ~127u;
    if (first + 128 > machine.threads) {
        die(text("%s: thread %u is in no whole warpgroup", what, me.rank));
    }
    Barrier& barrier = me.block->groups[first / 128];
    if (!barrier.waiting.empty() && strcmp(barrier.waiting[0]->what, what) != 0) {
        die(text("divergent warpgroup: thread %u is in %s, thread %u in %s", me.rank, what, barrier.waiting[0]->rank, barrier.waiting[0]->what));
    }
    me.what = what;
    barrier.waiting.push_back(&me);
    if (barrier.waiting.size() < 128) {
        park(what, NOWHERE, 0);
        return;
    }
    Fibre* members[128];
    for (u32 i = 0; i < 128; i++) {
        members[i] = me.block->fibres[first + i];
    }
    finish(members, 128);
    for (Fibre* member : barrier.waiting) {
        if (member != &me) {
            wake(member);
        }
    }
    barrier.waiting.clear();
}

// `rows` x 16 operands from a tile with 128 bytes per row and a swizzle of 128 bytes.
static void gather(u64 descriptor, u32 rows, float (*to)[16]) {
    u32 start = static_cast<u32>(descriptor & 0x3fff) << 4, step = static_cast<u32>(descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0 || (start & 0x380u) != 0) {
        die(text("wgmma: descriptor %016llx is not one of a tile at a multiple of 1024 bytes, swizzled by 128", descriptor));
    }
    for (u32 r = 0; r < rows; r++) {
        for (u32 k = 0; k < 16; k++) {
            u32 at = start + r / 8 * step + r % 8 * 128 + 2 * k;
            at ^= (at >> 7 & 7u) << 4;
            if (at + 2 > self->block->shared_bytes) {
                die(text("wgmma: an operand reaches to byte %u of %u of dynamic shared memory", at + 2, self->block->shared_bytes));
            }
            u16 bits;
            memcpy(&bits, self->block->shared + at, 2);
            to[r][k] = bf16_value(bits);
        }
    }
}

static void multiply(Fibre** members, size_t index) {
    static float a[64][16], b[256][16], across[16][256], sums[256];
    const Product& product = members[0]->products[index];
    for (u32 t = 0; t < 128; t++) {
        std::vector<Product>& all = members[t]->products;
        if (index >= all.size() || all[index].a != product.a || all[index].b != product.b || all[index].add != product.add) {
            die(text("wgmma: threads %u and %u of a warpgroup started different products", members[0]->rank, members[t]->rank));
        }
    }
    gather(product.a, 64, a);
    gather(product.b, 256, b);
    for (u32 n = 0; n < 256; n++) {
        for (u32 k = 0; k < 16; k++) {
            across[k][n] = b[n][k];
        }
    }
    for (u32 m = 0; m < 64; m++) {
        for (u32 n = 0; n < 256; n++) {
            sums[n] = 0.0f;
        }
        for (u32 k = 0; k < 16; k++) {
            for (u32 n = 0; n < 256; n++) {
                sums[n] += a[m][k] * across[k][n];
            }
        }
        // Row m belongs to four lanes of warp m / 16.
        for (u32 n = 0; n < 256; n++) {
            u32 thread = m / 16 * 32 + m % 8 * 4 + n % 8 / 2, i = n / 8 * 4 + m / 8 % 2 * 2 + n % 2;
            float* to = members[thread]->products[index].sums + i;
            *to = product.add ? *to + sums[n] : sums[n];
        }
    }
}

// All products of groups before `group`.
static u32 due_group;
static void perform_products(Fibre** members, u32 n) {
    size_t due = 0;
    while (due < members[0]->products.size() && members[0]->products[due].group < due_group) {
        multiply(members, due++);
    }
    for (u32 t = 0; t < n; t++) {
        std::vector<Product>& all = members[t]->products;
        all.erase(all.begin(), all.begin() + static_cast<long>(due));
    }
}

static inline void wgmma_fence() { self->fenced = true; }

static inline void wgmma_m64n256k16(float (&acc)[128], u64 a, u64 b, bool add) {
    Fibre& me = *self;
    if (!me.fenced) {
        die(text("wgmma: thread %u starts its first product without a wgmma.fence", me.rank));
    }
    me.products.push_back(Product{acc, a, b, me.product_groups, add});
}

static inline void wgmma_commit() {
    Fibre& me = *self;
    me.product_groups++;
    // Whether it happens now must be the same for all 128 threads.
    Random coin = {machine.schedule * 0x9e3779b97f4a7c15ull + me.product_groups};
    if (machine.schedule == 1 || (machine.schedule > 1 && (coin.next() & 1u))) {
        meet_warpgroup("wgmma.commit_group", [](Fibre** members, u32 n) {
            due_group = members[0]->product_groups;
            perform_products(members, n);
        });
    }
}

static inline void wgmma_wait(u32 pending) {
    Fibre& me = *self;
    u32 group = me.product_groups > pending ? me.product_groups - pending : 0;
    static u32 asked;
    asked = group;
    meet_warpgroup("wgmma.wait_group", [](Fibre** members, u32 n) {
        due_group = asked;
        perform_products(members, n);
    });
}

}  // namespace sim
