// The one matrix product: c (+)= a . b, for linear layers and for attention alike.
//
// a [rows, words]      words of two neighbouring bf16, of four int8, or of one float, rows `a_stride` words apart
// b [words, columns]   words, of uint8 where a's are int8; its column tiles of 16 start `b_tile` words apart, their rows
//                      `b_stride`
// c [rows, columns]    float32, int32 where a is int8; rows `c_stride` apart; columns is a multiple of 16
//
// With AMX `words` is a multiple of 16: 32 bf16, or 64 int8.
#pragma once
#include "vec.h"
#include <algorithm>
#include <type_traits>

struct int8s { uint32_t bits; };

template <class T> struct Word;  // what is multiplied at once: neighbours of T
template <> struct Word<float> { typedef float type; static const int holds = 1; };
template <> struct Word<bf16> { typedef uint32_t type; static const int holds = 2; };
template <> struct Word<int8_t> { typedef int8s type; static const int holds = 4; };

template <class W> struct Sum { typedef float type; typedef v16 vector; };  // of products of words
template <> struct Sum<int8s> { typedef int32_t type; typedef i16x vector; };

#if defined(__AMX_BF16__)

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// A thread's tile registers while it works on an item; oneDNN uses them too, so they are given back.
// Tiles 0..3: c of row halves 0 and 1 by columns 0 and 1; 4, 5: a; 6, 7: b.
struct Tiles {
    int64_t rows = 0;

    void configure(int64_t wanted) {
        if (rows == wanted) return;
        rows = wanted;
        const int64_t top = rows < 16 ? rows : 16, bottom = rows - top;
        const int64_t heights[8] = {top, top, bottom, bottom, top, bottom, 16, 16};
        TileConfig config;
        for (int i = 0; i < 8; i++) config.bytes[i] = heights[i] ? 64 : 0, config.rows[i] = uint8_t(heights[i]);
        _tile_loadconfig(&config);
    }
    ~Tiles() {
        if (rows) _tile_release();
    }
};

static const int64_t TILES_AHEAD = 1024;  // bytes of a weight that are fetched before they are needed

// Fetch the tile that is TILES_AHEAD of this one, where tiles lie one after the other, as those of weights do.  Without
// the attribute GCC takes calls away, as nothing is computed.
__attribute__((always_inline)) static inline void fetch_ahead(const void *tile, int64_t stride) {
    if (stride != 16) return;
    for (int64_t row = 0; row < 16; row++) __builtin_prefetch((const char *)tile + TILES_AHEAD + row * 64);
}

// The compiler wants tiles by number.
#define MULTIPLY_TILES(c, a, b) \
    do { \
        if constexpr (std::is_same_v<W, int8s>) _tile_dpbsud(c, a, b); \
        else _tile_dpbf16ps(c, a, b); \
    } while (0)

// Up to 32 rows by 16 or 32 columns.
template <bool WIDE, class W, class C = typename Sum<W>::type>
static inline void product_block(bool bottom, const W *a, int64_t a_stride, const W *b, int64_t b_stride,
                                 int64_t b_tile, int64_t words, C *c, int64_t c_stride, bool add) {
    C *lower = c + 16 * c_stride;
    if (add) {
        _tile_loadd(0, c, c_stride * 4);
        if (WIDE) _tile_loadd(1, c + 16, c_stride * 4);
        if (bottom) _tile_loadd(2, lower, c_stride * 4);
        if (bottom && WIDE) _tile_loadd(3, lower + 16, c_stride * 4);
    } else {
        _tile_zero(0);
        if (WIDE) _tile_zero(1);
        if (bottom) _tile_zero(2);
        if (bottom && WIDE) _tile_zero(3);
    }
    for (int64_t k = 0; k < words; k += 16) {
        fetch_ahead(b + k * b_stride, b_stride);
        if (WIDE) fetch_ahead(b + b_tile + k * b_stride, b_stride);
        _tile_loadd(6, b + k * b_stride, b_stride * 4);
        if (WIDE) _tile_loadd(7, b + b_tile + k * b_stride, b_stride * 4);
        _tile_loadd(4, a + k, a_stride * 4);
        MULTIPLY_TILES(0, 4, 6);
        if (WIDE) MULTIPLY_TILES(1, 4, 7);
        if (bottom) {
            _tile_loadd(5, a + 16 * a_stride + k, a_stride * 4);
            MULTIPLY_TILES(2, 5, 6);
            if (WIDE) MULTIPLY_TILES(3, 5, 7);
        }
    }
    _tile_stored(0, c, c_stride * 4);
    if (WIDE) _tile_stored(1, c + 16, c_stride * 4);
    if (bottom) _tile_stored(2, lower, c_stride * 4);
    if (bottom && WIDE) _tile_stored(3, lower + 16, c_stride * 4);
}

template <class W, class C = typename Sum<W>::type>
static inline void product_in_tiles(Tiles &tiles, int64_t rows, const W *a, int64_t a_stride, const W *b,
                                    int64_t b_stride, int64_t b_tile, int64_t words, C *c, int64_t c_stride,
                                    int64_t columns, bool add) {
    for (int64_t r = 0; r < rows; r += 32) {
        const int64_t count = std::min<int64_t>(rows - r, 32);
        tiles.configure(count);
        for (int64_t n = 0; n < columns; n += 32) {
            const W *from = b + n / 16 * b_tile;
            C *to = c + r * c_stride + n;
            if (columns - n > 16)
                product_block<true>(count > 16, a + r * a_stride, a_stride, from, b_stride, b_tile, words, to, c_stride, add);
            else
                product_block<false>(count > 16, a + r * a_stride, a_stride, from, b_stride, b_tile, words, to, c_stride, add);
        }
    }
}

#else

struct Tiles {};

#endif

static inline v16 multiply_add(v16 sum, const float *b, const float *a) { return sum + load(b) * *a; }

static inline v16 multiply_add(v16 sum, const uint32_t *b, const uint32_t *a) {
    u16x v; memcpy(&v, b, 64);
#if defined(__AVX512BF16__)
    return (v16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)v, (__m512bh)_mm512_set1_epi32(int(*a)));
#else
    const uint32_t low = *a << 16, high = *a & 0xffff0000u;
    float f, g; memcpy(&f, &low, 4); memcpy(&g, &high, 4);
    return sum + (v16)(v << 16) * f + (v16)(v & 0xffff0000u) * g;
#endif
}

static inline i16x multiply_add(i16x sum, u16x v, const int8s *a) {
#if defined(__AVX512VNNI__)
    return (i16x)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)v, _mm512_set1_epi32(int(a->bits)));
#elif defined(__AVX2__)
    const __m256i four = _mm256_set1_epi32(int(a->bits)), low = _mm256_set1_epi16(0xff);
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8), odd = _mm256_srai_epi16(four, 8);
    __m256i bytes[2], sums[2];
    memcpy(bytes, &v, 64), memcpy(sums, &sum, 64);
    for (int half = 0; half < 2; half++) {
        const __m256i first = _mm256_madd_epi16(_mm256_and_si256(bytes[half], low), even);
        const __m256i second = _mm256_madd_epi16(_mm256_srli_epi16(bytes[half], 8), odd);
        sums[half] = _mm256_add_epi32(sums[half], _mm256_add_epi32(first, second));
    }
    memcpy(&sum, sums, 64);
    return sum;
#else
    for (int byte = 0; byte < 4; byte++)
        sum += (i16x)((v >> (8 * byte)) & 0xff) * int32_t(int8_t(a->bits >> (8 * byte)));
    return sum;
#endif
}

static inline i16x multiply_add(i16x sum, const int8s *b, const int8s *a) {
    u16x v; memcpy(&v, b, 64);
    return multiply_add(sum, v, a);
}

#if defined(__AVX512F__)
static const int WIDEST = 8;  // rows whose sums fit into the vector registers
#else
static const int WIDEST = 2;
#endif

// N rows by up to two column tiles, in vector registers.
template <int N, bool WIDE, class W, class C = typename Sum<W>::type>
static inline void product_rows(const W *a, int64_t a_stride, const W *b, int64_t b_stride, int64_t b_tile,
                                int64_t words, C *c, int64_t c_stride, bool add) {
    typedef typename Sum<W>::vector V;
    V left[N], right[N];
    for (int r = 0; r < N; r++) {
        left[r] = add ? load(c + r * c_stride) : V{};
        right[r] = add && WIDE ? load(c + r * c_stride + 16) : V{};
    }
    for (int64_t k = 0; k < words; k++)
        for (int r = 0; r < N; r++) {
            left[r] = multiply_add(left[r], b + k * b_stride, a + r * a_stride + k);
            if (WIDE) right[r] = multiply_add(right[r], b + b_tile + k * b_stride, a + r * a_stride + k);
        }
    for (int r = 0; r < N; r++) {
        store(c + r * c_stride, left[r]);
        if (WIDE) store(c + r * c_stride + 16, right[r]);
    }
}

template <int N, class W, class C = typename Sum<W>::type>
static inline void product_columns(const W *a, int64_t a_stride, const W *b, int64_t b_stride, int64_t b_tile,
                                   int64_t words, C *c, int64_t c_stride, int64_t columns, bool add) {
    int64_t n = 0;
    for (; n + 32 <= columns; n += 32)
        product_rows<N, true>(a, a_stride, b + n / 16 * b_tile, b_stride, b_tile, words, c + n, c_stride, add);
    if (n < columns)
        product_rows<N, false>(a, a_stride, b + n / 16 * b_tile, b_stride, b_tile, words, c + n, c_stride, add);
}

template <class W, class C = typename Sum<W>::type>
static inline void product_in_registers(int64_t rows, const W *a, int64_t a_stride, const W *b, int64_t b_stride,
                                        int64_t b_tile, int64_t words, C *c, int64_t c_stride, int64_t columns,
                                        bool add) {
    for (int64_t r = 0; r < rows;) {
        const W *from = a + r * a_stride;
        C *to = c + r * c_stride;
        const int64_t left = rows - r;
        const int step = left >= 8 && WIDEST >= 8 ? 8 : left >= 4 && WIDEST >= 4 ? 4 : left >= 2 ? 2 : 1;
        if (step == 8) product_columns<8>(from, a_stride, b, b_stride, b_tile, words, to, c_stride, columns, add);
        else if (step == 4) product_columns<4>(from, a_stride, b, b_stride, b_tile, words, to, c_stride, columns, add);
        else if (step == 2) product_columns<2>(from, a_stride, b, b_stride, b_tile, words, to, c_stride, columns, add);
        else product_columns<1>(from, a_stride, b, b_stride, b_tile, words, to, c_stride, columns, add);
        r += step;
    }
}

template <class W, class C = typename Sum<W>::type>
static inline void product(Tiles &tiles, int64_t rows, const W *a, int64_t a_stride, const W *b, int64_t b_stride,
                           int64_t b_tile, int64_t words, C *c, int64_t c_stride, int64_t columns, bool add) {
#if defined(__AMX_BF16__)
    if constexpr (!std::is_same_v<W, float>)
        return product_in_tiles(tiles, rows, a, a_stride, b, b_stride, b_tile, words, c, c_stride, columns, add);
#endif
    (void)tiles;
    product_in_registers(rows, a, a_stride, b, b_stride, b_tile, words, c, c_stride, columns, add);
}
