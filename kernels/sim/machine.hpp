// The machine: one block of fibres at a time, who may run next, and what is said when nobody can. Not for: what threads wait for
// (meet.hpp, async.hpp).
#pragma once

#include <stdarg.h>
#include <string.h>

#include <string>
#include <vector>

#include "fibre.hpp"

// As in common.cuh, which comes after.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace sim {

// A line of a kernel. As a default argument `= here()` names the caller's line.
struct Site {
    const char* file;
    int line;
    bool operator!=(const Site& other) const { return line != other.line || (file != other.file && strcmp(file, other.file) != 0); }
};
static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return Site{file, line}; }

static inline std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
static inline std::string text(const char* format, ...) {
    char line[512];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    return line;
}

static const Site NOWHERE = {"", 0};

static inline std::string at(Site site) {
    const char* slash = strrchr(site.file, '/');
    return site.line ? text(" at %s:%d", slash ? slash + 1 : site.file, site.line) : std::string();
}

// Small and seeded: what is random must be repeatable.
struct Random {
    u64 state;
    u32 next() {
        state += 0x9e3779b97f4a7c15ull;
        u64 z = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return static_cast<u32>(z >> 32);
    }
    u32 below(u32 n) { return static_cast<u32>((static_cast<u64>(next()) * n) >> 32); }
    void shuffle(std::vector<u32>& v) {
        for (size_t i = v.size(); i > 1; i--) {
            u32 j = below(static_cast<u32>(i)), kept = v[i - 1];
            v[i - 1] = v[j];
            v[j] = kept;
        }
    }
};

// A copy that a thread started and that has not happened yet: 16 bytes, or zeroes.
struct Copy {
    void* to;
    const void* from;
    u32 group;
    bool wanted;
};

// A product of a warpgroup that has not happened yet (tensor.hpp).
struct Product {
    float* sums;
    u64 a, b;
    u32 group;
    bool add;
};

enum class State : u8 { Ready, Waiting, Done };

struct Block;

// A CUDA thread.
struct Fibre {
    Context context;
    Block* block = nullptr;
    State state = State::Done;
    uint3 thread = {0, 0, 0};
    u32 rank = 0, lane = 0, warp = 0;
    // While it waits, and after: what for, where, and what it brought.
    const char* what = "";
    Site site = {"", 0};
    u32 mask = 0;
    void* frame = nullptr;
    u32 calls = 0;
    // What it started and has not waited for, and how many groups it has closed.
    std::vector<Copy> copies;
    std::vector<Product> products;
    u32 copy_groups = 0, product_groups = 0;
    bool fenced = false, quiet = false;

    void start() {
        copies.clear();
        products.clear();
        calls = copy_groups = product_groups = 0;
        fenced = quiet = false;
        site = {"", 0};
    }
};

typedef void (*Finish)(Fibre** members, u32 n);

// Lanes of a warp on their way to one collective.
struct Meeting {
    u32 mask, arrived;
    const char* what;
    Site site;
};

struct Warp {
    std::vector<Meeting> meetings;
    u32 gone = 0;  // Lanes that returned, or that the block never had.
};

// A barrier of the block. Number 0 is __syncthreads.
struct Barrier {
    std::vector<Fibre*> waiting;
    u32 arrived = 0, expected = 0;
    Finish finish = nullptr;
};

static const u32 BARRIERS = 16;
// So many times may threads take turns while none of them waits, wakes another or returns.
static const u32 PATIENCE = 4000000;
static const unsigned char POISON = 0xcb;

// A CUDA block that is running.
struct Block {
    uint3 index = {0, 0, 0};
    Fibre** fibres = nullptr;
    u32 live = 0;  // Threads that have not returned.
    std::vector<Warp> warps;
    std::vector<Barrier> groups;  // Of warpgroups (tensor.hpp).
    Barrier barriers[BARRIERS];
    unsigned char* shared = nullptr;  // Dynamic shared memory.
    u32 shared_bytes = 0;
};

struct Machine {
    std::vector<Fibre*> fibres;
    // The blocks of one cluster run together; without clusters it is one.
    std::vector<Block> running;
    Barrier cluster_barrier;
    std::vector<u32> order;
    Context scheduler;
    Random random = {0};
    u32 schedule = 0, threads = 0, live = 0, spun = 0, shared_bytes = 0;
    bool moved = false;  // Did anything but spinning happen in this round?
    dim3 blocks, block_size;
    const char* kernel = "";
    void (*call)(void* const*) = nullptr;
    void* const* args = nullptr;
    bool failed = false;
    std::string error;
};

static Machine machine;
static Fibre* self;

#if defined(__ELF__)
// The linker puts all `__shared__` variables side by side and says where.
extern "C" unsigned char __start_lapidary_shared[] __attribute__((weak));
extern "C" unsigned char __stop_lapidary_shared[] __attribute__((weak));
#endif

// Ends the launch. In a fibre it does not return.
static void fail(const std::string& problem) {
    if (!machine.failed) {
        machine.failed = true;
        uint3 index = self ? self->block->index : machine.running[0].index;
        machine.error = text("kernel `%s`, block (%u, %u), schedule %u: ", machine.kernel, index.x, index.y, machine.schedule) + problem;
    }
    if (self) {
        Fibre& me = *self;
        me.state = State::Done;
        change(me.context, machine.scheduler, true);
        abort();
    }
}

[[noreturn]] static inline void die(const std::string& problem) {
    fail(problem);
    abort();
}

// Lets others run. The thread stays as it is: ready, or waiting for somebody to wake it.
static inline void leave() { change(self->context, machine.scheduler, false); }

static inline void park(const char* what, Site site, u32 mask) {
    Fibre& me = *self;
    me.state = State::Waiting;
    me.what = what;
    me.site = site;
    me.mask = mask;
    machine.moved = true;
    leave();
}

static inline void wake(Fibre* fibre) {
    fibre->state = State::Ready;
    machine.moved = true;
}

// Where others may get in between: at atomics and fences. Seeded orders do so at random; all of them now and then, so that who polls by
// atomics lets the others come.
static inline void maybe_leave() {
    if ((++self->calls & 63u) == 0 || (machine.schedule > 1 && (machine.random.next() & 7u) == 0)) {
        leave();
    }
}

// "threads 0-31, 40"
static inline std::string ranks(const std::vector<u32>& all) {
    std::string line = all.size() == 1 ? "thread " : "threads ";
    u32 said = 0;
    for (size_t i = 0; i < all.size();) {
        size_t j = i;
        while (j + 1 < all.size() && all[j + 1] == all[j] + 1) {
            j++;
        }
        if (++said > 12) {
            return line + ", ...";
        }
        line += (i ? ", " : "") + (i == j ? text("%u", all[i]) : text("%u-%u", all[i], all[j]));
        i = j + 1;
    }
    return line;
}

// Who waits where. Of a cluster: in its first block where somebody waits.
static inline std::string census() {
    Block* block = &machine.running[0];
    while (block->live == 0 && block != &machine.running.back()) {
        block++;
    }
    struct Place {
        std::string what;
        std::vector<u32> who;
    };
    std::vector<Place> places;
    for (u32 i = 0; i < machine.threads; i++) {
        Fibre* fibre = block->fibres[i];
        std::string what = "returned";
        if (fibre->state == State::Waiting) {
            what = std::string("wait in ") + fibre->what + (fibre->mask ? text("(mask %08x)", fibre->mask) : std::string()) + at(fibre->site);
        } else if (fibre->state == State::Ready) {
            what = "spin";
        }
        Place* found = nullptr;
        for (Place& place : places) {
            found = place.what == what ? &place : found;
        }
        if (!found) {
            places.push_back(Place{what, {}});
            found = &places.back();
        }
        found->who.push_back(fibre->rank);
    }
    std::string line;
    for (Place& place : places) {
        line += (line.empty() ? "" : "; ") + ranks(place.who) + " " + place.what;
    }
    return line;
}

}  // namespace sim
