// Feed-forward layers of experts: each expert that any token chose runs once over all of its tokens.
#include "kernels.h"
#include "pool.h"
#include "vec.h"
#include <vector>

// The weights of an expert as the linear kernel of this kind takes them; scales are null where it has none.
struct Expert {
    const void *gate_up;
    const float *gate_up_scales;
    const void *down;
    const float *down_scales;
};

// Numbers of the linear kernels, as moe.py passes them.
enum Kind { PLAIN, INT8, INT4 };

static void linear(int kind, int is_bf16, const void *x, const void *weight, const float *scales, void *out, int64_t rows,
                   int64_t outputs, int64_t inputs) {
    const uint8_t *bytes = (const uint8_t *)weight;
    if (kind == INT8) tgi_linear_int8(is_bf16, x, inputs, bytes, scales, nullptr, out, rows, outputs, inputs);
    else if (kind == INT4) tgi_linear_int4(is_bf16, x, inputs, bytes, scales, nullptr, out, rows, outputs, inputs);
    else tgi_linear(is_bf16, x, inputs, weight, nullptr, out, rows, outputs, inputs);
}

// Rows of the experts one after the other.
template <class T> struct Sorted {
    std::vector<int64_t> begin;  // [experts + 1] first row of each expert
    std::vector<int64_t> at;     // [tokens, chosen] the row of each choice
    std::vector<T> x, gate_up, wide, y;

    void sort(const int64_t *chosen, int64_t choices, int64_t experts) {
        begin.assign(experts + 1, 0);
        at.resize(choices);
        for (int64_t i = 0; i < choices; i++) begin[chosen[i] + 1]++;
        for (int64_t e = 0; e < experts; e++) begin[e + 1] += begin[e];
        std::vector<int64_t> next(begin.begin(), begin.end() - 1);
        for (int64_t i = 0; i < choices; i++) at[i] = next[chosen[i]]++;
    }
};

template <class T>
static void experts(int kind, int activation, const Expert *table, int64_t count, const T *x, int64_t tokens, int64_t hidden,
                    int64_t size, const int64_t *chosen, const float *weights, int64_t each, T *out) {
    const int is_bf16 = sizeof(T) == 2;
    const int64_t rows = tokens * each;
    static thread_local Sorted<T> own;
    Sorted<T> &sorted = own;
    sorted.sort(chosen, rows, count);
    sorted.x.resize(rows * hidden), sorted.gate_up.resize(rows * 2 * size);
    sorted.wide.resize(rows * size), sorted.y.resize(rows * hidden);
    for (int64_t i = 0; i < rows; i++)
        memcpy(&sorted.x[sorted.at[i] * hidden], x + i / each * hidden, hidden * sizeof(T));
    for (int64_t e = 0; e < count; e++) {
        const int64_t first = sorted.begin[e], own_rows = sorted.begin[e + 1] - first;
        if (!own_rows) continue;
        const Expert &expert = table[e];
        T *gate_up = &sorted.gate_up[first * 2 * size], *wide = &sorted.wide[first * size];
        linear(kind, is_bf16, &sorted.x[first * hidden], expert.gate_up, expert.gate_up_scales, gate_up, own_rows, 2 * size,
               hidden);
        tgi_activate(is_bf16, activation, 1, wide, gate_up, own_rows, size);
        linear(kind, is_bf16, wide, expert.down, expert.down_scales, &sorted.y[first * hidden], own_rows, hidden, size);
    }
    in_pieces(tokens, hidden * each, [=, &sorted](int64_t t) {
        for (int64_t n = 0; n < hidden; n++) {
            float total = 0;
            for (int64_t k = 0; k < each; k++)
                total += weights[t * each + k] * to_float(sorted.y[sorted.at[t * each + k] * hidden + n]);
            out[t * hidden + n] = from_float<T>(total);
        }
    });
}

extern "C" void tgi_experts(int is_bf16, int kind, int activation, const Expert *table, int64_t count, const void *x,
                            int64_t tokens, int64_t hidden, int64_t size, const int64_t *chosen, const float *weights,
                            int64_t each, void *out) {
    if (is_bf16)
        experts(kind, activation, table, count, (const bf16 *)x, tokens, hidden, size, chosen, weights, each, (bf16 *)out);
    else
        experts(kind, activation, table, count, (const float *)x, tokens, hidden, size, chosen, weights, each, (float *)out);
}
