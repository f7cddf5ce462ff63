// Rotary position embedding in place, and activations.
#include "kernels.h"
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

// Numbers of the activations, as kernels.py passes them.
enum Activation { SILU, GELU, GELU_TANH };

template <int A, class T> static inline v16 activate(v16 x, T) {
    if (A == SILU) return x * inverse_for(T{}, exp_for(T{}, -x) + 1.0f);
    if (A == GELU) return x * 0.5f * (1.0f + erf(x * 0.70710678f));
    return x * 0.5f * (1.0f + tanh((x + x * x * x * 0.044715f) * 0.79788456f));
}

// out = activate(gate), times up where there is one; rows of `gate` and `up` are `stride` elements apart.
template <int A, class T>
static void activate_rows(T *out, const T *gate, const T *up, int64_t stride, int64_t rows, int64_t n) {
    in_pieces(rows, n, [=](int64_t t) {
        const T *g = gate + t * stride, *u = up + t * stride;
        T *o = out + t * n;
        int64_t i = 0;
        for (; i + 16 <= n; i += 16) {
            const v16 a = activate<A>(load(g + i), T{});
            store(o + i, up ? rounded(a, T{}) * load(u + i) : a);
        }
        for (; i < n; i++) {
            const float a = activate<A>(splat(to_float(g[i])), T{})[0];
            o[i] = from_float<T>(up ? to_float(from_float<T>(a)) * to_float(u[i]) : a);
        }
    });
}

template <class T>
static void activate_any(int activation, T *out, const T *gate, const T *up, int64_t stride, int64_t rows, int64_t n) {
    if (activation == SILU) activate_rows<SILU>(out, gate, up, stride, rows, n);
    else if (activation == GELU) activate_rows<GELU>(out, gate, up, stride, rows, n);
    else activate_rows<GELU_TANH>(out, gate, up, stride, rows, n);
}

// x: [rows, n], or [rows, 2 n] of gate and up where `gated`
extern "C" void tgi_activate(int is_bf16, int activation, int gated, void *out, const void *x, int64_t rows, int64_t n) {
    const int64_t stride = gated ? 2 * n : n;
    if (is_bf16) {
        const bf16 *gate = (const bf16 *)x;
        activate_any(activation, (bf16 *)out, gate, gated ? gate + n : nullptr, stride, rows, n);
    } else {
        const float *gate = (const float *)x;
        activate_any(activation, (float *)out, gate, gated ? gate + n : nullptr, stride, rows, n);
    }
}
