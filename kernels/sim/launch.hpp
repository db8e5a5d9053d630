// Kernels by name, blocks one after another, and the C interface. One launch at a time in a process: `__shared__` variables are statics.
#pragma once

#include <mutex>
#include <type_traits>
#include <utility>

#include "async.hpp"
#include "tensor.hpp"

namespace sim {

// How arguments are named in the interface: p pointer, u u32, i i32, U u64, f f32, m 128 bytes.
template <class T>
struct Letter {
    static_assert(sizeof(T) == 128, "parameters are pointers, u32, i32, u64, f32 or a tensor map");
    static const char is = 'm';
};
template <class T>
struct Letter<T*> {
    static const char is = 'p';
};
#define SIM_LETTER(T, L)            \
    template <>                     \
    struct Letter<T> {              \
        static const char is = L;   \
    };
SIM_LETTER(unsigned, 'u')
SIM_LETTER(int, 'i')
SIM_LETTER(unsigned long long, 'U')
SIM_LETTER(float, 'f')
#undef SIM_LETTER

template <class T>
static T argument(const void* at) {
    T value;
    memcpy(static_cast<void*>(&value), at, sizeof value);
    return value;
}

struct Kernel {
    const char* name;
    const char* letters;
    u32 n_args, cluster;
    void (*call)(void* const*);
    Kernel* next;
};
static Kernel* kernels = nullptr;

// `F` is the kernel: its type gives the parameters.
template <auto F>
struct Caller;
template <class... A, void (*F)(A...)>
struct Caller<F> {
    static constexpr char letters[] = {Letter<typename std::remove_cv<A>::type>::is..., 0};
    template <size_t... I>
    static void spread(void* const* args, std::index_sequence<I...>) {
        (void)args;
        F(argument<typename std::remove_cv<A>::type>(args[I])...);
    }
    static void call(void* const* args) { spread(args, std::index_sequence_for<A...>()); }
};

template <auto F>
struct Registered {
    Kernel kernel;
    Registered(const char* name, u32 cluster) {
        typedef Caller<F> C;
        kernel = Kernel{name, C::letters, sizeof C::letters - 1, cluster, C::call, kernels};
        kernels = &kernel;
    }
};

// What the sanitizer said during a launch.
static std::string findings;
static u32 n_findings = 0;

#if SIM_ASAN
static void found(const std::string& what) {
    if (n_findings++ == 0) {
        findings = what;
        if (self) {
            findings += text(" (thread %u", self->rank) + (self->site.line ? ", which last met others" + at(self->site) + ")" : std::string(")"));
        }
    }
    if (n_findings > 1000) {
        fprintf(stderr, "simulator: the sanitizer found 1000 things in `%s`; giving up\n", machine.kernel);
        abort();
    }
}

// The report itself goes to stderr. Lines are known to it unless the linker has stripped them: cargo lets it.
static void heard(const char*) {
    char place[256] = "";
    __sanitizer_symbolize_pc(__asan_get_report_pc(), "%f %S", place, sizeof place);
    if (char* unknown = strstr(place, " <null>")) {
        *unknown = 0;
    }
    found(text("%s, %s of %zu bytes in %s", __asan_get_report_description(), __asan_get_report_access_type() ? "write" : "read",
               __asan_get_report_access_size(), place));
}
#endif

// Statics between their red zones too, hence unchecked and no memset.
SIM_UNCHECKED static void poison_statics() {
#if defined(__ELF__)
    for (volatile unsigned char* at = __start_lapidary_shared; at < __stop_lapidary_shared; at++) {
        *at = POISON;
    }
#endif
}

SIM_UNCHECKED static void first_step() {
    arrived(self->context, &machine.scheduler);
    machine.call(machine.args);
    depart();
    self->state = State::Done;
    machine.moved = true;
    change(self->context, machine.scheduler, true);
    abort();
}

static void step(Fibre* fibre) {
    self = fibre;
    change(machine.scheduler, fibre->context, false);
    self = nullptr;
}

// Seeded orders: lanes or whole warps shuffled, and now and then some warps fall behind.
static void shuffle_order() {
    Machine& m = machine;
    if (m.random.below(2)) {
        m.random.shuffle(m.order);
        return;
    }
    u32 threads = static_cast<u32>(m.order.size()), warps = (threads + 31) / 32, flip = m.random.below(2) ? 31u : 0u, n = 0;
    std::vector<u32> first(warps);
    for (u32 w = 0; w < warps; w++) {
        first[w] = w;
    }
    m.random.shuffle(first);
    for (u32 w = 0; w < warps; w++) {
        for (u32 lane = 0; lane < 32; lane++) {
            u32 rank = first[w] * 32 + (lane ^ flip);
            if (rank < threads) {
                m.order[n++] = rank;
            }
        }
    }
}

// Exactly as long as asked for, so that the sanitizer sees overruns. It begins at a multiple of 1024.
static void own_shared(Block& block, u32 bytes) {
    void* at = nullptr;
    if (bytes > 0 && posix_memalign(&at, 1024, bytes) != 0) {
        fprintf(stderr, "simulator: no memory for a block\n");
        abort();
    }
    if (at) {
        memset(at, POISON, bytes);
    }
    block.shared = static_cast<unsigned char*>(at);
    block.shared_bytes = bytes;
}

static void prepare(Block& block, u32 rank, uint3 index) {
    Machine& m = machine;
    block.index = index;
    block.fibres = m.fibres.data() + rank * m.threads;
    block.live = m.threads;
    block.warps.assign((m.threads + 31) / 32, Warp());
    if (m.threads % 32) {
        block.warps.back().gone = ~0u << m.threads % 32;
    }
    block.groups.assign((m.threads + 127) / 128, Barrier());
    for (Barrier& barrier : block.barriers) {
        barrier = Barrier();
    }
    own_shared(block, m.shared_bytes);
    for (u32 i = 0; i < m.threads; i++) {
        Fibre& f = *block.fibres[i];
        f.block = &block;
        f.state = State::Ready;
        f.rank = i;
        f.lane = i & 31u;
        f.warp = i >> 5;
        f.thread = uint3{i % m.block_size.x, i / m.block_size.x % m.block_size.y, i / (m.block_size.x * m.block_size.y)};
        f.start();
        f.context.begin(first_step);
    }
}

// The blocks of `running`, to their end or to a failure.
static void run_together() {
    Machine& m = machine;
    u32 n_fibres = m.threads * static_cast<u32>(m.running.size());
    m.live = n_fibres;
    m.spun = 0;
    m.cluster_barrier = Barrier();
    m.order.resize(n_fibres);
    for (u32 i = 0; i < n_fibres; i++) {
        m.order[i] = m.schedule == 1 ? n_fibres - 1 - i : i;
    }
    while (m.live > 0) {
        u32 ran = 0;
        m.moved = false;
        u32 behind = 0;
        if (m.schedule > 1) {
            shuffle_order();
            behind = m.random.below(4) == 0 ? m.random.next() : 0;
            async_chance();
        }
        for (u32 i = 0; i < n_fibres && !m.failed; i++) {
            Fibre* fibre = m.fibres[m.order[i]];
            if (fibre->state == State::Ready && !(behind >> (fibre->warp & 31u) & 1u)) {
                ran++;
                step(fibre);
                if (n_findings > 0) {
                    fail("the sanitizer found " + findings);
                }
            }
        }
        if (m.failed) {
            return;
        }
        if (ran == 0 && behind == 0 && !async_one() && m.live > 0) {
            fail("DEADLOCK: no thread can run: " + census());
            return;
        }
        m.spun = m.moved ? 0 : m.spun + ran;
        if (m.spun > PATIENCE && !async_one()) {
            fail("LIVELOCK: threads only poll: " + census());
            return;
        }
    }
    if (async_left()) {
        fail("all threads returned, and copies to shared memory are still under way");
    }
}

static void run_blocks(u32 cluster) {
    Machine& m = machine;
    u64 count = static_cast<u64>(m.blocks.x) * m.blocks.y * m.blocks.z / cluster;
    std::vector<u32> order(count);
    for (u64 i = 0; i < count; i++) {
        order[i] = static_cast<u32>(m.schedule == 1 ? count - 1 - i : i);
    }
    if (m.schedule > 1) {
        m.random.shuffle(order);
    }
    m.running.assign(cluster, Block());
    races_begin(static_cast<u32>(count));
    for (u64 i = 0; i < count && !m.failed; i++) {
        poison_statics();
        for (u32 rank = 0; rank < cluster; rank++) {
            u64 at = static_cast<u64>(order[i]) * cluster + rank;
            u32 x = static_cast<u32>(at % m.blocks.x), y = static_cast<u32>(at / m.blocks.x % m.blocks.y);
            prepare(m.running[rank], rank, uint3{x, y, static_cast<u32>(at / m.blocks.x / m.blocks.y)});
        }
        races_cluster(static_cast<u32>(i));
        run_together();
        async_clear();
        for (Block& block : m.running) {
            free(block.shared);
            block.shared = nullptr;
        }
    }
}

// What a fibre that never went on has left poisoned.
static void clean_stacks() {
#if SIM_ASAN
    for (Fibre* fibre : machine.fibres) {
        if (!fibre->context.stack) {
            continue;
        }
        __asan_unpoison_memory_region(fibre->context.stack, STACK_BYTES);
    }
#endif
}

static std::mutex one_at_a_time;
static thread_local std::string last_error;

static const Kernel* find(const char* name) {
    for (const Kernel* kernel = kernels; kernel; kernel = kernel->next) {
        if (strcmp(kernel->name, name) == 0) {
            return kernel;
        }
    }
    return nullptr;
}

static int launch(const char* name, dim3 blocks, dim3 size, u32 shared, void* const* args, size_t n_args, u32 schedule) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    Machine& m = machine;
    last_error.clear();
    const Kernel* kernel = find(name);
    if (!kernel) {
        last_error = text("no kernel `%s` is registered", name);
        return 1;
    }
    if (n_args != kernel->n_args) {
        last_error = text("kernel `%s` has %u parameters (%s), and %zu arguments came", name, kernel->n_args, kernel->letters, n_args);
        return 1;
    }
    u64 threads = static_cast<u64>(size.x) * size.y * size.z;
    if (threads == 0 || threads > 1024 || blocks.x == 0 || blocks.x > 0x7fffffffu || blocks.y == 0 || blocks.y > 65535 || blocks.z == 0 ||
        blocks.z > 65535 || shared > 227 * 1024) {
        last_error = text("kernel `%s`: no device launches %u x %u x %u blocks of %u x %u x %u threads with %u bytes of shared memory", name, blocks.x,
                          blocks.y, blocks.z, size.x, size.y, size.z, shared);
        return 1;
    }
    if (blocks.x % kernel->cluster != 0) {
        last_error = text("kernel `%s` runs in clusters of %u blocks, and %u are no multiple", name, kernel->cluster, blocks.x);
        return 1;
    }
#if SIM_ASAN
    __asan_set_error_report_callback(heard);
#endif
    findings.clear();
    n_findings = 0;
    m.kernel = name;
    m.call = kernel->call;
    m.args = args;
    m.blocks = blocks;
    m.block_size = size;
    m.threads = static_cast<u32>(threads);
    m.shared_bytes = shared;
    m.schedule = schedule;
    m.random = Random{schedule * 0x2545f4914f6cdd1dull + 1};
    m.failed = false;
    m.error.clear();
    while (m.fibres.size() < threads * kernel->cluster) {
        m.fibres.push_back(new Fibre());
    }
    launching = true;
    run_blocks(kernel->cluster);
    launching = false;
    if (m.failed) {
        clean_stacks();
    }
    last_error = m.error;
    return m.failed ? 1 : 0;
}

}  // namespace sim

// 0, or 1 and a sentence in `lapidary_sim_error`. `args` point to the arguments, in order; `schedule` is 0 (threads and blocks ascending,
// asynchronous copies as late as they may be), 1 (descending, copies at once), or a seed.
extern "C" int lapidary_sim_launch(const char* kernel, const u32* grid, const u32* block, u32 shared, void* const* args, size_t n_args,
                                   u32 schedule) {
    return sim::launch(kernel, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), shared, args, n_args, schedule);
}

// Of this thread's last launch.
extern "C" const char* lapidary_sim_error(void) { return sim::last_error.c_str(); }

// A letter per parameter (sim::Letter), or null for a kernel that there is not.
extern "C" const char* lapidary_sim_parameters(const char* kernel) {
    const sim::Kernel* found = sim::find(kernel);
    return found ? found->letters : nullptr;
}

// The nth kernel, or null.
extern "C" const char* lapidary_sim_kernel(size_t n) {
    const sim::Kernel* kernel = sim::kernels;
    while (kernel && n-- > 0) {
        kernel = kernel->next;
    }
    return kernel ? kernel->name : nullptr;
}

#if SIM_ASAN
// Findings become errors of the launch, so a test names the kernel; leaks are other people's (the test harness, abandoned fibres). The two
// sanitizers share flags, and the second to begin sets them again.
extern "C" const char* __asan_default_options() { return "detect_leaks=0:halt_on_error=0:suppress_equal_pcs=0:print_summary=1:print_legend=0"; }
extern "C" const char* __ubsan_default_options() { return __asan_default_options(); }
extern "C" void __ubsan_get_current_report_data(const char**, const char**, const char**, unsigned*, unsigned*, char**);
extern "C" void __ubsan_on_report(void) {
    const char *kind = "", *message = "", *file = "";
    unsigned line = 0, column = 0;
    char* address = nullptr;
    __ubsan_get_current_report_data(&kind, &message, &file, &line, &column, &address);
    sim::found(sim::text("%s: %s at %s:%u", kind, message, file ? file : "?", line));
}
#endif
