// Linear layers with weights of a byte, sums in int32: y = x . (weight * scale)^T + bias, one scale for each output.
//
// Each row of x is written as a fixed-point number of two int8 digits, x = step * (high + low / 254): what that loses is
// at most 2^-16 of the row's largest value, so only the weights are rounded visibly.  Rows of digits are multiplied like
// any others, exactly, while each weight byte is read once.
//
// The weight [M, N] is given as weight + 128, because the processor's products take one factor without sign; what that
// adds is 128 times the sum of the row's digits.  It lies as in linear.cpp, with four neighbours to a word:
// [M/16, N/4, 16, 4], with anything where M or N do not fill tiles of 16 by 64.
#pragma once
#include "pool.h"
#include "product.h"
#include <cmath>
#include <vector>

static const int64_t OUT = 16, IN = 64, HOLDS = 4;
static const int64_t ROWS = 16;    // of x that are multiplied at a time: 32 rows of digits
static const int64_t BLOCK = 256;  // rows of x of an item
static const int64_t CHUNK = 1024; // words of them that are multiplied at a time
static const int64_t SUMS = 2 * ROWS * 2 * OUT;
static const float BASE = 254;     // of the digits

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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
            const bool is_finite = !sum(nan) && std::isfinite(largest);
            i16x high_sum = i16x{}, low_sum = i16x{};
            for (int64_t k = 0; k < depth; k += 16) {
                const v16 scaled = is_finite ? part(k) * per_step : v16{};
                const i16x first = nearest(scaled), second = nearest((scaled - to_float(first)) * BASE);
                store(high + k, first), store(low + k, second);
                high_sum += first, low_sum += second;
            }
            steps[row] = is_finite ? largest / 127 : NAN;
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

// Neighbouring pairs of columns, 32 outputs each, of a weight's words as `product` takes them.
struct Words {
    const int8s *at;
    int64_t tile, pair;  // words from the first column of a pair to the second, and from a pair to the next
};

// The product with a weight that has these functions of its pairs of columns:
//     words(first, last, word, count)   the words [word, word + count) of the pairs [first, last), until the next call
//     row(tiles, pair, x, words, sums)  sums [2, 32] of one row's digits x [2, words]
// For a few rows it is asked for at most `few` words at a time.
template <class T, class Weight>
static void multiply(const T *x, int64_t stride, const Weight &weight, int64_t few, const float *scales, const T *bias,
                     T *out, int64_t rows, int64_t outputs, int64_t inputs) {
    const int64_t depth = round_up(inputs, IN), words = depth / HOLDS, pairs = round_up(outputs, 2 * OUT) / (2 * OUT);
    static thread_local Digits own;
    Digits &digits = own;
    digits.write(x, stride, rows, inputs, depth);
    // sums [2, count, 32] of rows from `row` on
    const auto finish_rows = [=, &digits](const int32_t *sums, int64_t row, int64_t count, int64_t pair) {
        for (int64_t half = 0; half < 2; half++)
            for (int64_t r = 0; r < count; r++) {
                const int32_t *high = sums + r * 2 * OUT + half * OUT, *low = high + count * 2 * OUT;
                const v16 left = to_float(load(high) - digits.extra[2 * (row + r)]);
                const v16 right = to_float(load(low) - digits.extra[2 * (row + r) + 1]);
                finish((left + right * (1 / BASE)) * digits.steps[row + r], scales, bias, out + (row + r) * outputs,
                       pair * 2 * OUT + half * OUT, outputs);
            }
    };
    // few rows: 32 KiB of weights an item, read in order; many rows: a block of them stays in the second-level cache, a deep
    // one in chunks, which leave sums to the next
    const int64_t row_blocks = (rows + BLOCK - 1) / BLOCK, size = depth * 2 * OUT;
    const int64_t per_item = rows > ROWS ? pieces(pairs * row_blocks, 8 * threads(), 8) : 1 + 32768 / size;
    const int64_t items = (pairs + per_item - 1) / per_item;
    const int64_t chunk = rows <= ROWS ? std::min(words, few) : words > 2 * CHUNK ? CHUNK : words;
    const int64_t tile = chunk < words ? SUMS : 0;
    parallel_for(items * row_blocks, [=, &weight, &digits](int64_t item) {
        Tiles tiles;
        const int64_t first_row = item % row_blocks * BLOCK, last_row = std::min(first_row + BLOCK, rows);
        const int64_t first = item / row_blocks * per_item, last = std::min(first + per_item, pairs);
        const auto digits_of = [&](int64_t row) { return (const int8s *)&digits.values[2 * row * depth]; };
        static thread_local std::vector<int32_t> own_sums;
        own_sums.resize(SUMS + tile * ((last_row - first_row + ROWS - 1) / ROWS) * (last - first));
        if (rows == 1) {
            for (int64_t pair = first; pair < last; pair++) {
                weight.row(tiles, pair, digits_of(0), words, own_sums.data());
                finish_rows(own_sums.data(), 0, 1, pair);
            }
            return;
        }
        for (int64_t word = 0; word < words; word += chunk) {
            const int64_t width = std::min(chunk, words - word);
            const Words from = weight.words(first, last, word, width);
            int32_t *sums = own_sums.data();
            for (int64_t row = first_row; row < last_row; row += ROWS)
                for (int64_t pair = first; pair < last; pair++, sums += tile) {
                    const int64_t count = std::min(last_row - row, ROWS);
                    product(tiles, 2 * count, digits_of(row) + word, words, from.at + (pair - first) * from.pair, OUT,
                            from.tile, width, sums, 2 * OUT, 2 * OUT, word > 0);
                    if (word + width == words) finish_rows(sums, row, count, pair);
                }
        }
    });
}
