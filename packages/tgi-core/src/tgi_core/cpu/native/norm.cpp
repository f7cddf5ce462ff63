// RMS and layer norm with and without the residual sum, rounded where PyTorch's reference rounds.
#include "kernels.h"
#include "pool.h"
#include "vec.h"
#include <cmath>

// The sum of what `term` makes of each of n elements.
template <class T, class F> static inline float sum_of(const T *x, int64_t n, F &&term) {
    v16 sums = v16{};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) sums += term(load(x + i));
    float total = sum(sums);
    for (; i < n; i++) total += term(to_float(x[i]));
    return total;
}

template <class T> static void norm_row(T *out, const T *x, const T *weight, int64_t n, float eps) {
    const float squares = sum_of(x, n, [](auto v) { return v * v; });
    const float scale = 1.0f / sqrtf(squares / float(n) + eps);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store(out + i, rounded(load(x + i) * scale, T{}) * load(weight + i));
    for (; i < n; i++)
        out[i] = from_float<T>(to_float(from_float<T>(to_float(x[i]) * scale)) * to_float(weight[i]));
}

template <class T> static void rms_norm(T *out, const T *x, const T *weight, int64_t rows, int64_t n, float eps) {
    in_pieces(rows, n, [=](int64_t t) { norm_row(out + t * n, x + t * n, weight, n, eps); });
}

template <class T> static void add_row(T *sum, const T *x, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store(sum + i, load(x + i) + load(sum + i));
    for (; i < n; i++) sum[i] = from_float<T>(to_float(x[i]) + to_float(sum[i]));
}

template <class T>
static void add_rms_norm(T *out, T *residual, const T *x, const T *weight, int64_t rows, int64_t n, float eps) {
    in_pieces(rows, n, [=](int64_t t) {
        T *r = residual + t * n;
        add_row(r, x + t * n, n);
        norm_row(out + t * n, r, weight, n, eps);
    });
}

template <class T>
static void layer_norm_row(T *out, const T *x, const T *weight, const T *bias, int64_t n, float eps) {
    const float mean = sum_of(x, n, [](auto v) { return v; }) / float(n);
    const float squares = sum_of(x, n, [=](auto v) { return (v - mean) * (v - mean); });
    const float scale = 1.0f / sqrtf(squares / float(n) + eps);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const v16 y = (load(x + i) - mean) * scale * load(weight + i);
        store(out + i, bias ? y + load(bias + i) : y);
    }
    for (; i < n; i++)
        out[i] = from_float<T>((to_float(x[i]) - mean) * scale * to_float(weight[i]) + (bias ? to_float(bias[i]) : 0.0f));
}

// With a residual, x is added to it first.
template <class T>
static void layer_norm(T *out, T *residual, const T *x, const T *weight, const T *bias, int64_t rows, int64_t n, float eps) {
    in_pieces(rows, n, [=](int64_t t) {
        const T *from = x + t * n;
        if (residual) {
            add_row(residual + t * n, from, n);
            from = residual + t * n;
        }
        layer_norm_row(out + t * n, from, weight, bias, n, eps);
    });
}

extern "C" void tgi_rms_norm(int is_bf16, void *out, const void *x, const void *w, int64_t rows, int64_t n, float eps) {
    if (is_bf16) rms_norm((bf16 *)out, (const bf16 *)x, (const bf16 *)w, rows, n, eps);
    else rms_norm((float *)out, (const float *)x, (const float *)w, rows, n, eps);
}

extern "C" void tgi_add_rms_norm(int is_bf16, void *out, void *residual, const void *x, const void *w, int64_t rows,
                                 int64_t n, float eps) {
    if (is_bf16) add_rms_norm((bf16 *)out, (bf16 *)residual, (const bf16 *)x, (const bf16 *)w, rows, n, eps);
    else add_rms_norm((float *)out, (float *)residual, (const float *)x, (const float *)w, rows, n, eps);
}

extern "C" void tgi_layer_norm(int is_bf16, void *out, void *residual, const void *x, const void *w, const void *b,
                               int64_t rows, int64_t n, float eps) {
    if (is_bf16)
        layer_norm((bf16 *)out, (bf16 *)residual, (const bf16 *)x, (const bf16 *)w, (const bf16 *)b, rows, n, eps);
    else
        layer_norm((float *)out, (float *)residual, (const float *)x, (const float *)w, (const float *)b, rows, n, eps);
}
