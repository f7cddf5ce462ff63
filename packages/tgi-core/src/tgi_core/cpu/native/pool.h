// A pool of threads that never waits for one that does not run.
//
// Each thread begins with neighbouring items of its own, so that it reads memory in order, then helps others with theirs:
// one that the system has put aside holds nobody up unless it has an item in hand.  OpenMP's barriers wait for every
// thread at every loop: with another process on the machine that costs a time slice per loop, hundreds of times per token.
#pragma once
#include <cstdint>

// Call body(context, item) for every item in [0, items), on all threads; returns when all are done.
void parallel_for(int64_t items, void (*body)(void *context, int64_t item), void *context);

template <class F> static inline void parallel_for(int64_t items, F &&body) {
    parallel_for(items, [](void *context, int64_t item) { (*(F *)context)(item); }, (void *)&body);
}

// Threads that work, the caller's included.
int threads();

// `work` cut into `parts`, at least one and at most `most` of it each.
static inline int64_t pieces(int64_t work, int64_t parts, int64_t most) {
    const int64_t each = work / parts;
    return each < 1 ? 1 : each > most ? most : each;
}

// Call body(row) for every row of `width` elements: in pieces worth a thread's while, or here if there is little to do.
template <class F> static inline void in_pieces(int64_t rows, int64_t width, F &&body) {
    const int64_t grain = 16384 / width + 1, items = (rows + grain - 1) / grain;
    parallel_for(items, [&](int64_t item) {
        const int64_t end = (item + 1) * grain < rows ? (item + 1) * grain : rows;
        for (int64_t row = item * grain; row < end; row++) body(row);
    });
}
