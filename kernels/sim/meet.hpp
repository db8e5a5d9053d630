// Where threads meet: barriers of the block, collectives of a warp. Each who comes leaves what it brought in its frame and parks; the last
// one computes for all. Stricter than the hardware, on purpose: a lane that a mask names must be there, and at the same line.
#pragma once

#include "races.hpp"

namespace sim {

static inline std::string lane_name(u32 lane) { return text("thread %u (lane %u)", self->warp * 32 + lane, lane); }

// `finish` sees the fibres by lane, absent ones null.
static void meet_warp(const char* what, u32 mask, Site site, void* frame, void (*finish)(Fibre** lanes)) {
    Quiet quiet;
    Fibre& me = *self;
    Warp& warp = me.block->warps[me.warp];
    std::vector<Meeting>& meetings = warp.meetings;
    auto call = [&]() { return text("%s(mask %08x)", what, mask) + at(site); };
    if (!(mask >> me.lane & 1u)) {
        die(call() + ": " + lane_name(me.lane) + " calls it, and the mask leaves it out");
    }
    if (mask & warp.gone) {
        u32 lane = static_cast<u32>(__builtin_ctz(mask & warp.gone));
        die(call() + ": the mask names " + lane_name(lane) + ", which has returned or never was");
    }
    size_t i = 0;
    while (i < meetings.size() && meetings[i].mask != mask) {
        i++;
    }
    if (i == meetings.size()) {
        meetings.push_back(Meeting{mask, 0, what, site});
    }
    Meeting& meeting = meetings[i];
    bool same_what = meeting.what == what || strcmp(meeting.what, what) == 0;
    if (!same_what || (meeting.site != site && strcmp(what, "__syncwarp") != 0)) {
        die("divergent collective: " + lane_name(me.lane) + " is in " + call() + ", others with the same mask in " + meeting.what + at(meeting.site));
    }
    meeting.arrived |= 1u << me.lane;
    me.site = site;
    me.frame = frame;
    if (meeting.arrived != mask) {
        park(what, site, mask);
        return;
    }
    meetings[i] = meetings.back();
    meetings.pop_back();
    Fibre* lanes[32];
    for (u32 lane = 0; lane < 32; lane++) {
        lanes[lane] = mask >> lane & 1u ? me.block->fibres[me.warp * 32 + lane] : nullptr;
    }
    if (finish) {
        finish(lanes);
    } else {
        races_met(lanes, 32, false);
    }
    for (u32 lane = 0; lane < 32; lane++) {
        if (lanes[lane] && lanes[lane] != &me) {
            wake(lanes[lane]);
        }
    }
}

static void release(Barrier& barrier) {
    Fibre** members = barrier.waiting.data();
    u32 n = static_cast<u32>(barrier.waiting.size());
    if (barrier.finish) {
        barrier.finish(members, n);
    }
    if (barrier.expected == 0) {
        races_met(members, n, true);
    }
    for (u32 i = 0; i < n; i++) {
        if (members[i] != self) {
            wake(members[i]);
        }
    }
    barrier.waiting.clear();
    barrier.arrived = 0;
}

// All threads of the block that have not returned.
static void meet_block(const char* what, Site site, void* frame, Finish finish) {
    Quiet quiet;
    Fibre& me = *self;
    Barrier& barrier = me.block->barriers[0];
    if (!barrier.waiting.empty() && (barrier.waiting[0]->site != site || strcmp(barrier.waiting[0]->what, what) != 0)) {
        Fibre& first = *barrier.waiting[0];
        die(text("divergent barrier: thread %u is in %s", me.rank, what) + at(site) + text(", thread %u in %s", first.rank, first.what) + at(first.site));
    }
    me.what = what;
    me.site = site;
    me.frame = frame;
    barrier.finish = finish;
    barrier.waiting.push_back(&me);
    if (++barrier.arrived == me.block->live) {
        release(barrier);
    } else {
        park(what, site, 0);
    }
}

// All threads of the cluster that have not returned.
static inline void cluster_sync(Site site = here()) {
    Quiet quiet;
    Barrier& barrier = machine.cluster_barrier;
    barrier.waiting.push_back(self);
    if (++barrier.arrived == machine.live) {
        release(barrier);
    } else {
        park("cluster_sync", site, 0);
    }
}

// `bar.sync id, count` and `bar.arrive id, count`: the barrier opens when `count` threads have come; who only arrives does not wait.
static void meet_named(u32 id, u32 count, bool wait, const char* what, Site site) {
    Quiet quiet;
    Fibre& me = *self;
    auto call = [&]() { return text("%s(%u, %u)", what, id, count) + at(site); };
    if (id == 0 || id >= BARRIERS || count == 0 || count % 32 != 0 || count > machine.threads) {
        die(call() + ": barriers are 1 to 15, counts multiples of 32 within the block");
    }
    Barrier& barrier = me.block->barriers[id];
    if (barrier.arrived > 0 && barrier.expected != count) {
        die(call() + text(": others came to it for %u threads", barrier.expected));
    }
    barrier.expected = count;
    barrier.arrived++;
    races_tell(&barrier);
    if (wait) {
        barrier.waiting.push_back(&me);
    }
    if (barrier.arrived == count) {
        release(barrier);
    } else if (wait) {
        park(what, site, id);
    }
    if (wait) {
        races_hear(&barrier);
    }
}
static inline void barrier_sync(u32 id, u32 count, Site site = here()) { meet_named(id, count, true, "barrier_sync", site); }
static inline void barrier_arrive(u32 id, u32 count, Site site = here()) { meet_named(id, count, false, "barrier_arrive", site); }

// A thread has returned: barriers count without it, and no collective may be waiting for it.
static void depart() {
    Fibre& me = *self;
    Warp& warp = me.block->warps[me.warp];
    for (const Meeting& meeting : warp.meetings) {
        if (meeting.mask >> me.lane & 1u) {
            die(lane_name(me.lane) + text(" returned, and others wait for it in %s(mask %08x)", meeting.what, meeting.mask) + at(meeting.site));
        }
    }
    warp.gone |= 1u << me.lane;
    machine.live--;
    me.block->live--;
    Barrier& barrier = me.block->barriers[0];
    if (barrier.arrived > 0 && barrier.arrived == me.block->live) {
        release(barrier);
    }
    if (machine.cluster_barrier.arrived > 0 && machine.cluster_barrier.arrived == machine.live) {
        release(machine.cluster_barrier);
    }
}

// What a thread brings to a vote.
struct Vote {
    u64 value;
    u64 result;
};

static inline Vote& vote_of(Fibre* fibre) { return *static_cast<Vote*>(fibre->frame); }

template <class Fold>
static inline void fold_block(Fibre** members, u32 n, u64 sum, Fold fold) {
    for (u32 i = 0; i < n; i++) {
        sum = fold(sum, vote_of(members[i]).value);
    }
    for (u32 i = 0; i < n; i++) {
        vote_of(members[i]).result = sum;
    }
}

template <class Fold>
static inline void fold_warp(Fibre** lanes, u64 sum, Fold fold) {
    for (u32 lane = 0; lane < 32; lane++) {
        if (lanes[lane]) {
            sum = fold(sum, vote_of(lanes[lane]).value, lane);
        }
    }
    for (u32 lane = 0; lane < 32; lane++) {
        if (lanes[lane]) {
            vote_of(lanes[lane]).result = sum;
        }
    }
}

}  // namespace sim

static inline void __syncthreads(sim::Site site = sim::here()) { sim::meet_block("__syncthreads", site, nullptr, nullptr); }

static inline int __syncthreads_count(int predicate, sim::Site site = sim::here()) {
    sim::Vote vote = {predicate != 0, 0};
    sim::meet_block("__syncthreads_count", site, &vote, [](sim::Fibre** members, u32 n) {
        sim::fold_block(members, n, 0, [](u64 a, u64 b) { return a + b; });
    });
    return static_cast<int>(vote.result);
}
static inline int __syncthreads_or(int predicate, sim::Site site = sim::here()) {
    sim::Vote vote = {predicate != 0, 0};
    sim::meet_block("__syncthreads_or", site, &vote, [](sim::Fibre** members, u32 n) {
        sim::fold_block(members, n, 0, [](u64 a, u64 b) { return a | b; });
    });
    return static_cast<int>(vote.result);
}
static inline int __syncthreads_and(int predicate, sim::Site site = sim::here()) {
    sim::Vote vote = {predicate != 0, 0};
    sim::meet_block("__syncthreads_and", site, &vote, [](sim::Fibre** members, u32 n) {
        sim::fold_block(members, n, 1, [](u64 a, u64 b) { return a & b; });
    });
    return static_cast<int>(vote.result);
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, sim::Site site = sim::here()) { sim::meet_warp("__syncwarp", mask, site, nullptr, nullptr); }

static inline unsigned __ballot_sync(unsigned mask, int predicate, sim::Site site = sim::here()) {
    sim::Vote vote = {predicate != 0, 0};
    sim::meet_warp("__ballot_sync", mask, site, &vote, [](sim::Fibre** lanes) {
        sim::fold_warp(lanes, 0, [](u64 sum, u64 v, u32 lane) { return sum | v << lane; });
    });
    return static_cast<unsigned>(vote.result);
}
static inline int __any_sync(unsigned mask, int predicate, sim::Site site = sim::here()) {
    sim::Vote vote = {predicate != 0, 0};
    sim::meet_warp("__any_sync", mask, site, &vote, [](sim::Fibre** lanes) {
        sim::fold_warp(lanes, 0, [](u64 sum, u64 v, u32) { return sum | v; });
    });
    return static_cast<int>(vote.result);
}
static inline int __all_sync(unsigned mask, int predicate, sim::Site site = sim::here()) {
    sim::Vote vote = {predicate != 0, 0};
    sim::meet_warp("__all_sync", mask, site, &vote, [](sim::Fibre** lanes) {
        sim::fold_warp(lanes, 1, [](u64 sum, u64 v, u32) { return sum & v; });
    });
    return static_cast<int>(vote.result);
}

// The strictest true answer: which other lanes happen to be beside this one is nobody's promise.
static inline unsigned __activemask() { return 1u << sim::self->lane; }

// Types as nvcc takes them: others must be converted in the kernel.
template <class T>
struct sim_word {
    static const bool is = false;
};
#define SIM_WORD(T)                   \
    template <>                       \
    struct sim_word<T> {              \
        static const bool is = true;  \
    };
SIM_WORD(int)
SIM_WORD(unsigned)
SIM_WORD(long)
SIM_WORD(unsigned long)
SIM_WORD(long long)
SIM_WORD(unsigned long long)
SIM_WORD(float)
SIM_WORD(double)
#undef SIM_WORD

namespace sim {

template <class T>
struct Shuffle {
    T value, result;
    u32 source;
};

template <class T>
static T shuffle(const char* what, unsigned mask, T value, u32 source, Site site) {
    static_assert(sim_word<T>::is, "shuffles take 32- and 64-bit words");
    Shuffle<T> mine = {value, value, source};
    meet_warp(what, mask, site, &mine, [](Fibre** lanes) {
        for (u32 lane = 0; lane < 32; lane++) {
            if (!lanes[lane]) {
                continue;
            }
            Shuffle<T>& to = *static_cast<Shuffle<T>*>(lanes[lane]->frame);
            Fibre* from = lanes[to.source];
            if (!from) {
                die(std::string(self->what) + ": " + lane_name(lane) + " reads " + lane_name(to.source) + ", which the mask leaves out");
            }
            to.result = static_cast<Shuffle<T>*>(from->frame)->value;
        }
    });
    return mine.result;
}

// Votes on words: the lanes of the mask that brought the same value.
static inline void match(Fibre** lanes) {
    for (u32 a = 0; a < 32; a++) {
        u64 same = 0;
        for (u32 b = 0; b < 32 && lanes[a]; b++) {
            same |= lanes[b] && vote_of(lanes[b]).value == vote_of(lanes[a]).value ? 1ull << b : 0;
        }
        if (lanes[a]) {
            vote_of(lanes[a]).result = same;
        }
    }
}

template <class T>
static u64 bits_of(T v) {
    static_assert(sim_word<T>::is, "32- and 64-bit words");
    u64 bits = 0;
    memcpy(&bits, &v, sizeof v);
    return bits;
}

}  // namespace sim

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, sim::Site site = sim::here()) {
    u32 w = static_cast<u32>(width), base = sim::self->lane & ~(w - 1);
    return sim::shuffle("__shfl_sync", mask, value, base | (static_cast<u32>(lane) & (w - 1)), site);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, sim::Site site = sim::here()) {
    u32 w = static_cast<u32>(width), me = sim::self->lane, from = me ^ static_cast<u32>(bits);
    return sim::shuffle("__shfl_xor_sync", mask, value, from <= (me | (w - 1)) ? from & 31u : me, site);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, sim::Site site = sim::here()) {
    u32 w = static_cast<u32>(width), me = sim::self->lane;
    return sim::shuffle("__shfl_up_sync", mask, value, (me & (w - 1)) >= delta ? me - delta : me, site);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, sim::Site site = sim::here()) {
    u32 w = static_cast<u32>(width), me = sim::self->lane;
    return sim::shuffle("__shfl_down_sync", mask, value, (me & (w - 1)) + delta < w ? me + delta : me, site);
}

template <class T>
static inline unsigned __match_any_sync(unsigned mask, T value, sim::Site site = sim::here()) {
    sim::Vote vote = {sim::bits_of(value), 0};
    sim::meet_warp("__match_any_sync", mask, site, &vote, sim::match);
    return static_cast<unsigned>(vote.result);
}
template <class T>
static inline unsigned __match_all_sync(unsigned mask, T value, int* all, sim::Site site = sim::here()) {
    sim::Vote vote = {sim::bits_of(value), 0};
    sim::meet_warp("__match_all_sync", mask, site, &vote, sim::match);
    *all = static_cast<unsigned>(vote.result) == mask;
    return *all ? mask : 0;
}

#define SIM_REDUCE(NAME, T, START, EXPRESSION)                                                                                    \
    static inline T NAME(unsigned mask, T value, sim::Site site = sim::here()) {                                                  \
        sim::Vote vote = {static_cast<u64>(static_cast<i64>(value)), 0};                                                 \
        sim::meet_warp(#NAME, mask, site, &vote, [](sim::Fibre** lanes) {                                                         \
            sim::fold_warp(lanes, static_cast<u64>(static_cast<i64>(START)), [](u64 sum, u64 v, u32) {    \
                T a = static_cast<T>(sum), b = static_cast<T>(v);                                                                 \
                return static_cast<u64>(static_cast<i64>(EXPRESSION));                                                   \
            });                                                                                                                   \
        });                                                                                                                       \
        return static_cast<T>(vote.result);                                                                                       \
    }
SIM_REDUCE(__reduce_add_sync, unsigned, 0u, a + b)
SIM_REDUCE(__reduce_max_sync, unsigned, 0u, a > b ? a : b)
SIM_REDUCE(__reduce_min_sync, unsigned, 0xffffffffu, a < b ? a : b)
SIM_REDUCE(__reduce_or_sync, unsigned, 0u, a | b)
SIM_REDUCE(__reduce_and_sync, unsigned, 0xffffffffu, a & b)
SIM_REDUCE(__reduce_xor_sync, unsigned, 0u, a ^ b)
SIM_REDUCE(__reduce_add_sync, int, 0, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
SIM_REDUCE(__reduce_max_sync, int, (-2147483647 - 1), a > b ? a : b)
SIM_REDUCE(__reduce_min_sync, int, 2147483647, a < b ? a : b)
#undef SIM_REDUCE
