// Linear layers in bfloat16 and float32, sums in float32.
//
// The weight [M, N] is stored once, by columns of 16 outputs: [M/16, N/holds, 16, holds], where a word holds two bf16 or
// one float, with zeros where M or N do not fill tiles of 16 by 32.  That is what AMX takes as it lies, and what vector
// instructions read one at a time; each weight byte is read once for up to 32 rows of x.
#include "kernels.h"
#include "pool.h"
#include "product.h"
#include <vector>

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const int64_t OUT = 16, IN = 32;  // a tile of the weight
static const int64_t BLOCK = 256;        // rows of an item
static const int64_t CHUNK = 1024;       // words of them that are multiplied at a time
static const int64_t SUMS = 32 * 2 * OUT;

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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

template <class T> static void pack(const T *weight, T *packed, int64_t outputs, int64_t inputs) {
    const int64_t depth = round_up(inputs, IN), columns = round_up(outputs, 2 * OUT) / OUT, holds = Word<T>::holds;
    parallel_for(columns, [=](int64_t column) {
        T *to = packed + column * depth * OUT;
        for (int64_t k = 0; k < depth; k++)
            for (int64_t n = 0; n < OUT; n++) {
                const int64_t row = column * OUT + n;
                to[(k / holds * OUT + n) * holds + k % holds] = row < outputs && k < inputs ? weight[row * inputs + k] : T{};
            }
    });
}

// Round sums [count, 32] to the outputs from `column` on.
template <class T>
static void finish(const float *sums, const T *bias, T *out, int64_t count, int64_t column, int64_t outputs) {
    for (int64_t half = 0; half < 2; half++, column += OUT) {
        const int64_t width = std::min(OUT, outputs - column);
        for (int64_t r = 0; r < count; r++) {
            const float *sum = sums + r * 2 * OUT + half * OUT;
            T *to = out + r * outputs + column;
            if (width == OUT) store(to, bias ? load(sum) + load(bias + column) : load(sum));
            else
                for (int64_t n = 0; n < width; n++)
                    to[n] = from_float<T>(sum[n] + (bias ? to_float(bias[column + n]) : 0.0f));
        }
    }
}

// out [rows, outputs] = x [rows, inputs] . weight^T + bias; x's rows are `stride` elements apart
template <class T>
static void linear(const T *x, int64_t stride, const T *packed, const T *bias, T *out, int64_t rows, int64_t outputs,
                   int64_t inputs) {
    typedef typename Word<T>::type W;
    const int64_t depth = round_up(inputs, IN), pairs = round_up(outputs, 2 * OUT) / (2 * OUT), holds = Word<T>::holds;
    static thread_local std::vector<T> padded;
    if (depth != inputs || stride % holds) {
        padded.assign(rows * depth, T{});
        for (int64_t r = 0; r < rows; r++) memcpy(&padded[r * depth], x + r * stride, inputs * sizeof(T));
        x = padded.data(), stride = depth;
    }
    // few rows: at least 32 KiB of weights an item, read in order; many rows: a block of rows stays in the first-level
    // cache while the item's weights, which fit into the second, pass by
    const int64_t row_blocks = (rows + BLOCK - 1) / BLOCK;
    const int64_t per_item = rows > 32 ? pieces(pairs * row_blocks, 8 * threads(), 8) : 1 + 16384 / (depth * 2 * OUT);
    const int64_t items = (pairs + per_item - 1) / per_item;
    parallel_for(items * row_blocks, [=](int64_t item) {
        Tiles tiles;
        const int64_t first_row = item % row_blocks * BLOCK, last_row = std::min(first_row + BLOCK, rows);
        const int64_t first = item / row_blocks * per_item, last = std::min(first + per_item, pairs);
        // a deep x does not fit into the second-level cache: it is multiplied in chunks, which leave sums to the next
        const int64_t words = depth / holds, chunk = rows > 32 && words > 2 * CHUNK ? CHUNK : words;
        const int64_t tile = chunk < words ? SUMS : 0;
        static thread_local std::vector<float> own;
        own.resize(SUMS + tile * BLOCK / 32 * (last - first));
        for (int64_t k = 0; k < words; k += chunk) {
            const int64_t end = std::min(k + chunk, words);
            float *sums = own.data();
            for (int64_t row = first_row; row < last_row; row += 32)
                for (int64_t pair = first; pair < last; pair++, sums += tile) {
                    const W *from = (const W *)(x + row * stride), *weight = (const W *)(packed + pair * 2 * depth * OUT);
                    const int64_t count = std::min<int64_t>(last_row - row, 32);
                    product(tiles, count, from + k, stride / holds, weight + k * OUT, OUT, words * OUT, end - k, sums,
                            2 * OUT, 2 * OUT, k > 0);
                    if (end == words) finish(sums, bias, out + row * outputs, count, pair * 2 * OUT, outputs);
                }
        }
    });
}

extern "C" void tgi_pack(int is_bf16, const void *weight, void *packed, int64_t outputs, int64_t inputs) {
    if (is_bf16) pack((const bf16 *)weight, (bf16 *)packed, outputs, inputs);
    else pack((const float *)weight, (float *)packed, outputs, inputs);
}

extern "C" void tgi_linear(int is_bf16, const void *x, int64_t stride, const void *packed, const void *bias, void *out,
                           int64_t rows, int64_t outputs, int64_t inputs) {
    if (is_bf16)
        linear((const bf16 *)x, stride, (const bf16 *)packed, (const bf16 *)bias, (bf16 *)out, rows, outputs, inputs);
    else
        linear((const float *)x, stride, (const float *)packed, (const float *)bias, (float *)out, rows, outputs, inputs);
}

// Rows `ids` of a packed weight -> out [count, inputs].
template <class T> static void rows_of(const T *packed, const int64_t *ids, T *out, int64_t count, int64_t inputs) {
    const int64_t depth = round_up(inputs, IN), holds = Word<T>::holds;
    in_pieces(count, inputs, [=](int64_t row) {
        const T *from = packed + (ids[row] / OUT * depth / holds * OUT + ids[row] % OUT) * holds;
        for (int64_t k = 0; k < inputs; k++) out[row * inputs + k] = from[k / holds * OUT * holds + k % holds];
    });
}

extern "C" void tgi_rows(int is_bf16, const void *packed, const int64_t *ids, void *out, int64_t count, int64_t inputs) {
    if (is_bf16) rows_of((const bf16 *)packed, ids, (bf16 *)out, count, inputs);
    else rows_of((const float *)packed, ids, (float *)out, count, inputs);
}
