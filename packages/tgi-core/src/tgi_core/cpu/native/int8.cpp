// Linear layers with int8 weights, sums in int32: y = x . (weight * scale)^T + bias, one scale for each output.
//
// Each row of x is written as a fixed-point number of two int8 digits, x = step * (high + low / 254): what that loses is
// at most 2^-16 of the row's largest value, so only the weights are rounded visibly.  Rows of digits are multiplied like
// any others, exactly, while each weight byte is read once.
//
// The weight [M, N] is stored as weight + 128, because the processor's products take one factor without sign; what that
// adds is 128 times the sum of the row's digits.  It lies as in linear.cpp, with four neighbours to a word:
// [M/16, N/4, 16, 4], with zeros (128) where M or N do not fill tiles of 16 by 64.
#include "kernels.h"
#include "pool.h"
#include "product.h"
#include <cmath>
#include <vector>

static const int64_t OUT = 16, IN = 64, HOLDS = 4;
static const int64_t ROWS = 16;    // of x that are multiplied at a time: 32 rows of digits
static const int64_t BLOCK = 256;  // rows of x of an item
static const float BASE = 254;     // of the digits

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

extern "C" int64_t tgi_packed_size_int8(int64_t outputs, int64_t inputs) {
    return round_up(outputs, 2 * OUT) * round_up(inputs, IN);
}

extern "C" void tgi_pack_int8(const int8_t *weight, uint8_t *packed, int64_t outputs, int64_t inputs) {
    const int64_t depth = round_up(inputs, IN), columns = round_up(outputs, 2 * OUT) / OUT;
    parallel_for(columns, [=](int64_t column) {
        uint8_t *to = packed + column * depth * OUT;
        for (int64_t k = 0; k < depth; k++)
            for (int64_t n = 0; n < OUT; n++) {
                const int64_t row = column * OUT + n;
                const int value = row < outputs && k < inputs ? weight[row * inputs + k] : 0;
                to[(k / HOLDS * OUT + n) * HOLDS + k % HOLDS] = uint8_t(value + 128);
            }
    });
}

// Rows of x as digits: in groups of up to ROWS rows, all high digits, then all low ones.
struct Digits {
    std::vector<int8_t> values;  // [rows rounded up to groups, 2, depth]
    std::vector<float> steps;    // [rows]
    std::vector<int32_t> extra;  // [rows, 2] what weight + 128 adds to the sums of each digit

    template <class T> void write(const T *x, int64_t stride, int64_t rows, int64_t inputs, int64_t depth) {
        values.resize(rows * 2 * depth);
        steps.resize(rows);
        extra.resize(rows * 2);
        in_pieces(rows, 8 * depth, [&](int64_t row) {
            const int64_t group = row / ROWS * ROWS, count = std::min(rows - group, ROWS);
            int8_t *high = &values[(2 * group + row - group) * depth], *low = high + count * depth;
            const T *from = x + row * stride;
            T last[16] = {};  // of the row, with zeros behind it
            memcpy(last, from + inputs / 16 * 16, inputs % 16 * sizeof(T));
            const auto part = [&](int64_t k) { return k + 16 <= inputs ? load(from + k) : k < inputs ? load(last) : v16{}; };
            v16 most = v16{};
            i16x nan = i16x{};
            for (int64_t k = 0; k < inputs; k += 16) {
                most = max(most, max(part(k), -part(k)));
                nan |= part(k) != part(k);
            }
            const float largest = max_of(most), per_step = largest > 0 ? 127 / largest : 0;
            i16x high_sum = i16x{}, low_sum = i16x{};
            for (int64_t k = 0; k < depth; k += 16) {
                const v16 scaled = part(k) * per_step;
                const i16x first = nearest(scaled), second = nearest((scaled - to_float(first)) * BASE);
                store(high + k, first), store(low + k, second);
                high_sum += first, low_sum += second;
            }
            steps[row] = sum(nan) ? NAN : largest / 127;  // infinity times anything is no number either
            extra[2 * row] = 128 * sum(high_sum), extra[2 * row + 1] = 128 * sum(low_sum);
        });
    }
};

// Scale 16 sums and round them to the outputs from `column` on.
template <class T>
static inline void finish(v16 sums, const float *scales, const T *bias, T *out, int64_t column, int64_t outputs) {
    if (column + OUT <= outputs) {
        const v16 y = sums * load(scales + column);
        return store(out + column, bias ? y + load(bias + column) : y);
    }
    for (int64_t n = 0; column + n < outputs; n++) {
        const float y = sums[n] * scales[column + n];
        out[column + n] = from_float<T>(bias ? y + to_float(bias[column + n]) : y);
    }
}

template <class T>
static void linear(const T *x, int64_t stride, const uint8_t *packed, const float *scales, const T *bias, T *out,
                   int64_t rows, int64_t outputs, int64_t inputs) {
    const int64_t depth = round_up(inputs, IN), words = depth / HOLDS, pairs = round_up(outputs, 2 * OUT) / (2 * OUT);
    static thread_local Digits own;
    Digits &digits = own;
    digits.write(x, stride, rows, inputs, depth);
    const int64_t row_blocks = (rows + BLOCK - 1) / BLOCK;
    const int64_t per_item = rows > ROWS ? pieces(pairs * row_blocks, 8 * threads(), 8) : 1 + 32768 / (depth * 2 * OUT);
    const int64_t items = (pairs + per_item - 1) / per_item;
    parallel_for(items * row_blocks, [=, &digits](int64_t item) {
        Tiles tiles;
        const int64_t first_row = item % row_blocks * BLOCK, last_row = std::min(first_row + BLOCK, rows);
        const int64_t first = item / row_blocks * per_item, last = std::min(first + per_item, pairs);
        for (int64_t row = first_row; row < last_row; row += ROWS)
            for (int64_t pair = first; pair < last; pair++) {
                alignas(64) int32_t sums[2 * ROWS * 2 * OUT];
                const int64_t count = std::min(last_row - row, ROWS);
                const int8s *from = (const int8s *)&digits.values[2 * row * depth];
                const int8s *weight = (const int8s *)(packed + pair * 2 * depth * OUT);
                product(tiles, 2 * count, from, words, weight, OUT, words * OUT, words, sums, 2 * OUT, 2 * OUT, false);
                for (int64_t half = 0; half < 2; half++)
                    for (int64_t r = 0; r < count; r++) {
                        const int32_t *high = sums + r * 2 * OUT + half * OUT, *low = high + count * 2 * OUT;
                        const v16 first = to_float(load(high) - digits.extra[2 * (row + r)]);
                        const v16 second = to_float(load(low) - digits.extra[2 * (row + r) + 1]);
                        finish((first + second * (1 / BASE)) * digits.steps[row + r], scales, bias,
                               out + (row + r) * outputs, pair * 2 * OUT + half * OUT, outputs);
                    }
            }
    });
}

extern "C" void tgi_linear_int8(int is_bf16, const void *x, int64_t stride, const uint8_t *packed, const float *scales,
                                const void *bias, void *out, int64_t rows, int64_t outputs, int64_t inputs) {
    if (is_bf16)
        linear((const bf16 *)x, stride, packed, scales, (const bf16 *)bias, (bf16 *)out, rows, outputs, inputs);
    else
        linear((const float *)x, stride, packed, scales, (const float *)bias, (float *)out, rows, outputs, inputs);
}
