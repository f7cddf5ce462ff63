// Products with bfloat16 weights, sums in float32.
//
// The weight [M, N] is stored once, in tiles of 16 outputs by 32 inputs: [M/16, N/2, 16, 2], zeros where M or N do not
// fill them.  That is what AMX takes as it lies, and what AVX512-BF16 reads one vector at a time; each weight byte is
// read once for up to 32 rows of x.
#include "pool.h"
#include "vec.h"
#include <vector>

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const int64_t OUT = 16, IN = 32;  // a tile of the weight
static const int64_t TILE = OUT * IN;

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// `multiply`: up to 32 rows of x times two neighbouring tile columns of the weight, to sums[2][2][16][16] by half of
// the rows and tile column.
#if defined(__AMX_BF16__)

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// A thread's tile registers while it works on an item; oneDNN uses them too, so they are given back.
// Tiles 0..3: sums of row halves 0 and 1 with columns 0 and 1; 4, 5: x; 6, 7: weight.
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
    ~Tiles() { _tile_release(); }
};

static void multiply(Tiles &tiles, const bf16 *x, int64_t stride, int64_t rows, const bf16 *left, const bf16 *right,
                     int64_t depth, float *sums) {
    const bool bottom = rows > 16;
    tiles.configure(rows);
    _tile_zero(0); _tile_zero(1);
    if (bottom) { _tile_zero(2); _tile_zero(3); }
    for (int64_t k = 0; k < depth; k += IN) {
        _tile_loadd(6, left + k * OUT, 64);
        _tile_loadd(7, right + k * OUT, 64);
        _tile_loadd(4, x + k, stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (bottom) {
            _tile_loadd(5, x + 16 * stride + k, stride * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    if (bottom) { _tile_stored(2, sums + 512, 64); _tile_stored(3, sums + 768, 64); }
}

#else

struct Tiles {};

template <int N>
static void multiply_rows(const uint32_t *x, int64_t stride, const bf16 *left, const bf16 *right, int64_t pairs,
                          float *sums) {
    v16 a[N], b[N];
    for (int r = 0; r < N; r++) a[r] = b[r] = v16{};
    const uint32_t *l = (const uint32_t *)left, *h = (const uint32_t *)right;
    for (int64_t k = 0; k < pairs; k++) {
        u16x u, v; memcpy(&u, l + k * 16, 64); memcpy(&v, h + k * 16, 64);
        for (int r = 0; r < N; r++) {
            const uint32_t pair = x[r * stride + k];
#if defined(__AVX512BF16__)
            const __m512bh q = (__m512bh)_mm512_set1_epi32(int(pair));
            a[r] = (v16)_mm512_dpbf16_ps((__m512)a[r], (__m512bh)u, q);
            b[r] = (v16)_mm512_dpbf16_ps((__m512)b[r], (__m512bh)v, q);
#else
            const uint32_t low = pair << 16, high = pair & 0xffff0000u;
            float f, g; memcpy(&f, &low, 4); memcpy(&g, &high, 4);
            a[r] += (v16)(u << 16) * f + (v16)(u & 0xffff0000u) * g;
            b[r] += (v16)(v << 16) * f + (v16)(v & 0xffff0000u) * g;
#endif
        }
    }
    for (int r = 0; r < N; r++) { store(sums + r * 16, a[r]); store(sums + 256 + r * 16, b[r]); }
}

static void multiply(Tiles &, const bf16 *x, int64_t stride, int64_t rows, const bf16 *left, const bf16 *right,
                     int64_t depth, float *sums) {
    for (int64_t r = 0; r < rows;) {
        const uint32_t *from = (const uint32_t *)(x + r * stride);
        float *to = sums + r / 16 * 512 + r % 16 * 16;
        const int64_t left_rows = rows - r, pairs = depth / 2, step = stride / 2;
        if (left_rows >= 8) { multiply_rows<8>(from, step, left, right, pairs, to); r += 8; }
        else if (left_rows >= 4) { multiply_rows<4>(from, step, left, right, pairs, to); r += 4; }
        else if (left_rows >= 2) { multiply_rows<2>(from, step, left, right, pairs, to); r += 2; }
        else { multiply_rows<1>(from, step, left, right, pairs, to); r += 1; }
    }
}

#endif

// Whether this library may run here: AMX must be granted by the system.
extern "C" int tgi_usable() {
#if defined(__AMX_BF16__)
    const long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 1;
#endif
}

// Elements of the packed form of a weight [outputs, inputs]; a pair of tile columns is always whole.
extern "C" int64_t tgi_packed_size(int64_t outputs, int64_t inputs) {
    return round_up(outputs, 2 * OUT) * round_up(inputs, IN);
}

extern "C" void tgi_pack(const bf16 *weight, bf16 *packed, int64_t outputs, int64_t inputs) {
    const int64_t depth = round_up(inputs, IN), columns = round_up(outputs, 2 * OUT) / OUT;
    parallel_for(columns, [&](int64_t column) {
        bf16 *to = packed + column * depth * OUT;
        for (int64_t k = 0; k < depth; k++)
            for (int64_t n = 0; n < OUT; n++) {
                const int64_t row = column * OUT + n;
                to[k / 2 * 2 * OUT + n * 2 + k % 2] = row < outputs && k < inputs ? weight[row * inputs + k] : bf16{0};
            }
    });
}

// out [rows, outputs] = x [rows, inputs] . weight^T + bias; x's rows are `stride` elements apart
extern "C" void tgi_linear(const bf16 *x, int64_t stride, const bf16 *packed, const bf16 *bias, bf16 *out, int64_t rows,
                           int64_t outputs, int64_t inputs) {
    const int64_t depth = round_up(inputs, IN), pairs = round_up(outputs, 2 * OUT) / (2 * OUT);
    static thread_local std::vector<bf16> padded;
    if (depth != inputs) {
        padded.assign(rows * depth, bf16{0});
        for (int64_t r = 0; r < rows; r++) memcpy(&padded[r * depth], x + r * stride, inputs * sizeof(bf16));
        x = padded.data(), stride = depth;
    }
    const int64_t row_blocks = (rows + 255) / 256;
    // few, large pieces where weights stream from memory; at least 32 KiB of weights each
    const int64_t per_item = rows > 256 ? 1 : 1 + 16384 / (depth * 2 * OUT);
    const int64_t items = (pairs + per_item - 1) / per_item;
    parallel_for(items * row_blocks, [&](int64_t item) {
        alignas(64) float sums[4 * 256];
        Tiles tiles;
        const int64_t first_row = item % row_blocks * 256, last_row = first_row + 256 < rows ? first_row + 256 : rows;
        const int64_t first = item / row_blocks * per_item, last = first + per_item < pairs ? first + per_item : pairs;
        for (int64_t pair = first; pair < last; pair++) {
            const bf16 *left = packed + pair * 2 * depth * OUT, *right = left + depth * OUT;
            for (int64_t row = first_row; row < last_row; row += 32) {
                const int64_t count = last_row - row < 32 ? last_row - row : 32;
                multiply(tiles, x + row * stride, stride, count, left, right, depth, sums);
                for (int64_t r = 0; r < count; r++)
                    for (int64_t half = 0; half < 2; half++) {
                        const int64_t column = (pair * 2 + half) * OUT;
                        if (column >= outputs) break;
                        const float *sum = sums + r / 16 * 512 + half * 256 + r % 16 * 16;
                        bf16 *to = out + (row + r) * outputs + column;
                        if (column + OUT <= outputs) {
                            store(to, bias ? load(sum) + load(bias + column) : load(sum));
                        } else {
                            for (int64_t n = 0; column + n < outputs; n++)
                                to[n] = from_float<bf16>(sum[n] + (bias ? to_float(bias[column + n]) : 0.0f));
                        }
                    }
            }
        }
    });
}
