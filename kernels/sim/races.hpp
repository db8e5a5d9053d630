// Who touched what last: two threads that touch the same bytes, one of them writing, with nothing between that orders them, are reported
// whatever the results were. Compiled with `-fsanitize=thread -DLAPIDARY_RACES=1`, whose calls land here instead of in gcc's runtime.
//
// A clock per thread of the threads that it has heard of: barriers, __syncwarp and mbarriers tell, votes and shuffles do not (PTX: they order no
// memory). Blocks hear of each other through atomics on the same address, fences taken for granted. Atomics and volatile reads do not race with
// each other. What the copy engine writes and wgmma reads is not looked at, nor are accesses of one byte.
#pragma once

#include "machine.hpp"

#ifndef LAPIDARY_RACES
#define LAPIDARY_RACES 0
#endif

#if LAPIDARY_RACES

#include <dlfcn.h>

#include <map>
#include <mutex>

namespace sim {

// Two bytes. Threads are numbered through the launch: turn of the cluster * threads of a cluster + number in it, from 1.
struct Cell {
    u32 writer = 0, writer_clock = 0, writer_epoch = 0, reader = 0, reader_clock = 0, reader_epoch = 0;
    u16 writer_site = 0, reader_site = 0;
    bool atomic_write = false, atomic_read = false;
};

struct Range {
    uintptr_t first, end;
    bool shared;
    std::vector<Cell> cells;  // Made when somebody first touches it.
};

struct Races {
    std::map<uintptr_t, size_t> buffers;  // Of the engine: address, bytes.
    std::vector<Range> ranges;  // Buffers by address, then shared memory.
    size_t n_buffers = 0;
    std::vector<Site> sites;
    std::vector<std::vector<u32>> clocks;  // [thread of the cluster][thread of the cluster]
    std::vector<u32> all;
    std::map<const void*, std::vector<u32>> told;  // By barriers in shared memory.
    std::map<uintptr_t, std::vector<bool>> atomics;  // By address: the clusters that used it.
    std::vector<bool> heard;  // The clusters that this one has heard of.
    u32 turn = 0, clusters = 0, epoch = 0;  // Epochs are what barriers of a whole block that is alone divide.
    bool atomic = false, busy = false;
};
static Races races;
static std::mutex races_buffers;
static thread_local bool launching = false;  // Other threads of the process come here too.

static inline u32 number_of(const Fibre* fibre) { return static_cast<u32>(fibre->block - machine.running.data()) * machine.threads + fibre->rank; }

static inline u16 site_number(Site site) {
    for (size_t i = races.sites.size(); i-- > 0;) {
        if (!(races.sites[i] != site)) {
            return static_cast<u16>(i);
        }
    }
    races.sites.push_back(site);
    return static_cast<u16>(races.sites.size() - 1);
}

static void races_begin(u32 clusters) {
    Races& r = races;
    std::lock_guard<std::mutex> lock(races_buffers);
    r.atomic = r.busy = false;
    r.ranges.clear();
    for (const auto& buffer : r.buffers) {
        r.ranges.push_back(Range{buffer.first, buffer.first + buffer.second, false, {}});
    }
    r.n_buffers = r.ranges.size();
    r.sites.assign(1, NOWHERE);
    r.atomics.clear();
    r.clusters = clusters;
    r.turn = 0;
}

// A cluster begins: shared memory is new, nobody has heard of anybody.
static void races_cluster(u32 turn) {
    Races& r = races;
    u32 threads = machine.threads * static_cast<u32>(machine.running.size());
    r.turn = turn;
    r.epoch = 1;
    r.clocks.assign(threads, std::vector<u32>(threads, 0));
    for (u32 i = 0; i < threads; i++) {
        r.clocks[i][i] = 1;
    }
    r.told.clear();
    r.heard.assign(r.clusters, false);
    r.heard[turn] = true;
    r.ranges.resize(r.n_buffers);
    for (const Block& block : machine.running) {
        if (block.shared) {
            uintptr_t at = reinterpret_cast<uintptr_t>(block.shared);
            r.ranges.push_back(Range{at, at + block.shared_bytes, true, {}});
        }
    }
#if defined(__ELF__)
    uintptr_t at = reinterpret_cast<uintptr_t>(__start_lapidary_shared), end = reinterpret_cast<uintptr_t>(__stop_lapidary_shared);
    if (at < end) {
        r.ranges.push_back(Range{at, end, true, {}});
    }
#endif
}

static inline void hear(std::vector<u32>& clock, const std::vector<u32>& other) {
    for (size_t i = 0; i < clock.size(); i++) {
        clock[i] = other[i] > clock[i] ? other[i] : clock[i];
    }
}

// All of them met: each has heard of what the others did before, and begins a new time.
static void races_met(Fibre** members, u32 n, bool everybody) {
    if (everybody && machine.running.size() == 1) {
        races.epoch++;
        return;
    }
    std::vector<u32>& all = races.all;
    all.assign(races.clocks.size(), 0);
    for (u32 i = 0; i < n; i++) {
        if (members[i]) {
            hear(all, races.clocks[number_of(members[i])]);
        }
    }
    for (u32 i = 0; i < n; i++) {
        if (members[i]) {
            u32 at = number_of(members[i]);
            races.clocks[at] = all;
            races.clocks[at][at]++;
        }
    }
}

// Through a barrier in shared memory: who arrives tells, who has waited hears.
static void races_tell(const void* barrier) {
    u32 me = number_of(self);
    std::vector<u32>& told = races.told[barrier];
    told.resize(races.clocks.size());
    hear(told, races.clocks[me]);
    races.clocks[me][me]++;
}
static void races_hear(const void* barrier) {
    std::vector<u32>& told = races.told[barrier];
    told.resize(races.clocks.size());
    hear(races.clocks[number_of(self)], told);
}

// An atomic on this address: this cluster hears of those that used it before.
static void races_atomic(uintptr_t at) {
    std::vector<bool>& used = races.atomics[at];
    used.resize(races.clusters);
    if (!used[races.turn]) {
        for (u32 i = 0; i < races.clusters; i++) {
            races.heard[i] = races.heard[i] || used[i];
        }
        used[races.turn] = true;
    }
}

static inline bool ordered_before_me(u32 thread, u32 clock, u32 epoch) {
    u32 threads = static_cast<u32>(races.clocks.size()), turn = (thread - 1) / threads;
    return turn != races.turn ? races.heard[turn] : epoch < races.epoch || races.clocks[number_of(self)][(thread - 1) % threads] >= clock;
}

static std::string function_at(const void* pc) {
    Dl_info info;
    if (!dladdr(pc, &info)) {
        return "?";
    }
    std::string command = text("addr2line -C -f -e '%s' %#zx 2>/dev/null", info.dli_fname,
                               static_cast<size_t>(static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase) - 1));
    std::string said;
    if (FILE* out = popen(command.c_str(), "r")) {
        char line[256];
        while (fgets(line, sizeof line, out)) {
            std::string word(line, strcspn(line, "\n"));
            size_t slash = word.rfind('/');
            said += (said.empty() ? "" : " ") + (word[0] == '?' ? std::string() : said.empty() || slash == std::string::npos ? word : word.substr(slash + 1));
        }
        pclose(out);
    }
    return said.empty() ? "?" : said;
}

static void race(const Range& range, uintptr_t at, const char* doing, const char* did, u32 other, u16 site, const void* pc) {
    u32 threads = static_cast<u32>(races.clocks.size()), turn = (other - 1) / threads, rank = (other - 1) % threads % machine.threads;
    races.busy = false;
    self->quiet = true;
    die(text("RACE: thread %u %s byte %zu of ", self->rank, doing, static_cast<size_t>(at - range.first)) +
        (range.shared ? std::string("shared memory") : text("a buffer of %zu", static_cast<size_t>(range.end - range.first))) + " in " + (pc ? function_at(pc) : "an asynchronous copy or ldmatrix") +
        (self->site.line ? ", having met others" + sim::at(self->site) : std::string()) + text("; thread %u%s %s it", rank, turn == races.turn ? "" : " of another block", did) +
        (races.sites[site].line ? ", having met others" + sim::at(races.sites[site]) : std::string()) + ", and nothing orders the two");
}

static Range* range_of(uintptr_t at, uintptr_t end) {
    Races& r = races;
    for (size_t i = r.n_buffers; i < r.ranges.size(); i++) {
        if (at >= r.ranges[i].first && end <= r.ranges[i].end) {
            return &r.ranges[i];
        }
    }
    // The last buffer that begins at or before.
    size_t low = 0, high = r.n_buffers;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (r.ranges[middle].first <= at) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low > 0 && end <= r.ranges[low - 1].end ? &r.ranges[low - 1] : nullptr;
}

static void touched(const void* address, u32 bytes, bool write, bool atomic, const void* pc) {
    uintptr_t at = reinterpret_cast<uintptr_t>(address);
    Range* found = range_of(at, at + bytes);
    if (!found) {
        return;
    }
    Range& range = *found;
    if (range.cells.empty()) {
        range.cells.resize((range.end - range.first + 1) / 2);
    }
    atomic = atomic || races.atomic;
    if (races.atomic && !range.shared) {
        races_atomic(at);
    }
    u32 number = number_of(self), me = races.turn * static_cast<u32>(races.clocks.size()) + number + 1;
    u32 clock = races.clocks[number][number];
    u16 site = site_number(self->site);
    for (uintptr_t byte = at; byte < at + bytes; byte += 2) {
        Cell& cell = range.cells[(byte - range.first) / 2];
        if (cell.writer && cell.writer != me && !(atomic && cell.atomic_write) && !ordered_before_me(cell.writer, cell.writer_clock, cell.writer_epoch)) {
            race(range, byte, write ? "writes" : "reads", "wrote", cell.writer, cell.writer_site, pc);
        }
        if (write && cell.reader && cell.reader != me && !(atomic && cell.atomic_read) && !ordered_before_me(cell.reader, cell.reader_clock, cell.reader_epoch)) {
            race(range, byte, "writes", "read", cell.reader, cell.reader_site, pc);
        }
        if (write) {
            cell.writer = me, cell.writer_clock = clock, cell.writer_epoch = races.epoch, cell.writer_site = site, cell.atomic_write = atomic;
        } else {
            cell.reader = me, cell.reader_clock = clock, cell.reader_epoch = races.epoch, cell.reader_site = site, cell.atomic_read = atomic;
        }
    }
}

// What the checker itself touches comes here too.
__attribute__((no_sanitize_thread)) static void touch(const void* address, u32 bytes, bool write, bool atomic, const void* pc) {
    if (!launching || !self || self->quiet || races.busy || bytes < 2) {
        return;
    }
    races.busy = true;
    touched(address, bytes, write, atomic, pc);
    races.busy = false;
}
static inline void copied(const void* to, const void* from) {
    touch(from, from ? 16 : 0, false, false, nullptr);
    touch(to, to ? 16 : 0, true, false, nullptr);
}

// The calls are inserted late: nothing may move across before.
struct Atomic {
    Atomic() {
        races.atomic = true;
        __asm__ volatile("" ::: "memory");
    }
    ~Atomic() {
        __asm__ volatile("" ::: "memory");
        races.atomic = false;
    }
};

}  // namespace sim

#define SIM_HOOK extern "C" __attribute__((no_sanitize_thread))
#define SIM_TOUCH(N)                                                                                                                     \
    SIM_HOOK void __tsan_read##N(void* at) { sim::touch(at, N, false, false, __builtin_return_address(0)); }                        \
    SIM_HOOK void __tsan_write##N(void* at) { sim::touch(at, N, true, false, __builtin_return_address(0)); }                        \
    SIM_HOOK void __tsan_unaligned_read##N(void* at) { sim::touch(at, N, false, false, __builtin_return_address(0)); }              \
    SIM_HOOK void __tsan_unaligned_write##N(void* at) { sim::touch(at, N, true, false, __builtin_return_address(0)); }              \
    SIM_HOOK void __tsan_volatile_read##N(void* at) { sim::touch(at, N, false, true, __builtin_return_address(0)); }                \
    SIM_HOOK void __tsan_volatile_write##N(void* at) { sim::touch(at, N, true, true, __builtin_return_address(0)); }                \
    SIM_HOOK void __tsan_unaligned_volatile_read##N(void* at) { sim::touch(at, N, false, true, __builtin_return_address(0)); }      \
    SIM_HOOK void __tsan_unaligned_volatile_write##N(void* at) { sim::touch(at, N, true, true, __builtin_return_address(0)); }
SIM_TOUCH(1)
SIM_TOUCH(2)
SIM_TOUCH(4)
SIM_TOUCH(8)
SIM_TOUCH(16)
#undef SIM_TOUCH
SIM_HOOK void __tsan_read_range(void* at, size_t n) { sim::touch(at, static_cast<u32>(n), false, false, __builtin_return_address(0)); }
SIM_HOOK void __tsan_write_range(void* at, size_t n) { sim::touch(at, static_cast<u32>(n), true, false, __builtin_return_address(0)); }
SIM_HOOK void __tsan_init() {}
SIM_HOOK void __tsan_func_entry(void*) {}
SIM_HOOK void __tsan_func_exit() {}
SIM_HOOK void __tsan_vptr_update(void**, void*) {}
SIM_HOOK void __tsan_vptr_read(void**) {}

#else

namespace sim {
struct Atomic {
    Atomic() {}
};
static bool launching;
static inline void races_begin(u32) {}
static inline void races_cluster(u32) {}
static inline void races_met(Fibre**, u32, bool) {}
static inline void races_tell(const void*) {}
static inline void races_hear(const void*) {}
static inline void copied(const void*, const void*) {}
}  // namespace sim

#endif

namespace sim {
// Accesses inside are the simulator's, not the kernel's.
struct Quiet {
    Fibre* fibre = self;
    bool before = fibre && fibre->quiet;
    Quiet() { set(true); }
    ~Quiet() { set(before); }
    void set(bool to) {
        __asm__ volatile("" ::: "memory");
        if (fibre) {
            fibre->quiet = to;
        }
        __asm__ volatile("" ::: "memory");
    }
};
}  // namespace sim

// The engine says which buffers there are: those are watched.
extern "C" void lapidary_sim_buffer(const void* at, size_t bytes, int alive) {
#if LAPIDARY_RACES
    std::lock_guard<std::mutex> lock(sim::races_buffers);
    std::map<uintptr_t, size_t>& buffers = sim::races.buffers;
    uintptr_t first = reinterpret_cast<uintptr_t>(at);
    if (!alive) {
        buffers.erase(first);
    } else if (bytes > 0) {
        // What was here before is gone, whether or not anybody said so.
        for (auto other = buffers.begin(); other != buffers.end();) {
            other = other->first < first + bytes && first < other->first + other->second ? buffers.erase(other) : std::next(other);
        }
        buffers[first] = bytes;
    }
#else
    (void)at, (void)bytes, (void)alive;
#endif
}
