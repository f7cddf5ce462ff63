// Linear layers with int8 weights, which are stored as digits.h takes them.
#include "digits.h"
#include "kernels.h"

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

namespace {

struct Bytes {
    const uint8_t *packed;
    int64_t depth;

    Words words(int64_t first, int64_t, int64_t word, int64_t) const {
        const int64_t tile = depth / HOLDS * OUT;
        return {(const int8s *)packed + 2 * first * tile + word * OUT, tile, 2 * tile};
    }

    void row(Tiles &tiles, int64_t pair, const int8s *digits, int64_t count, int32_t *sums) const {
        const Words from = words(pair, pair + 1, 0, count);
        product(tiles, 2, digits, count, from.at, OUT, from.tile, count, sums, 2 * OUT, 2 * OUT, false);
    }
};

}  // namespace

template <class T>
static void linear(const T *x, int64_t stride, const uint8_t *packed, const float *scales, const T *bias, T *out,
                   int64_t rows, int64_t outputs, int64_t inputs) {
    const Bytes weight{packed, round_up(inputs, IN)};
    multiply(x, stride, weight, weight.depth / HOLDS, scales, bias, out, rows, outputs, inputs);
}

extern "C" void tgi_linear_int8(int is_bf16, const void *x, int64_t stride, const uint8_t *packed, const float *scales,
                                const void *bias, void *out, int64_t rows, int64_t outputs, int64_t inputs) {
    if (is_bf16)
        linear((const bf16 *)x, stride, packed, scales, (const bf16 *)bias, (bf16 *)out, rows, outputs, inputs);
    else
        linear((const float *)x, stride, packed, scales, (const float *)bias, (float *)out, rows, outputs, inputs);
}

// Rows `ids` of a packed weight -> out [count, inputs].
template <class T>
static void rows_of(const uint8_t *packed, const float *scales, const int64_t *ids, T *out, int64_t count,
                    int64_t inputs) {
    const int64_t depth = round_up(inputs, IN);
    in_pieces(count, inputs, [=](int64_t row) {
        const uint8_t *from = packed + ids[row] / OUT * depth * OUT + ids[row] % OUT * HOLDS;
        for (int64_t k = 0; k < inputs; k++)
            out[row * inputs + k] = from_float<T>((from[k / HOLDS * OUT * HOLDS + k % HOLDS] - 128) * scales[ids[row]]);
    });
}

extern "C" void tgi_rows_int8(int is_bf16, const uint8_t *packed, const float *scales, const int64_t *ids, void *out,
                              int64_t count, int64_t inputs) {
    if (is_bf16) rows_of(packed, scales, ids, (bf16 *)out, count, inputs);
    else rows_of(packed, scales, ids, (float *)out, count, inputs);
}
