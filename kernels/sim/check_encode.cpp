// Checks the fused encodes and `finish` in the simulator against an obvious reference: every distribution of scores that could upset the
// selection, several orders of execution. All products and sums are exact in f32, so results must be equal to the bit.
//
// Run by check_encode.sh, which says how it is compiled. -DBRING_UP=1 checks the scores themselves, -DBRING_UP=2 the lists without compaction.

#include "all.cpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#ifndef BRING_UP
#define BRING_UP 0
#endif

namespace {

typedef std::vector<float> Floats;

struct Rng {
    u64 state;
    u32 next() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<u32>(state >> 33);
    }
    u32 below(u32 n) { return next() % n; }
    float uniform() { return static_cast<float>(next() % 65536) / 65536.0f; }
    float normal() {
        float sum = -6.0f;
        for (int i = 0; i < 12; i++) {
            sum += uniform();
        }
        return sum;
    }
};

float rounded(float v) { return to_f32(to_bf16(v)); }

// Score of column j in row `kind`: what the selection could stumble over.
const u32 KINDS = 17;
float score(u32 kind, u32 j, u32 m, Rng& rng) {
    switch (kind) {
        case 0: return rng.normal();
        case 1: return static_cast<float>(j + 1) / m;                         // ascending
        case 2: return static_cast<float>(m - j) / m;                         // descending
        case 3: return 1.0f;                                                  // all equal
        case 4: return static_cast<float>(rng.below(4));                      // four values, one of them 0
        case 5: return rng.below(40) ? -1.0f : 2.0f;                          // two, one rare
        case 6: return rng.below(50) ? 0.25f : 1e30f;                         // outliers
        case 7: return rng.below(200) ? -rng.uniform() - 0.1f : 1.0f;         // few positive
        case 8: return -1.0f - rng.uniform();                                 // none
        case 9: return rng.below(2) ? 0.0f : -0.0f;                           // signed zeroes
        case 10: return rng.normal() * 1e-39f;                                // denormals
        case 11: return j % 8 < 2 ? 1.0f + rng.uniform() : -1.0f;             // one lane of each quad
        case 12: return rng.below(3) ? -0.5f : static_cast<float>(j % 7);     // ties and zeroes
        case 13: return rng.normal() + 4.0f * j / m;                          // the mean rises
        case 14: return rng.normal() - 4.0f * j / m;                          // the mean falls
        case 15: return static_cast<float>(j / 256 + 1);                      // stairs: ties of each tile above all before
        default: return j < m / 2 ? static_cast<float>(j) : 1000.0f;          // then a plateau
    }
}

struct Problem {
    u32 n, m, d, k;
    bool relu;
    std::vector<bf16> x, w;
    Floats bias, scores;
    std::string name;

    void finish() {
        scores.resize(static_cast<size_t>(n) * m);
        for (u32 r = 0; r < n; r++) {
            for (u32 j = 0; j < m; j++) {
                double sum = 0;
                for (u32 c = 0; c < d; c++) {
                    sum += static_cast<double>(to_f32(x[r * d + c])) * to_f32(w[j * d + c]);
                }
                scores[r * m + j] = static_cast<float>(sum) + bias[j];
            }
        }
    }
};

// Row r of x picks column r of w: the scores are those wanted. `odd`: NaN and infinities among the biases.
Problem kinds(u32 n, u32 m, u32 d, u32 k, bool relu, bool odd, u64 seed) {
    Problem p{n, m, d, k, relu, {}, {}, {}, {}, "kinds"};
    Rng rng{seed};
    p.x.assign(n * d, to_bf16(0.0f));
    p.w.assign(m * d, to_bf16(0.0f));
    p.bias.assign(m, 0.0f);
    for (u32 c = 0; c < d; c++) {
        for (u32 j = 0; j < m; j++) {
            p.w[j * d + c] = to_bf16(score(c % KINDS, j, m, rng));
        }
    }
    for (u32 r = 0; r < n; r++) {
        p.x[r * d + r % d] = to_bf16(1.0f);
    }
    if (odd) {
        const float specials[] = {NAN, INFINITY, -INFINITY, -NAN};
        for (u32 i = 0; i < 1 + m / 30; i++) {
            p.bias[rng.below(m)] = specials[rng.below(4)];
        }
        if (n > 3) {
            p.x[1 * d] = to_bf16(NAN);
            p.x[2 * d] = to_bf16(INFINITY);
        }
        p.name += " odd";
    }
    p.finish();
    return p;
}

// Dense operands with small integers: many ties, all columns of x in use.
Problem dense(u32 n, u32 m, u32 d, u32 k, bool relu, u64 seed) {
    Problem p{n, m, d, k, relu, {}, {}, {}, {}, "dense"};
    Rng rng{seed};
    for (u32 i = 0; i < n * d; i++) {
        p.x.push_back(to_bf16(static_cast<float>(rng.below(17)) - 8.0f));
    }
    for (u32 i = 0; i < m * d; i++) {
        p.w.push_back(to_bf16((static_cast<float>(rng.below(17)) - 8.0f) / 16.0f));
    }
    for (u32 j = 0; j < m; j++) {
        p.bias.push_back(static_cast<float>(rng.below(64)) / 32.0f - 1.0f);
    }
    p.finish();
    return p;
}

struct Codes {
    Floats values;
    std::vector<u32> indices, nnz;
};

Codes reference(const Problem& p) {
    Codes out{Floats(p.n * p.k, 0.0f), std::vector<u32>(p.n * p.k, PAD), std::vector<u32>(p.n)};
    for (u32 r = 0; r < p.n; r++) {
        const float* s = &p.scores[static_cast<size_t>(r) * p.m];
        std::vector<u32> order;
        for (u32 j = 0; j < p.m; j++) {
            if (s[j] > (p.relu ? 0.0f : -INFINITY)) {
                order.push_back(j);
            }
        }
        std::stable_sort(order.begin(), order.end(), [&](u32 a, u32 b) { return s[a] > s[b]; });
        u32 kept = std::min<u32>(p.k, static_cast<u32>(order.size()));
        for (u32 i = 0; i < kept; i++) {
            out.values[r * p.k + i] = s[order[i]] + 0.0f;
            out.indices[r * p.k + i] = order[i];
        }
        out.nnz[r] = kept;
    }
    return out;
}

struct Args {
    std::vector<std::vector<unsigned char>> kept;
    template <class T>
    Args& add(const T& value) {
        const unsigned char* at = reinterpret_cast<const unsigned char*>(&value);
        kept.emplace_back(at, at + sizeof value);
        return *this;
    }
};

void launch(const char* kernel, u32 x, u32 y, u32 threads, u32 shared, const Args& args, u32 schedule, const std::string& what) {
    std::vector<void*> pointers;
    for (const auto& arg : args.kept) {
        pointers.push_back(const_cast<unsigned char*>(arg.data()));
    }
    u32 grid[3] = {x, y, 1}, block[3] = {threads, 1, 1};
    if (lapidary_sim_launch(kernel, grid, block, shared, pointers.data(), pointers.size(), schedule) != 0) {
        printf("FAILED %s, %s, schedule %u: %s\n", kernel, what.c_str(), schedule, lapidary_sim_error());
        exit(1);
    }
}

TensorMap map_of(const std::vector<bf16>& matrix, u32 rows, u32 d) {
    TensorMap map = {};
    map.words[0] = reinterpret_cast<u64>(matrix.data());
    map.words[1] = d;
    map.words[2] = rows;
    map.words[3] = 2ull * d;
    map.words[4] = 64;
    map.words[5] = HOPPER_BOX_ROWS;
    return map;
}

// Watched for races while it is one of a launch's buffers.
struct Watched {
    const void* at;
    template <class T>
    explicit Watched(const std::vector<T>& buffer) : at(buffer.data()) {
        lapidary_sim_buffer(at, buffer.size() * sizeof(T), 1);
    }
    ~Watched() { lapidary_sim_buffer(at, 0, 0); }
};

u32 checks = 0;
u64 emitted = 0;

void fail(const Problem& p, const std::string& what, u32 schedule, u32 row, const char* problem) {
    printf("FAILED %s, schedule %u: %s n %u m %u d %u k %u relu %d: row %u (kind %u): %s\n", what.c_str(), schedule, p.name.c_str(), p.n, p.m, p.d, p.k,
           p.relu, row, row % p.d % KINDS, problem);
    exit(1);
}

Codes finished(const std::vector<Entry>& entries, const std::vector<u32>& counts, u32 lists, u32 cap, u32 n, u32 k, u32 slots, u32 schedule) {
    Codes got{Floats(n * k, NAN), std::vector<u32>(n * k, 0xdeadbeef), std::vector<u32>(n, 0xdeadbeef)};
    Watched watched[] = {Watched(entries), Watched(counts), Watched(got.values), Watched(got.indices), Watched(got.nnz)};
    Args args;
    args.add(entries.data()).add(counts.data()).add(lists).add(cap).add(n).add(k).add(slots);
    args.add(got.values.data()).add(got.indices.data()).add(got.nnz.data());
    launch("finish", (n + 7) / 8, 1, 256, 8 * slots * 8, args, schedule, "lists");
    return got;
}

u32 least_slots(u32 k) {
    u32 power = 1;
    while (power < k) {
        power *= 2;
    }
    return std::max(power, k + 32);
}

enum Kernel { HOPPER_KERNEL, HOPPER_PAIR_KERNEL, AMPERE_KERNEL, AMPERE_SMALL_KERNEL };
const char* const NAMES[] = {"encode_hopper", "encode_hopper_pair", "encode_ampere", "encode_ampere_small"};

void check(const Problem& p, const Codes& want, Kernel kernel, u32 splits, u32 schedule) {
    bool hopper = kernel == HOPPER_KERNEL || kernel == HOPPER_PAIR_KERNEL;
    const char* name = NAMES[kernel];
    u32 row_blocks = (p.n + 127) / 128;
    if (kernel == HOPPER_PAIR_KERNEL) {
        row_blocks += row_blocks % 2;
    }
    std::string what = std::string(name) + " splits " + std::to_string(splits);
    u32 lists = splits * (hopper ? 4 : 8);
    u32 cap = (p.k + p.k / 10 + (hopper ? 65 : 17) + 7) / 8 * 8;
    if (BRING_UP == 2) {
        cap = (p.m + 255) / 256 * 64;
    }
    std::vector<u32> bounds(p.n, 0), counts(p.n * lists, 0xdeadbeef);
    std::vector<Entry> entries(static_cast<size_t>(p.n) * lists * cap);
    Floats scores(BRING_UP == 1 ? static_cast<size_t>(p.n) * p.m : 0, NAN);
    Watched watched[] = {Watched(p.x), Watched(p.w), Watched(p.bias), Watched(bounds), Watched(entries), Watched(counts), Watched(scores)};
    Args args;
    if (hopper) {
        args.add(map_of(p.x, p.n, p.d)).add(map_of(p.w, p.m, p.d));
    } else {
        args.add(p.x.data()).add(p.w.data());
    }
    args.add(p.bias.data()).add(p.n).add(p.m).add(p.d).add(p.k).add(static_cast<u32>(p.relu)).add(bounds.data());
    if (BRING_UP == 1) {
        args.add(scores.data());
    } else {
        args.add(entries.data());
    }
    args.add(counts.data()).add(cap);
    u32 shared = hopper ? sizeof(HopperShared) + 1024
                            : kernel == AMPERE_KERNEL ? sizeof(AmpereShared<3>) : sizeof(AmpereShared<2>);
    launch(name, row_blocks, splits, hopper ? 384 : 128, shared, args, schedule, p.name);
    checks++;
    if (BRING_UP == 1) {
        for (u32 i = 0; i < p.n * p.m; i++) {
            if (!(scores[i] == p.scores[i] || (scores[i] != scores[i] && p.scores[i] != p.scores[i]))) {
                fail(p, what, schedule, i / p.m, "a score differs");
            }
        }
        return;
    }
    for (u32 c : counts) {
        if (c > cap) {
            fail(p, what, schedule, 0, "a list is too long");
        }
        emitted += c;
    }
    Codes got = finished(entries, counts, lists, cap, p.n, p.k, schedule % 2 ? 1024 : least_slots(p.k), schedule);
    for (u32 r = 0; r < p.n; r++) {
        if (got.nnz[r] != want.nnz[r]) {
            fail(p, what, schedule, r, "nnz differs");
        }
        for (u32 i = r * p.k; i < (r + 1) * p.k; i++) {
            if (got.indices[i] != want.indices[i]) {
                fail(p, what, schedule, r, "the set differs");
            }
            if (memcmp(&got.values[i], &want.values[i], 4) != 0) {
                fail(p, what, schedule, r, "a value differs");
            }
        }
    }
}

// `finish` alone: lists of all shapes.
void check_finish(u32 lists, u32 cap, u32 k, u32 slots, u32 schedule, u64 seed) {
    Rng rng{seed};
    const u32 n = 11;
    std::vector<Entry> entries(static_cast<size_t>(n) * lists * cap, Entry{0x7fc00000u, 0});
    std::vector<u32> counts(n * lists);
    Problem p{n, lists * cap, 1, k, false, {}, {}, {}, Floats(static_cast<size_t>(n) * lists * cap, NAN), "lists"};
    for (u32 l = 0; l < n * lists; l++) {
        u32 fill = l / lists % 4;
        counts[l] = fill == 0 ? rng.below(cap + 1) : fill == 1 ? cap : fill == 2 ? 0 : rng.below(2);
        for (u32 i = 0; i < counts[l]; i++) {
            u32 column = l % lists * cap + i;
            float v = l / lists % 3 ? rounded(rng.normal()) : 1.0f;
            memcpy(&entries[static_cast<size_t>(l) * cap + i].bits, &v, 4);
            entries[static_cast<size_t>(l) * cap + i].column = column;
            p.scores[static_cast<size_t>(l / lists) * p.m + column] = v;
        }
    }
    Codes want = reference(p), got = finished(entries, counts, lists, cap, n, k, slots, schedule);
    checks++;
    if (want.nnz != got.nnz || want.indices != got.indices || memcmp(want.values.data(), got.values.data(), 4 * want.values.size()) != 0) {
        printf("FAILED finish: lists %u cap %u k %u slots %u schedule %u\n", lists, cap, k, slots, schedule);
        exit(1);
    }
}

}  // namespace

int main(int argc, char** argv) {
    bool quick = argc > 1 && std::string(argv[1]) == "quick";
    const char* only = argc > 2 ? argv[2] : nullptr;  // the number of a shape
    std::vector<u32> schedules = quick ? std::vector<u32>{0, 1, 2, 3} : std::vector<u32>{0, 1, 2, 3, 4, 5};
    for (u32 schedule : schedules) {
        for (u32 lists : {1u, 2u, 4u, 5u, 8u, 16u, 33u, 64u}) {
            for (u32 k : {1u, 7u, 64u, 512u}) {
                check_finish(lists, 40, k, least_slots(k), schedule, lists * 1000 + k);
                check_finish(lists, 128, k, 1024, schedule, lists * 1000 + k + 1);
            }
        }
    }
    printf("finish: %u checks\n", checks);
    struct Shape {
        u32 n, m, d;
    };
    std::vector<Shape> shapes = {{1, 1, 64}, {17, 5, 24}, {17, 100, 64}, {17, 256, 24}, {130, 300, 72}, {34, 1000, 64}, {17, 2600, 24}, {3, 600, 400}};
    for (size_t number = 0; number < shapes.size(); number++) {
        if (only && std::to_string(number) != only) {
            continue;
        }
        const Shape& s = shapes[number];
        std::vector<u32> ks = {1, 16, 64};
        ks.push_back(std::min(s.m, 512u));
        for (u32 k : ks) {
            if (k > s.m || (quick && s.m > 1000 && k == 64)) {
                continue;
            }
            for (u32 variant = 0; variant < 5; variant++) {
                bool relu = variant % 2 == 0;
                if (quick && variant % 2 != k % 2) {
                    continue;
                }
                Problem p = variant < 4 ? kinds(s.n, s.m, s.d, k, relu, variant >= 2, s.m * 7 + k + variant) : dense(s.n, s.m, s.d, k, relu, s.m + k);
                Codes want = reference(p);
                for (u32 splits : {1u, 2u, 4u}) {
                    for (u32 schedule : schedules) {
                        if ((quick || s.m > 500) && (schedule + splits + variant) % 3 != 0) {
                            continue;
                        }
                        check(p, want, HOPPER_KERNEL, splits, schedule);
                        check(p, want, HOPPER_PAIR_KERNEL, splits, schedule);
                        if (BRING_UP == 0) {
                            check(p, want, schedule % 2 ? AMPERE_KERNEL : AMPERE_SMALL_KERNEL, splits, schedule);
                        }
                    }
                }
            }
        }
        printf("n %u m %u d %u: %u checks so far\n", s.n, s.m, s.d, checks);
        fflush(stdout);
    }
    printf("all %u checks passed; %llu entries in lists\n", checks, emitted);
    return 0;
}
