// Choosing tokens, a row of logits at a time: the most likely one, one at random, and filters before that.
#include "kernels.h"
#include "pool.h"
#include "vec.h"
#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

static const int64_t PART = 1024;  // tokens whose probabilities are added up at a time

template <class T> static float largest(const T *x, int64_t n) {
    v16 best = splat(-INFINITY);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) best = max(load(x + i), best);
    float top = max_of(best);
    for (; i < n; i++) top = to_float(x[i]) > top ? to_float(x[i]) : top;
    return top;
}

template <class T> static int64_t first_of(const T *x, int64_t n, float value) {
    for (int64_t i = 0; i < n; i++)
        if (to_float(x[i]) == value) return i;
    return 0;
}

// The sum of e^(x - top).
template <class T> static double mass(const T *x, int64_t n, float top) {
    double total = 0;
    for (int64_t begin = 0; begin < n; begin += PART) {
        const int64_t end = std::min(begin + PART, n);
        v16 sums = v16{};
        int64_t i = begin;
        for (; i + 16 <= end; i += 16) sums += exp(load(x + i) - top);
        total += sum(sums);
        for (; i < end; i++) total += exp(splat(to_float(x[i]) - top))[0];
    }
    return total;
}

template <class T> static void greedy_row(const T *x, int64_t n, int64_t *id, float *logprob) {
    const float top = largest(x, n);
    *id = first_of(x, n, top);
    *logprob = -logf(float(mass(x, n, top)));  // NaN where a logit is NaN
}

extern "C" void tgi_greedy(int is_bf16, const void *logits, int64_t rows, int64_t n, int64_t *ids, float *logprobs) {
    parallel_for(rows, [=](int64_t t) {
        if (is_bf16) greedy_row((const bf16 *)logits + t * n, n, ids + t, logprobs + t);
        else greedy_row((const float *)logits + t * n, n, ids + t, logprobs + t);
    });
}

// The first token at which the sum of e^(x - top) exceeds `target`; the last likely one where rounding leaves none.
static int64_t token_at(const float *x, int64_t n, float top, double target) {
    double before = 0;
    int64_t last = first_of(x, n, top);
    for (int64_t begin = 0; begin < n; begin += PART) {
        const int64_t end = std::min(begin + PART, n);
        const double here = mass(x + begin, end - begin, top);
        if (before + here <= target) {
            before += here;
            continue;
        }
        for (int64_t i = begin; i < end; i++) {
            const float weight = exp(splat(x[i] - top))[0];
            before += weight;
            if (weight > 0) last = i;
            if (before > target) return i;
        }
    }
    return last;
}

extern "C" void tgi_sample(const float *logits, int64_t rows, int64_t n, const double *at, int64_t *ids, float *logprobs,
                           float *totals) {
    parallel_for(rows, [=](int64_t t) {
        const float *x = logits + t * n, top = largest(x, n);
        const double total = mass(x, n, top);
        ids[t] = at[t] < 0 ? first_of(x, n, top) : token_at(x, n, top, at[t] * total);
        totals[t] = top + logf(float(total));
        logprobs[t] = x[ids[t]] - totals[t];
    });
}

static void penalize_token(float &x, int32_t in_prompt, int32_t in_output, float repetition, float frequency, float presence) {
    if (!in_prompt && !in_output) return;
    x = x < 0 ? x * repetition : x / repetition;
    if (in_output) x -= float(in_output) * frequency + presence;
}

extern "C" void tgi_penalize(float *logits, int64_t rows, int64_t n, const int32_t *prompt, const int32_t *output,
                             const int64_t *slots, const float *repetition, const float *frequency,
                             const float *presence) {
    parallel_for(rows, [=](int64_t t) {
        float *x = logits + t * n;
        const int32_t *in_prompt = prompt + slots[t] * n, *in_output = output + slots[t] * n;
        for (int64_t begin = 0; begin < n; begin += 64) {  // few tokens were there before
            const int64_t end = std::min(begin + 64, n);
            int32_t any = 0;
            for (int64_t i = begin; i < end; i++) any |= in_prompt[i] | in_output[i];
            if (!any) continue;
            for (int64_t i = begin; i < end; i++)
                penalize_token(x[i], in_prompt[i], in_output[i], repetition[t], frequency[t], presence[t]);
        }
    });
}

static void hide_below(float *x, int64_t n, float threshold) {
    int64_t i = 0;
    const v16 hidden = splat(-INFINITY);
    for (; i + 16 <= n; i += 16) {
        const v16 v = load(x + i);
        store(x + i, select(v < splat(threshold), hidden, v));
    }
    for (; i < n; i++) x[i] = x[i] < threshold ? -INFINITY : x[i];
}

// Filters look at the likely tokens first: those whose logit is at most so much below the largest one.
static const float DEPTHS[] = {4, 8, 16, INFINITY};

static void likely(const float *x, int64_t n, float least, std::vector<float> &found) {
    found.clear();
    for (int64_t i = 0; i < n; i++)
        if (x[i] >= least) found.push_back(x[i]);
}

static float kth_largest(const float *x, int64_t n, int64_t k) {
    static thread_local std::vector<float> found;
    const float top = largest(x, n);
    for (float depth : DEPTHS) {
        likely(x, n, top - depth, found);
        if (int64_t(found.size()) < k) continue;
        std::nth_element(found.begin(), found.begin() + (k - 1), found.end(), std::greater<float>());
        return found[k - 1];
    }
    return -INFINITY;
}

// The logit of the least likely token of those that together reach p.
static float last_of_mass(const float *x, int64_t n, float p) {
    static thread_local std::vector<float> found;
    const float top = largest(x, n);
    const double wanted = p * mass(x, n, top);
    for (float depth : DEPTHS) {
        likely(x, n, top - depth, found);
        if (depth < INFINITY && mass(found.data(), int64_t(found.size()), top) < wanted) continue;
        std::sort(found.begin(), found.end(), std::greater<float>());
        double reached = 0;
        for (float logit : found) {
            reached += exp(splat(logit - top))[0];
            if (reached >= wanted) return logit;
        }
    }
    return -INFINITY;
}

extern "C" void tgi_top_k(float *logits, int64_t rows, int64_t n, const int64_t *k) {
    parallel_for(rows, [=](int64_t t) { hide_below(logits + t * n, n, kth_largest(logits + t * n, n, k[t])); });
}

extern "C" void tgi_top_p(float *logits, int64_t rows, int64_t n, const float *p) {
    parallel_for(rows, [=](int64_t t) { hide_below(logits + t * n, n, last_of_mass(logits + t * n, n, p[t])); });
}
