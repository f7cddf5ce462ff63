// Attention over a paged KV cache: prefill, chunks, decodes and any mix of them.
//
// A work item is a tile of query tokens of one sequence with all query heads that share one KV head, so that each key
// and value is read once per tile.  Keys are kept transposed, so that sixteen scores come out of one vector:
//   keys   [blocks, kv_heads, pairs, block_size]  a "pair" is two neighbouring bf16 features, or one float
//   values [blocks, kv_heads, block_size, padded_size]
// Softmax is computed online (arXiv 1805.02867), block by block.
#include "pool.h"
#include "vec.h"
#include <cmath>
#include <vector>

struct Layer {
    void *keys, *values;
    const float *alibi;  // [heads] or null
    int64_t heads, kv_heads, head_size, padded_size, block_size;
    int64_t window;      // keys a query sees, itself included; 0 = all
    int64_t is_bf16;
    float scale, soft_cap;  // 0 = none
};

struct Step {
    const int32_t *tables;         // [sequences, table_width] block ids
    const int32_t *query_starts;   // [sequences + 1] first row of each sequence
    const int32_t *context_lens;   // [sequences] tokens after this step
    const int32_t *tile_sequence;  // [tiles]
    const int32_t *tile_start;     // [tiles] first query token, counted within the sequence's rows
    const int32_t *token_sequence; // [tokens]
    int64_t table_width, tiles, tokens, tile_tokens;
};

static const int ROWS = 8;  // query rows whose accumulators stay in registers

template <class T> struct Pair;
template <> struct Pair<float> { static const int features = 1; };
template <> struct Pair<bf16> { static const int features = 2; };

static inline v16 dot(v16 sum, const float *keys, const float *query) { return sum + load(keys) * *query; }
static inline v16 dot(v16 sum, const uint32_t *keys, const uint32_t *query) {
    u16x k; memcpy(&k, keys, 64);
#if defined(__AVX512BF16__)
    return (v16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)k, (__m512bh)_mm512_set1_epi32(int(*query)));
#else
    uint32_t low = *query << 16, high = *query & 0xffff0000u;
    float a, b; memcpy(&a, &low, 4); memcpy(&b, &high, 4);
    return sum + (v16)(k << 16) * a + (v16)(k & 0xffff0000u) * b;
#endif
}

// scores[r][0..block_size) = query[r] . keys, for `rows` <= ROWS rows
template <int N, class W>
static void score_rows(const W *query, const W *keys, int64_t pairs, int64_t block_size, float *scores) {
    for (int64_t j = 0; j < block_size; j += 16) {
        v16 sums[N];
        for (int r = 0; r < N; r++) sums[r] = v16{};
        for (int64_t d = 0; d < pairs; d++)
            for (int r = 0; r < N; r++) sums[r] = dot(sums[r], keys + d * block_size + j, query + r * pairs + d);
        for (int r = 0; r < N; r++) store(scores + r * block_size + j, sums[r]);
    }
}

// out[r] += weights[r] . values over the first `valid` keys of a block
template <int N, class T>
static void weigh_rows(const float *weights, const T *values, int64_t valid, int64_t block_size, int64_t size, float *out) {
    for (int64_t d = 0; d < size; d += 16) {
        v16 sums[N];
        for (int r = 0; r < N; r++) sums[r] = load(out + r * size + d);
        for (int64_t j = 0; j < valid; j++) {
            v16 value = load(values + j * size + d);
            for (int r = 0; r < N; r++) sums[r] += value * weights[r * block_size + j];
        }
        for (int r = 0; r < N; r++) store(out + r * size + d, sums[r]);
    }
}

#define BY_ROWS(count, call)                                                                                         \
    switch (count) {                                                                                                 \
    case 1: call(1); break; case 2: call(2); break; case 3: call(3); break; case 4: call(4); break;                  \
    case 5: call(5); break; case 6: call(6); break; case 7: call(7); break; default: call(8); break;                 \
    }

struct Scratch {
    std::vector<float> scores, out, most, total;
    std::vector<uint32_t> query;
};

template <class T, class W>
static void attend_tile(const Layer &layer, const Step &step, const T *q, int64_t q_stride, T *out, int64_t tile,
                        int64_t kv_head, Scratch &scratch) {
    const int64_t group = layer.heads / layer.kv_heads, size = layer.padded_size, block_size = layer.block_size;
    const int64_t pairs = size / Pair<T>::features;
    const int64_t sequence = step.tile_sequence[tile], first = step.tile_start[tile];
    const int64_t begin = step.query_starts[sequence], length = step.query_starts[sequence + 1] - begin;
    const int64_t tokens = length - first < step.tile_tokens ? length - first : step.tile_tokens;
    const int64_t rows = tokens * group;
    const int64_t position = step.context_lens[sequence] - length + first;  // of the tile's first token
    const int32_t *table = step.tables + sequence * step.table_width;

    scratch.query.assign(rows * pairs, 0);
    scratch.scores.resize(rows * block_size);
    scratch.out.assign(rows * size, 0.0f);
    scratch.most.assign(rows, -INFINITY);
    scratch.total.assign(rows, 0.0f);
    W *query = (W *)scratch.query.data();
    for (int64_t r = 0; r < rows; r++)
        memcpy(query + r * pairs, q + (begin + first + r / group) * q_stride + (kv_head * group + r % group) * layer.head_size,
               layer.head_size * sizeof(T));

    const int64_t last_key = position + tokens - 1;
    const int64_t first_key = layer.window && position >= layer.window ? position - layer.window + 1 : 0;
    for (int64_t index = first_key / block_size; index <= last_key / block_size; index++) {
        const int64_t block = table[index], base = index * block_size;
        const W *keys = (const W *)layer.keys + (block * layer.kv_heads + kv_head) * pairs * block_size;
        const T *values = (const T *)layer.values + (block * layer.kv_heads + kv_head) * block_size * size;
        const int64_t valid = last_key + 1 - base < block_size ? last_key + 1 - base : block_size;
        float *scores = scratch.scores.data();
        for (int64_t r = 0; r < rows; r += ROWS) {
#define CALL(N) score_rows<N>(query + r * pairs, keys, pairs, block_size, scores + r * block_size)
            BY_ROWS(rows - r, CALL)
#undef CALL
        }
        for (int64_t r = 0; r < rows; r++) {
            float *row = scores + r * block_size;
            const int64_t own = position + r / group;  // the query's position
            int64_t to = own + 1 - base, from = layer.window ? own + 1 - layer.window - base : 0;
            to = to < 0 ? 0 : to > block_size ? block_size : to;
            from = from < 0 ? 0 : from > to ? to : from;
            const float slope = layer.alibi ? layer.alibi[kv_head * group + r % group] : 0.0f;
            float most = scratch.most[r];
            for (int64_t j = from; j < to; j++) {
                float s = row[j] * layer.scale;
                if (layer.soft_cap > 0) s = layer.soft_cap * tanhf(s / layer.soft_cap);
                s += slope * float(base + j - own);
                row[j] = s;
                most = s > most ? s : most;
            }
            for (int64_t j = 0; j < from; j++) row[j] = -INFINITY;
            for (int64_t j = to; j < block_size; j++) row[j] = -INFINITY;
            if (most == -INFINITY) {  // no key seen yet
                for (int64_t j = 0; j < block_size; j++) row[j] = 0.0f;
                continue;
            }
            v16 total = v16{};
            for (int64_t j = 0; j < block_size; j += 16) {
                v16 p = exp(load(row + j) - most);
                store(row + j, p);
                total += p;
            }
            const float fade = scratch.most[r] == most ? 1.0f : expf(scratch.most[r] - most);
            scratch.most[r] = most;
            scratch.total[r] = scratch.total[r] * fade + sum(total);
            if (fade != 1.0f)
                for (int64_t d = 0; d < size; d++) scratch.out[r * size + d] *= fade;
        }
        for (int64_t r = 0; r < rows; r += ROWS) {
#define CALL(N) weigh_rows<N>(scores + r * block_size, values, valid, block_size, size, scratch.out.data() + r * size)
            BY_ROWS(rows - r, CALL)
#undef CALL
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        T *to = out + ((begin + first + r / group) * layer.heads + kv_head * group + r % group) * layer.head_size;
        const float inverse = 1.0f / scratch.total[r];
        for (int64_t d = 0; d < layer.head_size; d++) to[d] = from_float<T>(scratch.out[r * size + d] * inverse);
    }
}

template <class T, class W>
static void store_token(const Layer &layer, const Step &step, const T *k, const T *v, int64_t token) {
    const int features = Pair<T>::features;
    const int64_t size = layer.padded_size, block_size = layer.block_size;
    const int64_t sequence = step.token_sequence[token];
    const int64_t position = step.context_lens[sequence] - step.query_starts[sequence + 1] + token;
    const int64_t block = step.tables[sequence * step.table_width + position / block_size], at = position % block_size;
    for (int64_t h = 0; h < layer.kv_heads; h++) {
        T *keys = (T *)layer.keys + (block * layer.kv_heads + h) * size * block_size;
        T *values = (T *)layer.values + ((block * layer.kv_heads + h) * block_size + at) * size;
        for (int64_t d = 0; d < layer.head_size; d++)
            keys[(d / features * block_size + at) * features + d % features] = k[h * layer.head_size + d];
        memcpy(values, v + h * layer.head_size, layer.head_size * sizeof(T));
    }
}

template <class T, class W>
static void attend(const Layer &layer, const Step &step, const T *q, int64_t q_stride, const T *k, int64_t k_stride,
                   const T *v, int64_t v_stride, T *out) {
    in_pieces(step.tokens, layer.kv_heads * layer.padded_size * 2,
              [&](int64_t t) { store_token<T, W>(layer, step, k + t * k_stride, v + t * v_stride, t); });
    const int64_t items = step.tiles * layer.kv_heads;
    parallel_for(items, [&](int64_t index) {
        static thread_local Scratch scratch;
        const int64_t item = items - 1 - index;  // a prompt's last tiles are the longest
        attend_tile<T, W>(layer, step, q, q_stride, out, item / layer.kv_heads, item % layer.kv_heads, scratch);
    });
}

extern "C" void tgi_paged_attention(const Layer *layer, const Step *step, const void *q, int64_t q_stride, const void *k,
                                    int64_t k_stride, const void *v, int64_t v_stride, void *out) {
    if (layer->is_bf16)
        attend<bf16, uint32_t>(*layer, *step, (const bf16 *)q, q_stride, (const bf16 *)k, k_stride, (const bf16 *)v,
                               v_stride, (bf16 *)out);
    else
        attend<float, float>(*layer, *step, (const float *)q, q_stride, (const float *)k, k_stride, (const float *)v,
                             v_stride, (float *)out);
}
