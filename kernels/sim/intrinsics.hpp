// Intrinsics for bits, conversions and directed rounding, with CUDA's results at NaN, zero and the ends of a range.
#pragma once

namespace sim {
template <class To, class From>
static inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits are copied");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline float up(double v) {
    float f = static_cast<float>(v);
    return f < v ? nextafterf(f, INFINITY) : f;
}
static inline float down(double v) {
    float f = static_cast<float>(v);
    return f > v ? nextafterf(f, -INFINITY) : f;
}
static inline float to_zero(double v) { return v > 0 ? down(v) : v < 0 ? up(v) : static_cast<float>(v); }
// The f64 sum of two f32 may be rounded: never beyond what is lost here.
static inline double sum_up(float a, float b) {
    double s = static_cast<double>(a) + b, t = s - a, lost = (a - (s - t)) + (b - t);
    return lost > 0 ? nextafter(s, INFINITY) : s;
}
static inline double sum_down(float a, float b) { return -sum_up(-a, -b); }
// Into the range of T; a NaN is 0.
template <class T>
static inline T clamped(double v, double low, double high) {
    return v != v ? 0 : v <= low ? static_cast<T>(low) : v >= high ? static_cast<T>(high) : static_cast<T>(v);
}
// IEEE's maxNum: a NaN gives way, and -0 is below +0.
template <class T>
static inline T larger(T a, T b) {
    return a != a ? b : b != b ? a : a > b ? a : b > a ? b : signbit(a) ? b : a;
}
template <class T>
static inline T smaller(T a, T b) {
    return a != a ? b : b != b ? a : a < b ? a : b < a ? b : signbit(a) ? a : b;
}
}  // namespace sim

// The C library's leave the sign of a zero open.
#define fmaxf(a, b) (::sim::larger<float>((a), (b)))
#define fminf(a, b) (::sim::smaller<float>((a), (b)))
#define fmax(a, b) (::sim::larger<double>((a), (b)))
#define fmin(a, b) (::sim::smaller<double>((a), (b)))

static inline float max(float a, float b) { return sim::larger(a, b); }
static inline float min(float a, float b) { return sim::smaller(a, b); }
static inline double max(double a, double b) { return sim::larger(a, b); }
static inline double min(double a, double b) { return sim::smaller(a, b); }
#define SIM_MAX_MIN(T)                                          \
    static inline T max(T a, T b) { return a > b ? a : b; }     \
    static inline T min(T a, T b) { return a < b ? a : b; }
SIM_MAX_MIN(int)
SIM_MAX_MIN(unsigned)
SIM_MAX_MIN(long long)
SIM_MAX_MIN(unsigned long long)
#undef SIM_MAX_MIN

static inline unsigned __float_as_uint(float v) { return sim::same_bits<unsigned>(v); }
static inline int __float_as_int(float v) { return sim::same_bits<int>(v); }
static inline float __uint_as_float(unsigned v) { return sim::same_bits<float>(v); }
static inline float __int_as_float(int v) { return sim::same_bits<float>(v); }
static inline long long __double_as_longlong(double v) { return sim::same_bits<long long>(v); }
static inline double __longlong_as_double(long long v) { return sim::same_bits<double>(v); }

static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
static inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
static inline int __clzll(long long v) { return v ? __builtin_clzll(static_cast<unsigned long long>(v)) : 64; }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline int __ffsll(long long v) { return __builtin_ffsll(v); }
static inline unsigned __brev(unsigned v) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) {
        r |= (v >> i & 1u) << (31 - i);
    }
    return r;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned long long both = static_cast<unsigned long long>(b) << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        r |= static_cast<unsigned>(both >> 8 * (selector >> 4 * i & 7u) & 0xffu) << 8 * i;
    }
    return r;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) << (shift & 31u) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31u));
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
static inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffffu) * (b & 0xffffffu); }

static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fsqrt_rn(float v) { return sqrtf(v); }
static inline float __frcp_rn(float v) { return 1.0f / v; }
static inline float __frsqrt_rn(float v) { return static_cast<float>(1.0 / sqrt(static_cast<double>(v))); }
static inline float rsqrtf(float v) { return __frsqrt_rn(v); }
static inline double rsqrt(double v) { return 1.0 / sqrt(v); }
static inline float __saturatef(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }
static inline float __fadd_ru(float a, float b) { return sim::up(sim::sum_up(a, b)); }
static inline float __fadd_rd(float a, float b) { return sim::down(sim::sum_down(a, b)); }
static inline float __fsub_ru(float a, float b) { return __fadd_ru(a, -b); }
static inline float __fsub_rd(float a, float b) { return __fadd_rd(a, -b); }
static inline float __fmul_ru(float a, float b) { return sim::up(static_cast<double>(a) * b); }
static inline float __fmul_rd(float a, float b) { return sim::down(static_cast<double>(a) * b); }
// A root in f64 is rounded, but never as far as across an f32 that it is not.
static inline float __fsqrt_ru(float v) { return sim::up(sqrt(static_cast<double>(v))); }
static inline float __fsqrt_rd(float v) { return sim::down(sqrt(static_cast<double>(v))); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline double __dsqrt_rn(double v) { return sqrt(v); }

static inline float __double2float_rn(double v) { return static_cast<float>(v); }
static inline float __double2float_ru(double v) { return sim::up(v); }
static inline float __double2float_rd(double v) { return sim::down(v); }
static inline float __double2float_rz(double v) { return sim::to_zero(v); }
static inline int __float2int_rn(float v) { return sim::clamped<int>(nearbyint(v), -2147483648.0, 2147483647.0); }
static inline int __float2int_rz(float v) { return sim::clamped<int>(v, -2147483648.0, 2147483647.0); }
static inline int __float2int_rd(float v) { return sim::clamped<int>(floorf(v), -2147483648.0, 2147483647.0); }
static inline int __float2int_ru(float v) { return sim::clamped<int>(ceilf(v), -2147483648.0, 2147483647.0); }
static inline unsigned __float2uint_rn(float v) { return sim::clamped<unsigned>(nearbyint(v), 0.0, 4294967295.0); }
static inline unsigned __float2uint_rz(float v) { return sim::clamped<unsigned>(v, 0.0, 4294967295.0); }
static inline float __int2float_rn(int v) { return static_cast<float>(v); }
static inline float __uint2float_rn(unsigned v) { return static_cast<float>(v); }
static inline float __uint2float_ru(unsigned v) { return sim::up(v); }
static inline float __uint2float_rd(unsigned v) { return sim::down(v); }
static inline float __ull2float_rn(unsigned long long v) { return static_cast<float>(v); }
static inline double __ull2double_rn(unsigned long long v) { return static_cast<double>(v); }
static inline double __uint2double_rn(unsigned v) { return v; }

// The C library has functions of these names.
#define __expf(v) expf(v)
#define __logf(v) logf(v)
#define __log2f(v) log2f(v)
#define __powf(a, b) powf(a, b)
