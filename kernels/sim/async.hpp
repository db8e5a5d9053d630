// What goes on beside the threads: copies to shared memory (cp.async), the copy engine (TMA), and the barriers that count its bytes.
// When a copy happens is part of the schedule: as late as it may (0), at once (1), or at random; so both a missing wait and a buffer that is
// overwritten too early show.
#pragma once

#include "meet.hpp"

struct TensorMap;  // kernels/hopper.cuh: 16 words.

namespace sim {

// Shared addresses of `__shared__` variables: above what dynamic shared memory can have.
static const u32 STATICS = 0x80000;

static inline u32 shared_offset(const void* at) {
    const unsigned char* byte = static_cast<const unsigned char*>(at);
    for (Block& block : machine.running) {
        if (block.shared && byte >= block.shared && byte <= block.shared + block.shared_bytes) {
            return static_cast<u32>(byte - block.shared);
        }
    }
#if defined(__ELF__)
    if (byte >= __start_lapidary_shared && byte < __stop_lapidary_shared) {
        return STATICS + static_cast<u32>(byte - __start_lapidary_shared);
    }
#endif
    die("an address that is not in shared memory is used as one");
}

// The same place in another block of the cluster.
static inline unsigned char* mapped(const void* at, u32 rank) {
    u32 offset = shared_offset(at);
    if (rank >= machine.running.size() || offset >= STATICS) {
        die(text("shared byte %u of block %u of a cluster of %zu: only dynamic shared memory can be reached so", offset, rank, machine.running.size()));
    }
    return machine.running[rank].shared + offset;
}

static inline bool at_once() { return machine.schedule == 1 || (machine.schedule > 1 && (machine.random.next() & 1u)); }

// --- copies of a thread ---

static inline void perform(const Copy& copy) {
    copied(copy.to, copy.wanted ? copy.from : nullptr);
    if (copy.wanted) {
        memcpy(copy.to, copy.from, 16);
    } else {
        memset(copy.to, 0, 16);
    }
}

static inline void cp_async16(void* to, const void* from, bool wanted) {
    if ((reinterpret_cast<uintptr_t>(to) | (wanted ? reinterpret_cast<uintptr_t>(from) : 0)) & 15u) {
        die("cp.async of 16 bytes: an address is no multiple of 16");
    }
    shared_offset(to);
    Copy copy = {to, from, self->copy_groups, wanted};
    if (at_once()) {
        perform(copy);
    } else {
        self->copies.push_back(copy);
    }
}

static inline void cp_async_commit() { self->copy_groups++; }

static inline void cp_async_wait(u32 pending) {
    Fibre& me = *self;
    size_t kept = 0;
    for (const Copy& copy : me.copies) {
        // Groups are numbered from 0 and the one that is open has the number `copy_groups`, which a wait does not cover.
        if (copy.group + pending < me.copy_groups) {
            perform(copy);
        } else {
            me.copies[kept++] = copy;
        }
    }
    me.copies.resize(kept);
}

// --- barriers that count arrivals and bytes ---

struct Mbarrier {
    u64* at;
    u32 arrivals, pending;
    i64 bytes;
    u32 phase;
};

// A tile on its way.
struct Load {
    void* to;
    u64 words[16];
    u64* barrier;
    i32 column, row;
};

static std::vector<Mbarrier> mbarriers;
static std::vector<Load> loads;
static const u64 MBARRIER = 0x6d62617272696572ull;

static inline Mbarrier& mbarrier_at(u64* at, const char* what) {
    for (Mbarrier& barrier : mbarriers) {
        if (barrier.at == at) {
            if (*at != MBARRIER) {
                die(text("%s: something overwrote the mbarrier at shared byte %u", what, shared_offset(at)));
            }
            return barrier;
        }
    }
    die(text("%s: the mbarrier at shared byte %u was not initialised", what, shared_offset(at)));
}

static inline void mbarrier_init(u64* at, u32 arrivals) {
    Quiet quiet;
    if (shared_offset(at) % 8 != 0 || arrivals == 0 || arrivals >= 1u << 20) {
        die(text("mbarrier.init at shared byte %u for %u arrivals", shared_offset(at), arrivals));
    }
    *at = MBARRIER;
    for (Mbarrier& barrier : mbarriers) {
        if (barrier.at == at) {
            barrier = Mbarrier{at, arrivals, arrivals, 0, 0};
            return;
        }
    }
    mbarriers.push_back(Mbarrier{at, arrivals, arrivals, 0, 0});
}

static inline void mbarrier_advance(Mbarrier& barrier) {
    if (barrier.pending > 0 || barrier.bytes != 0) {
        return;
    }
    barrier.phase ^= 1;
    barrier.pending = barrier.arrivals;
    for (u32 i : machine.order) {
        Fibre* fibre = machine.fibres[i];
        if (fibre->state == State::Waiting && fibre->frame == barrier.at) {
            wake(fibre);
        }
    }
}

static inline void mbarrier_arrive_with(u64* at, i64 bytes, const char* what) {
    Quiet quiet;
    races_tell(at);
    Mbarrier& barrier = mbarrier_at(at, what);
    if (barrier.pending == 0) {
        die(text("%s: more arrivals at shared byte %u than the %u that it was initialised for", what, shared_offset(at), barrier.arrivals));
    }
    barrier.pending--;
    barrier.bytes += bytes;
    mbarrier_advance(barrier);
}

static inline void mbarrier_arrive(u64* at) {
    mbarrier_arrive_with(at, 0, "mbarrier.arrive");
    maybe_leave();
}

static inline void mbarrier_arrive_at(u64* at, u32 rank) { mbarrier_arrive(reinterpret_cast<u64*>(mapped(at, rank))); }

static inline void mbarrier_expect(u64* at, u32 bytes) { mbarrier_arrive_with(at, bytes, "mbarrier.arrive.expect_tx"); }

static inline void mbarrier_wait(u64* at, u32 parity) {
    Quiet quiet;
    while (mbarrier_at(at, "mbarrier.try_wait").phase == (parity & 1u)) {
        self->frame = at;
        park("mbarrier.try_wait", NOWHERE, 0);
        self->frame = nullptr;
    }
    races_hear(at);
}

// --- the copy engine ---

static void land(const Load& load) {
    Quiet quiet;
    const u64* map = load.words;
    i64 columns = static_cast<i64>(map[1]), rows = static_cast<i64>(map[2]);
    u32 box_columns = static_cast<u32>(map[4]), box_rows = static_cast<u32>(map[5]);
    unsigned char* to = static_cast<unsigned char*>(load.to);
    for (u32 r = 0; r < box_rows; r++) {
        for (u32 c = 0; c < box_columns; c++) {
            i64 row = static_cast<i64>(load.row) + r, column = static_cast<i64>(load.column) + c;
            u16 element = 0;
            if (row >= 0 && row < rows && column >= 0 && column < columns) {
                memcpy(&element, reinterpret_cast<const unsigned char*>(map[0]) + static_cast<u64>(row) * map[3] + 2 * column, 2);
            }
            u32 byte = r * 128 + 2 * c;
            memcpy(to + (byte ^ ((byte >> 7 & 7u) << 4)), &element, 2);
        }
    }
    Mbarrier& barrier = mbarrier_at(load.barrier, "the copy engine");
    barrier.bytes -= 2 * static_cast<i64>(box_columns) * box_rows;
    mbarrier_advance(barrier);
}

static inline void tma_load(void* to, const TensorMap* map, u64* barrier, i32 column, i32 row) {
    Load load = {to, {}, barrier, column, row};
    memcpy(load.words, map, sizeof load.words);
    mbarrier_at(barrier, "cp.async.bulk.tensor");
    if (shared_offset(to) % 1024 != 0) {
        die(text("cp.async.bulk.tensor: a swizzled tile at shared byte %u, which is no multiple of 1024", shared_offset(to)));
    }
    if (load.words[4] != 64 || load.words[5] == 0 || load.words[5] > 256 || load.words[0] % 16 != 0 || load.words[3] % 16 != 0) {
        die("cp.async.bulk.tensor: boxes are 64 columns by 1 to 256 rows, addresses and strides multiples of 16 bytes");
    }
    if (at_once()) {
        land(load);
    } else {
        loads.push_back(load);
    }
    maybe_leave();
}

// To the same place in all blocks of the cluster, on the barrier at the same place in each.
static inline void tma_load_all(void* to, const TensorMap* map, u64* barrier, i32 column, i32 row) {
    for (u32 rank = 0; rank < machine.running.size(); rank++) {
        tma_load(mapped(to, rank), map, reinterpret_cast<u64*>(mapped(barrier, rank)), column, row);
    }
}

// One copy that is under way arrives, in whatever order; false if there is none.
static bool async_one() {
    if (loads.empty()) {
        return false;
    }
    size_t at = machine.schedule > 1 ? machine.random.below(static_cast<u32>(loads.size())) : 0;
    Load load = loads[at];
    loads.erase(loads.begin() + static_cast<long>(at));
    land(load);
    return true;
}

static inline void async_chance() {
    while (machine.random.below(2) && async_one()) {
    }
}

static inline bool async_left() { return !loads.empty(); }

static inline void async_clear() {
    loads.clear();
    mbarriers.clear();
}

}  // namespace sim
