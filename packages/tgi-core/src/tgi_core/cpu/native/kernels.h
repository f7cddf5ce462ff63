// The kernels that a step calls, as Python sees them; what their arguments mean stands where each is defined.
#pragma once
#include <cstdint>

struct Expert;
struct Layer;
struct Step;

extern "C" {
void tgi_rms_norm(int is_bf16, void *out, const void *x, const void *w, int64_t rows, int64_t n, float eps);
void tgi_add_rms_norm(int is_bf16, void *out, void *residual, const void *x, const void *w, int64_t rows, int64_t n,
                      float eps);
void tgi_layer_norm(int is_bf16, void *out, void *residual, const void *x, const void *w, const void *b, int64_t rows,
                    int64_t n, float eps);
void tgi_rotary(int is_bf16, void *x, int64_t stride, int64_t heads, int64_t head_size, const float *cos,
                const float *sin, int64_t rows, int64_t half);
void tgi_activate(int is_bf16, int activation, int gated, void *out, const void *x, int64_t rows, int64_t n);
void tgi_greedy(int is_bf16, const void *logits, int64_t rows, int64_t n, int64_t *ids, float *logprobs);
void tgi_sample(const float *logits, int64_t rows, int64_t n, const double *at, int64_t *ids, float *logprobs,
                float *totals);
void tgi_penalize(float *logits, int64_t rows, int64_t n, const int32_t *prompt, const int32_t *output,
                  const int64_t *slots, const float *repetition, const float *frequency, const float *presence);
void tgi_top_k(float *logits, int64_t rows, int64_t n, const int64_t *k);
void tgi_top_p(float *logits, int64_t rows, int64_t n, const float *p);
void tgi_linear(int is_bf16, const void *x, int64_t stride, const void *packed, const void *bias, void *out, int64_t rows,
                int64_t outputs, int64_t inputs);
void tgi_rows(int is_bf16, const void *packed, const int64_t *ids, void *out, int64_t count, int64_t inputs);
void tgi_rows_int8(int is_bf16, const uint8_t *packed, const float *scales, const int64_t *ids, void *out, int64_t count,
                   int64_t inputs);
void tgi_linear_int8(int is_bf16, const void *x, int64_t stride, const uint8_t *packed, const float *scales,
                     const void *bias, void *out, int64_t rows, int64_t outputs, int64_t inputs);
void tgi_linear_int4(int is_bf16, const void *x, int64_t stride, const uint8_t *packed, const float *scales,
                     const void *bias, void *out, int64_t rows, int64_t outputs, int64_t inputs);
void tgi_experts(int is_bf16, int kind, int activation, const Expert *table, int64_t count, const void *x, int64_t tokens,
                 int64_t hidden, int64_t size, const int64_t *chosen, const float *weights, int64_t each, void *out);
void tgi_paged_attention(const Layer *layer, const Step *step, const float *bias, int64_t bias_columns,
                         int64_t bias_origin, const void *q, int64_t q_stride, const void *k, int64_t k_stride,
                         const void *v, int64_t v_stride, void *out);
}
