// The most likely token of each row and its log-probability.
#include "kernels.h"
#include "pool.h"
#include "vec.h"
#include <cmath>

template <class T> static void greedy_row(const T *x, int64_t n, int64_t *id, float *logprob) {
    v16 best = splat(-INFINITY);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) best = max(load(x + i), best);
    float top = max_of(best);
    for (int64_t j = i; j < n; j++) top = to_float(x[j]) > top ? to_float(x[j]) : top;
    v16 total = v16{};
    for (i = 0; i + 16 <= n; i += 16) total += exp(load(x + i) - top);
    float sum_exp = sum(total);
    for (; i < n; i++) sum_exp += exp(splat(to_float(x[i]) - top))[0];
    int64_t first = 0;
    while (first < n && to_float(x[first]) != top) first++;
    *id = first < n ? first : 0;
    *logprob = -logf(sum_exp);  // NaN where a logit is NaN
}

extern "C" void tgi_greedy(int is_bf16, const void *logits, int64_t rows, int64_t n, int64_t *ids, float *logprobs) {
    parallel_for(rows, [=](int64_t t) {
        if (is_bf16) greedy_row((const bf16 *)logits + t * n, n, ids + t, logprobs + t);
        else greedy_row((const float *)logits + t * n, n, ids + t, logprobs + t);
    });
}
