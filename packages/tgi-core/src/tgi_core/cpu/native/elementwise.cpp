// Rotary position embedding in place, and the gate of gated MLPs.
#include "pool.h"
#include "vec.h"

template <class T> static void rotate_head(T *head, const float *cos, const float *sin, int64_t half) {
    T *low = head, *high = head + half;
    int64_t i = 0;
    for (; i + 16 <= half; i += 16) {
        v16 a = load(low + i), b = load(high + i), c = load(cos + i), s = load(sin + i);
        store(low + i, a * c - b * s);
        store(high + i, b * c + a * s);
    }
    for (; i < half; i++) {
        float a = to_float(low[i]), b = to_float(high[i]);
        low[i] = from_float<T>(a * cos[i] - b * sin[i]);
        high[i] = from_float<T>(b * cos[i] + a * sin[i]);
    }
}

// x: `rows` rows of `heads` heads of `head_size`, rows `stride` elements apart; cos, sin: [rows, half]
template <class T>
static void rotary(T *x, int64_t stride, int64_t heads, int64_t head_size, const float *cos, const float *sin,
                   int64_t rows, int64_t half) {
    in_pieces(rows, heads * head_size, [=](int64_t t) {
        for (int64_t h = 0; h < heads; h++)
            rotate_head(x + t * stride + h * head_size, cos + t * half, sin + t * half, half);
    });
}

extern "C" void tgi_rotary(int is_bf16, void *x, int64_t stride, int64_t heads, int64_t head_size, const float *cos,
                           const float *sin, int64_t rows, int64_t half) {
    if (is_bf16) rotary((bf16 *)x, stride, heads, head_size, cos, sin, rows, half);
    else rotary((float *)x, stride, heads, head_size, cos, sin, rows, half);
}

template <class T> static void silu_and_mul(T *out, const T *x, int64_t rows, int64_t n) {
    in_pieces(rows, n, [=](int64_t t) {
        const T *gate = x + t * 2 * n, *up = gate + n;
        T *o = out + t * n;
        int64_t i = 0;
        for (; i + 16 <= n; i += 16) {
            v16 g = load(gate + i);
            store(o + i, rounded(g / (exp(-g) + 1.0f), T{}) * load(up + i));
        }
        for (; i < n; i++) {
            v16 g = splat(to_float(gate[i]));
            float activated = (g / (exp(-g) + 1.0f))[0];
            o[i] = from_float<T>(to_float(from_float<T>(activated)) * to_float(up[i]));
        }
    });
}

extern "C" void tgi_silu_and_mul(int is_bf16, void *out, const void *x, int64_t rows, int64_t n) {
    if (is_bf16) silu_and_mul((bf16 *)out, (const bf16 *)x, rows, n);
    else silu_and_mul((float *)out, (const float *)x, rows, n);
}
