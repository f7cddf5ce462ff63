// Linear layers with int4 weights, which are unpacked to the bytes that digits.h takes on their way to the product.
//
// A weight + 128 is level * step + offset: four bits each, and two bytes for each output's group of 32 inputs.  Neither
// step nor offset needs arithmetic wider than a byte, as level * step <= 255, and groups need no scales of their own.
//
// It is stored in blocks of 32 outputs by a group, [M/32, N/32] of them: step and offset of output n and of output n + 16
// for n = 0 to 15, then the levels of the first 16 outputs and those of the others.  The levels of 16 outputs are 4 rows of
// 64 bytes: the low halves are words 0 to 3 of the group as in digits.h, the high halves words 4 to 7.
#include "digits.h"
#include "kernels.h"

static const int64_t GROUP = 32, GROUP_WORDS = GROUP / HOLDS;
static const int64_t HALF = GROUP_WORDS / 2 * OUT * HOLDS;  // bytes of 16 outputs' levels
static const int64_t HEAD = 4 * OUT, BYTES = HEAD + 2 * HALF;
static const int64_t FEW = 128;  // words that are unpacked at a time for few rows: they stay in the first-level cache
static const int64_t AHEAD = 2048;  // bytes that are fetched before they are needed
static const int64_t LONG = 48;     // groups of a row that is read in two runs at once: memory answers both sooner
static const int STEPS = 5, ROUNDS = 2;  // of the search, see reference/linear.py
static const float LARGEST = 15;         // level

static inline int64_t groups_of(int64_t inputs) { return round_up(inputs, IN) / GROUP; }

extern "C" int64_t tgi_packed_size_int4(int64_t outputs, int64_t inputs) {
    return round_up(outputs, 2 * OUT) / (2 * OUT) * groups_of(inputs) * BYTES;
}

namespace {

typedef uint16_t h32 __attribute__((vector_size(64)));
typedef uint8_t b64 __attribute__((vector_size(64)));

// Call use(word, bytes) for the words of a group of 16 outputs, which are those of the low halves of `head`.
template <class F> inline void unpack(u16x head, const uint8_t *levels, F &&use) {
    u16x step = head & 0xff, offset = head >> 8 & 0xff;
    step |= step << 16, offset |= offset << 8, offset |= offset << 16;
    const auto weight = [&](u16x level) {  // two bytes at once: no product exceeds one
        return (u16x)((b64)((h32)level * (h32)step) + (b64)offset);
    };
    for (int row = 0; row < 4; row++) {
        u16x both; memcpy(&both, levels + row * 64, 64);
        use(row, weight(both & 0x0f0f0f0fu));
        use(row + 4, weight(both >> 4 & 0x0f0f0f0fu));
    }
}

struct Nibbles {
    const uint8_t *packed;
    int64_t groups;

    // Call use(word, half, bytes) for the words of 16 outputs, group by group in runs that take turns.
    template <int RUNS, class F> void each(int64_t pair, int64_t first, int64_t count, F &&use) const {
        const uint8_t *blocks = packed + (pair * groups + first / GROUP_WORDS) * BYTES;
        const int64_t length = count / GROUP_WORDS / RUNS;
        for (int64_t i = 0; i < RUNS * length; i++) {
            const int64_t group = i % RUNS * length + i / RUNS, at = group * GROUP_WORDS;
            const uint8_t *block = blocks + group * BYTES;
            for (int64_t line = 0; line < BYTES; line += 64) __builtin_prefetch(block + AHEAD + line);
            u16x head; memcpy(&head, block, HEAD);
            unpack(head, block + HEAD, [&](int word, u16x bytes) { use(at + word, 0, bytes); });
            unpack(head >> 16, block + HEAD + HALF, [&](int word, u16x bytes) { use(at + word, 1, bytes); });
        }
    }

    Words words(int64_t first, int64_t last, int64_t word, int64_t count) const {
        static thread_local std::vector<u16x> buffer;
        if (int64_t(buffer.size()) < 2 * count * (last - first)) buffer.resize(2 * count * (last - first));
        for (int64_t pair = first; pair < last; pair++) {
            u16x *to = buffer.data() + 2 * count * (pair - first);
            each<1>(pair, word, count, [=](int64_t at, int half, u16x bytes) { to[half * count + at] = bytes; });
        }
        return {(const int8s *)buffer.data(), count * OUT, 2 * count * OUT};
    }

    void row(Tiles &, int64_t pair, const int8s *digits, int64_t count, int32_t *sums) const {
        groups < LONG ? row<1>(pair, digits, count, sums) : row<2>(pair, digits, count, sums);
    }

    template <int RUNS> void row(int64_t pair, const int8s *digits, int64_t count, int32_t *sums) const {
        i16x high{}, low{}, other_high{}, other_low{};  // of the first and of the other 16 outputs
        each<RUNS>(pair, 0, count, [&](int64_t word, int half, u16x bytes) {
            const int8s *to_high = digits + word, *to_low = to_high + count;
            if (half) other_high = multiply_add(other_high, bytes, to_high), other_low = multiply_add(other_low, bytes, to_low);
            else high = multiply_add(high, bytes, to_high), low = multiply_add(low, bytes, to_low);
        });
        store(sums, high), store(sums + OUT, other_high), store(sums + 2 * OUT, low), store(sums + 3 * OUT, other_low);
    }
};

v16 clamp(v16 v, v16 low, v16 high) { return min(max(v, low), high); }
v16 nearest_of(v16 v) { return to_float(__builtin_convertvector(v + 0.5f, i16x)); }  // for v >= 0

// A group of 16 outputs: x = weight / scale + 128, and how its levels are found for one step.
struct Group {
    v16 x[GROUP], levels[GROUP];
    float importance[GROUP], total;
    v16 low, high;

    v16 error_of(v16 step, v16 &offset) {
        const v16 inverse = 1.0f / step, top = 255.0f - step * LARGEST;
        const auto round = [&] {
            for (int k = 0; k < GROUP; k++)
                levels[k] = nearest_of(clamp((x[k] - offset) * inverse, v16{}, splat(LARGEST)));
        };
        offset = nearest_of(clamp((low + high) * 0.5f - step * (LARGEST / 2), v16{}, top));
        for (int i = 0; i < ROUNDS; i++) {
            round();
            v16 sum{};
            for (int k = 0; k < GROUP; k++) sum += (x[k] - step * levels[k]) * importance[k];
            offset = nearest_of(clamp(sum / total, v16{}, top));
        }
        round();
        v16 error{};
        for (int k = 0; k < GROUP; k++) {
            const v16 miss = x[k] - step * levels[k] - offset;
            error += miss * miss * importance[k];
        }
        return error;
    }

    void write(uint8_t *head, uint8_t *to) {
        low = high = x[0];
        for (int k = 1; k < GROUP; k++) low = min(low, x[k]), high = max(high, x[k]);
        const v16 widest = (high - low) / LARGEST, whole = nearest_of(widest);
        const v16 first = max(splat(1), select(whole < widest, whole + 1.0f, whole));
        v16 least = splat(INFINITY), best_step = first, best_offset{};
        for (int i = 0; i < STEPS; i++) {
            const v16 step = max(splat(1), first - float(i));
            v16 offset;
            const v16 error = error_of(step, offset);
            const i16x better = error < least;
            least = select(better, error, least);
            best_step = select(better, step, best_step), best_offset = select(better, offset, best_offset);
        }
        const v16 inverse = 1.0f / best_step;
        memset(to, 0, HALF);
        for (int k = 0; k < GROUP; k++) {
            const v16 level = nearest_of(clamp((x[k] - best_offset) * inverse, v16{}, splat(LARGEST)));
            const int word = k / HOLDS, shift = word / 4 * 4;
            for (int n = 0; n < OUT; n++) to[(word % 4 * OUT + n) * HOLDS + k % HOLDS] |= uint8_t(int(level[n]) << shift);
        }
        for (int n = 0; n < OUT; n++) head[4 * n] = uint8_t(best_step[n]), head[4 * n + 1] = uint8_t(best_offset[n]);
    }
};

}  // namespace

// Round a weight [outputs, inputs] to groups and a scale for each output; `importance` [inputs] of errors, or null.
template <class T>
static void pack(const T *weight, const float *importance, uint8_t *packed, float *scales, int64_t outputs,
                 int64_t inputs) {
    const int64_t groups = groups_of(inputs);
    parallel_for(round_up(outputs, 2 * OUT) / OUT, [=](int64_t column) {
        v16 per_scale{};
        for (int64_t n = 0; n < OUT && column * OUT + n < outputs; n++) {
            const T *row = weight + (column * OUT + n) * inputs;
            float largest = 0, nan = 0;
            for (int64_t k = 0; k < inputs; k++) {
                const float value = to_float(row[k]);
                largest = std::max(largest, std::fabs(value)), nan += value * 0;
            }
            scales[column * OUT + n] = largest / 127 + nan;
            per_scale[n] = largest > 0 ? 127 / largest : 0;
        }
        Group group;
        for (int64_t g = 0; g < groups; g++) {
            group.total = 0;
            for (int64_t i = 0; i < GROUP; i++) {
                const int64_t k = g * GROUP + i, row = column * OUT;
                for (int64_t n = 0; n < OUT; n++)
                    group.x[i][n] = row + n < outputs && k < inputs ? to_float(weight[(row + n) * inputs + k]) : 0;
                group.x[i] = group.x[i] * per_scale + 128.0f;
                group.importance[i] = k >= inputs ? 0 : importance ? importance[k] : 1;
                group.total += group.importance[i];
            }
            if (group.total == 0) group.total = 1;
            uint8_t *block = packed + (column / 2 * groups + g) * BYTES;
            group.write(block + column % 2 * 2, block + HEAD + column % 2 * HALF);
        }
    });
}

extern "C" void tgi_pack_int4(int is_bf16, const void *weight, const float *importance, uint8_t *packed, float *scales,
                              int64_t outputs, int64_t inputs) {
    if (is_bf16) pack((const bf16 *)weight, importance, packed, scales, outputs, inputs);
    else pack((const float *)weight, importance, packed, scales, outputs, inputs);
}

template <class T>
static void linear(const T *x, int64_t stride, const uint8_t *packed, const float *scales, const T *bias, T *out,
                   int64_t rows, int64_t outputs, int64_t inputs) {
    multiply(x, stride, Nibbles{packed, groups_of(inputs)}, FEW, scales, bias, out, rows, outputs, inputs);
}

extern "C" void tgi_linear_int4(int is_bf16, const void *x, int64_t stride, const uint8_t *packed, const float *scales,
                                const void *bias, void *out, int64_t rows, int64_t outputs, int64_t inputs) {
    if (is_bf16)
        linear((const bf16 *)x, stride, packed, scales, (const bf16 *)bias, (bf16 *)out, rows, outputs, inputs);
    else
        linear((const float *)x, stride, packed, scales, (const float *)bias, (float *)out, rows, outputs, inputs);
}
