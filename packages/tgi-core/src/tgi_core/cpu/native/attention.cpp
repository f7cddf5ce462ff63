// Attention over a paged KV cache: prefill, chunks, decodes and any mix of them, a decoder's own or across to a source.
//
// A work item is a tile of query tokens of one sequence with all query heads that share one KV head, so that each key
// and value is read once per tile.  Both are kept as `product` takes them, two neighbours to a word where they are bf16:
//   keys   [kv_heads, padded_size / 2, block_size]  words of two features
//   values [kv_heads, block_size / 2, padded_size]  words of two tokens
// A block holds the keys and values of one layer after the other.
// Softmax is computed online (arXiv 1805.02867), a span of blocks at a time; with bf16 the weights are rounded to bf16.
#include "kernels.h"
#include "pool.h"
#include "product.h"
#include <cmath>
#include <vector>

struct Layer {
    void *keys, *values;
    const float *alibi;  // [heads] or null
    int64_t heads, kv_heads, head_size, padded_size, block_size;
    int64_t block_stride;  // elements from one block to the next; between them lie those of other layers
    int64_t window;      // keys a query sees, itself included; 0 = all
    int64_t causal;      // 0: a query sees all keys
    int64_t is_bf16;
    float scale, soft_cap;  // 0 = none
};

struct Step {
    const int32_t *tables;         // [sequences, table_width] block ids
    const int32_t *query_starts;   // [sequences + 1] first row of each sequence
    const int32_t *key_starts;     // [sequences + 1] first row of each sequence's new keys, the last of its context
    const int32_t *context_lens;   // [sequences] keys after this step
    const int32_t *tile_sequence;  // [tiles]
    const int32_t *tile_start;     // [tiles] first query token, counted within the sequence's rows
    const int32_t *token_sequence; // [tokens] of the new keys
    int64_t table_width, tiles, tokens, tile_tokens;
};

// Added to the scores, by distance.
struct Bias {
    const float *values;  // [heads, columns] or null
    int64_t columns;      // the first and the last count for whatever lies beyond
    int64_t origin;       // column of the query's own position
};

static const int64_t SPAN = 128;  // keys between two updates of the softmax

// Where feature d of the key at `at`, and of the value at `at`, lie within their block.
template <class T> static inline int64_t key_index(int64_t d, int64_t at, int64_t block_size) {
    const int holds = Word<T>::holds;
    return (d / holds * block_size + at) * holds + d % holds;
}
template <class T> static inline int64_t value_index(int64_t d, int64_t at, int64_t size) {
    const int holds = Word<T>::holds;
    return (at / holds * size + d) * holds + at % holds;
}

// Blocks lie anywhere, so the processor cannot guess the next one.
template <class T> static inline void prefetch(const T *block, int64_t elements) {
    for (int64_t i = 0; i < elements; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(block + i, 0, 2);
}

template <class T> struct Scratch {
    std::vector<T> query, weights, last_values;
    std::vector<float> scores, out, most, total;
};

// What a row of scores needs besides the product.
struct Mask {
    float scale, soft_cap, slope;
    Bias bias;            // its values are those of the query's head
    int64_t from, to;     // keys of the span that the query sees
    int64_t distance;     // position of the span's first key less the query's
};

// The bias of 16 keys, the first of which is at `column`.
static inline v16 bias_of(const Bias &bias, int64_t column) {
    if (column >= 0 && column + 16 <= bias.columns) return load(bias.values + column);
    if (column + 16 <= 0) return splat(bias.values[0]);
    if (column >= bias.columns) return splat(bias.values[bias.columns - 1]);
    v16 found;
    for (int64_t i = 0; i < 16; i++)
        found[i] = bias.values[std::clamp<int64_t>(column + i, 0, bias.columns - 1)];
    return found;
}

// Scores of one query over `span` keys -> unnormalised weights; returns the new maximum, adds to `total`.
template <bool PLAIN, class T>
static float soften(float *scores, int64_t span, const Mask &mask, float most, float &total, T *weights) {
    i16x lane;
    for (int i = 0; i < 16; i++) lane[i] = i;
    v16 best = splat(most);
    for (int64_t j = 0; j < span; j += 16) {
        v16 s = load(scores + j) * mask.scale;
        if (!PLAIN) {
            if (mask.soft_cap > 0) s = tanh(s / mask.soft_cap) * mask.soft_cap;
            const i16x key = lane + int32_t(j);
            s += mask.slope * __builtin_convertvector(key + int32_t(mask.distance), v16);
            if (mask.bias.values) s += bias_of(mask.bias, mask.distance + j + mask.bias.origin);
            s = select((key >= int32_t(mask.from)) & (key < int32_t(mask.to)), s, splat(-INFINITY));
        }
        store(scores + j, s);
        best = max(s, best);
    }
    const float now = max_of(best);
    v16 sums = v16{};
    for (int64_t j = 0; j < span; j += 16) {
        v16 p = now == -INFINITY ? v16{} : exp_for(T{}, load(scores + j) - now);  // -INFINITY: no key seen yet
        sums += p;
        store(weights + j, p);
    }
    total = total * (most == now ? 1.0f : expf(most - now)) + sum(sums);
    return now;
}

template <class T>
static void attend_tile(const Layer &layer, const Step &step, const Bias &bias, const T *q, int64_t q_stride, T *out,
                        int64_t tile, int64_t kv_head) {
    typedef typename Word<T>::type W;
    const int holds = Word<T>::holds;
    static thread_local Scratch<T> scratch;
    const int64_t group = layer.heads / layer.kv_heads, size = layer.padded_size, block_size = layer.block_size;
    const int64_t sequence = step.tile_sequence[tile], first = step.tile_start[tile];
    const int64_t begin = step.query_starts[sequence], length = step.query_starts[sequence + 1] - begin;
    const int64_t tokens = std::min(length - first, step.tile_tokens), rows = tokens * group;
    const int64_t context = step.context_lens[sequence];
    const int64_t position = context - length + first;  // of the tile's first token, where it is one of the context
    const int32_t *table = step.tables + sequence * step.table_width;
    const int64_t block_elements = size * block_size, span_blocks = std::max<int64_t>(SPAN / block_size, 1);
    const int64_t span_keys = span_blocks * block_size;
    Tiles tiles;

    scratch.query.assign(rows * size, T{});
    scratch.scores.resize(rows * span_keys);
    scratch.weights.resize(rows * span_keys);
    scratch.out.assign(rows * size, 0.0f);
    scratch.most.assign(rows, -INFINITY);
    scratch.total.assign(rows, 0.0f);
    for (int64_t r = 0; r < rows; r++)
        memcpy(&scratch.query[r * size],
               q + (begin + first + r / group) * q_stride + (kv_head * group + r % group) * layer.head_size,
               layer.head_size * sizeof(T));

    const int64_t end_key = layer.causal ? position + tokens : context;  // first key that nobody here sees
    const int64_t first_key = layer.window && position >= layer.window ? position - layer.window + 1 : 0;
    const int64_t end_block = (end_key + block_size - 1) / block_size;
    for (int64_t block = first_key / block_size; block < end_block; block += span_blocks) {
        const int64_t blocks = std::min(span_blocks, end_block - block), keys = blocks * block_size;
        const int64_t base = block * block_size;
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t place = table[block + b] * layer.block_stride + kv_head * block_elements;
            const T *from = (const T *)layer.keys + place;
            prefetch((const T *)layer.values + place, block_elements);
            product(tiles, rows, (const W *)scratch.query.data(), size / holds, (const W *)from, block_size, 16,
                    size / holds, scratch.scores.data() + b * block_size, span_keys, block_size, false);
        }
        for (int64_t r = 0; r < rows; r++) {
            const int64_t own = position + r / group;  // the query's position
            const int64_t head = kv_head * group + r % group;
            Mask mask{layer.scale, layer.soft_cap, layer.alibi ? layer.alibi[head] : 0.0f, bias, 0,
                      std::min((layer.causal ? own + 1 : context) - base, keys), base - own};
            if (bias.values) mask.bias.values += head * bias.columns;
            if (layer.window) mask.from = std::max<int64_t>(own + 1 - layer.window - base, 0);
            const bool plain = !layer.alibi && !bias.values && !(layer.soft_cap > 0) && mask.from <= 0 && mask.to == keys;
            float *scores = &scratch.scores[r * span_keys], most = scratch.most[r];
            T *weights = &scratch.weights[r * span_keys];
            scratch.most[r] = plain ? soften<true>(scores, keys, mask, most, scratch.total[r], weights)
                                    : soften<false>(scores, keys, mask, most, scratch.total[r], weights);
            if (most != -INFINITY && most != scratch.most[r]) {
                const float fade = expf(most - scratch.most[r]);
                for (int64_t d = 0; d < size; d += 16) store(&scratch.out[r * size + d], load(&scratch.out[r * size + d]) * fade);
            }
        }
        for (int64_t b = 0; b < blocks; b++) {
            const T *from = (const T *)layer.values + table[block + b] * layer.block_stride + kv_head * block_elements;
            const int64_t later = block + span_blocks + b;
            if (later < end_block)
                prefetch((const T *)layer.keys + table[later] * layer.block_stride + kv_head * block_elements, block_elements);
            const int64_t valid = end_key - base - b * block_size;
            if (valid < block_size) {  // what lies behind the last key may be anything, NaN too
                scratch.last_values.assign(from, from + block_elements);
                for (int64_t at = valid; at < block_size; at++)
                    for (int64_t d = 0; d < size; d++) scratch.last_values[value_index<T>(d, at, size)] = T{};
                from = scratch.last_values.data();
            }
            product(tiles, rows, (const W *)scratch.weights.data() + b * block_size / holds, span_keys / holds,
                    (const W *)from, size, 16, block_size / holds, scratch.out.data(), size, size, true);
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        T *to = out + ((begin + first + r / group) * layer.heads + kv_head * group + r % group) * layer.head_size;
        const float inverse = 1.0f / scratch.total[r];
        for (int64_t d = 0; d < layer.head_size; d++) to[d] = from_float<T>(scratch.out[r * size + d] * inverse);
    }
}

template <class T>
static void store_token(const Layer &layer, const Step &step, const T *k, const T *v, int64_t token) {
    const int64_t size = layer.padded_size, block_size = layer.block_size;
    const int64_t sequence = step.token_sequence[token];
    const int64_t position = step.context_lens[sequence] - step.key_starts[sequence + 1] + token;
    const int64_t block = step.tables[sequence * step.table_width + position / block_size], at = position % block_size;
    for (int64_t h = 0; h < layer.kv_heads; h++) {
        T *keys = (T *)layer.keys + block * layer.block_stride + h * size * block_size;
        T *values = (T *)layer.values + block * layer.block_stride + h * size * block_size;
        for (int64_t d = 0; d < layer.head_size; d++) {
            keys[key_index<T>(d, at, block_size)] = k[h * layer.head_size + d];
            values[value_index<T>(d, at, size)] = v[h * layer.head_size + d];
        }
    }
}

template <class T>
static void attend(const Layer &layer, const Step &step, const Bias &bias, const T *q, int64_t q_stride, const T *k,
                   int64_t k_stride, const T *v, int64_t v_stride, T *out) {
    in_pieces(step.tokens, layer.kv_heads * layer.padded_size * 2,
              [&](int64_t t) { store_token(layer, step, k + t * k_stride, v + t * v_stride, t); });
    parallel_for(step.tiles * layer.kv_heads, [&](int64_t item) {
        attend_tile(layer, step, bias, q, q_stride, out, item / layer.kv_heads, item % layer.kv_heads);
    });
}

extern "C" void tgi_paged_attention(const Layer *layer, const Step *step, const float *bias, int64_t bias_columns,
                                    int64_t bias_origin, const void *q, int64_t q_stride, const void *k,
                                    int64_t k_stride, const void *v, int64_t v_stride, void *out) {
    const Bias by_distance{bias, bias_columns, bias_origin};
    if (layer->is_bf16)
        attend(*layer, *step, by_distance, (const bf16 *)q, q_stride, (const bf16 *)k, k_stride, (const bf16 *)v, v_stride,
               (bf16 *)out);
    else
        attend(*layer, *step, by_distance, (const float *)q, q_stride, (const float *)k, k_stride, (const float *)v,
               v_stride, (float *)out);
}
