// Sixteen floats at a time, on whatever the compiler was told the processor has.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

typedef float v16 __attribute__((vector_size(64)));
typedef uint32_t u16x __attribute__((vector_size(64)));
typedef int32_t i16x __attribute__((vector_size(64)));
typedef uint16_t h16 __attribute__((vector_size(32)));

struct bf16 { uint16_t bits; };

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) {
    uint32_t u = uint32_t(x.bits) << 16; float f; memcpy(&f, &u, 4); return f;
}

// Round to nearest even; NaN stays NaN.
static inline uint16_t round_bits(float f) {
    uint32_t u; memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 0x40);
    return uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}
template <class T> static inline T from_float(float f);
template <> inline float from_float<float>(float f) { return f; }
template <> inline bf16 from_float<bf16>(float f) { return bf16{round_bits(f)}; }

static inline v16 splat(float f) { return v16{} + f; }
static inline v16 load(const float *p) { v16 v; memcpy(&v, p, 64); return v; }
static inline v16 load(const bf16 *p) {
    h16 h; memcpy(&h, p, 32);
    return (v16)(__builtin_convertvector(h, u16x) << 16);
}
static inline i16x load(const int32_t *p) { i16x v; memcpy(&v, p, 64); return v; }
static inline void store(int32_t *p, i16x v) { memcpy(p, &v, 64); }
static inline void store(int8_t *p, i16x v) {
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)v));
#else
    for (int i = 0; i < 16; i++) p[i] = int8_t(v[i]);
#endif
}
static inline v16 to_float(i16x v) { return __builtin_convertvector(v, v16); }
static inline void store(float *p, v16 v) { memcpy(p, &v, 64); }
static inline void store(bf16 *p, v16 v) {
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)v); memcpy(p, &h, 32);
#else
    u16x u = (u16x)v;
    u16x nan = (u16x)((u & 0x7fffffffu) > 0x7f800000u);
    u16x rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
    u = (nan & ((u >> 16) | 0x40)) | (~nan & rounded);
    h16 h = __builtin_convertvector(u, h16); memcpy(p, &h, 32);
#endif
}
// What a T keeps of v.
static inline v16 rounded(v16 v, float) { return v; }
static inline v16 rounded(v16 v, bf16) { bf16 tmp[16]; store(tmp, v); return load(tmp); }

static inline int32_t sum(i16x v) {
    int32_t total = 0;
    for (int i = 0; i < 16; i++) total += v[i];
    return total;
}
static inline v16 select(i16x mask, v16 a, v16 b) { return (v16)((mask & (i16x)a) | (~mask & (i16x)b)); }
// Of two, b if one is no number.
#if defined(__AVX512F__)
static inline float sum(v16 v) { return _mm512_reduce_add_ps((__m512)v); }
static inline v16 max(v16 a, v16 b) { return (v16)_mm512_max_ps((__m512)a, (__m512)b); }
static inline v16 min(v16 a, v16 b) { return (v16)_mm512_min_ps((__m512)a, (__m512)b); }
static inline float max_of(v16 v) { return _mm512_reduce_max_ps((__m512)v); }
#else
static inline float sum(v16 v) {
    float total = 0;
    for (int i = 0; i < 16; i++) total += v[i];
    return total;
}
static inline v16 max(v16 a, v16 b) { return select(a > b, a, b); }
static inline v16 min(v16 a, v16 b) { return select(a < b, a, b); }
static inline float max_of(v16 v) {
    float m = v[0];
    for (int i = 1; i < 16; i++) m = v[i] > m ? v[i] : m;
    return m;
}
#endif

// To the nearest integer, halves away from zero.
static inline i16x nearest(v16 v) {
    return __builtin_convertvector(v + select(v < splat(0.0f), splat(-0.5f), splat(0.5f)), i16x);
}

// e^x to 2 ulp for x in [-87, 88]; smaller x give 0, NaN gives NaN.  Cephes' polynomial.
static inline v16 exp(v16 x) {
    i16x tiny = x < splat(-87.0f);
    i16x nan = x != x;
    v16 y = min(max(x, splat(-87.0f)), splat(88.0f));
    v16 scaled = y * 1.44269504088896341f;
    i16x n = nearest(scaled);
    v16 k = to_float(n);
    v16 r = y - k * 0.693359375f + k * 2.12194440e-4f;
    v16 p = splat(1.9875691500E-4f);
    p = p * r + 1.3981999507E-3f;
    p = p * r + 8.3334519073E-3f;
    p = p * r + 4.1665795894E-2f;
    p = p * r + 1.6666665459E-1f;
    p = p * r + 5.0000001201E-1f;
    p = p * r * r + r + 1.0f;
    v16 power = (v16)((n + 127) << 23);
    return select(nan, x, select(tiny, v16{}, p * power));
}

// e^x and 1 / x for what is then rounded to a T: a bf16 keeps three digits, so five will do, and 1e-38 for less.
static inline v16 exp_for(float, v16 x) { return exp(x); }
static inline v16 inverse_for(float, v16 x) { return 1.0f / x; }
#if defined(__AVX512F__)
static inline v16 exp_for(bf16, v16 x) {
    const __m512 t = _mm512_max_ps(_mm512_set1_ps(-126), (__m512)(x * 1.44269504088896341f));  // NaN stays
    const __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const v16 f = (v16)_mm512_sub_ps(t, whole);
    const v16 power = (((f * 0.00923522f + 0.05584759f) * f + 0.24031523f) * f + 0.69313165f) * f + 0.99999777f;
    return (v16)_mm512_scalef_ps((__m512)power, whole);
}
static inline v16 inverse_for(bf16, v16 x) { return (v16)_mm512_rcp14_ps((__m512)x); }
#else
static inline v16 exp_for(bf16, v16 x) { return exp(x); }
static inline v16 inverse_for(bf16, v16 x) { return 1.0f / x; }
#endif

static inline v16 tanh(v16 x) { return 1.0f - 2.0f / (exp(x * 2.0f) + 1.0f); }

// Abramowitz and Stegun 7.1.26: 1.5e-7 at most from the truth.
static inline v16 erf(v16 x) {
    const v16 size = max(x, -x), t = 1.0f / (size * 0.3275911f + 1.0f);
    v16 p = splat(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const v16 y = 1.0f - p * t * exp(-size * size);
    return select(x < splat(0.0f), -y, y);
}
