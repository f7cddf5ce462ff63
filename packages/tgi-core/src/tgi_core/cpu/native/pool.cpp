#include "pool.h"
#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
static inline void relax() { _mm_pause(); }
#else
static inline void relax() { std::this_thread::yield(); }
#endif

namespace {

const int SPINS = 2000;   // about 30 microseconds: the time between two kernels of a step
const int YIELDS = 200;   // then others may have the core, but the worker comes back at once

// The items of one thread, which others help with when theirs are done.
struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
};

struct Pool {
    std::atomic<uint32_t> generation{0};  // of jobs; workers sleep on it
    std::atomic<bool> open{false};        // the current job still takes workers
    std::atomic<int> active{0};           // workers that looked at `open` and have not left
    std::unique_ptr<Share[]> shares{new Share[1]};  // one for each thread; while a job is open
    void (*body)(void *, int64_t) = nullptr;
    void *context = nullptr;
    std::mutex one_job;
    int workers = 0;

    void work(int thread) {
        const int threads = workers + 1;
        for (int i = 0; i < threads; i++) {
            Share &share = shares[(thread + i) % threads];
            while (share.next.load(std::memory_order_relaxed) < share.end) {
                const int64_t item = share.next.fetch_add(1, std::memory_order_relaxed);
                if (item < share.end) body(context, item);
            }
        }
    }

    uint32_t wait_for_job(uint32_t seen) {
        for (int i = 0; i < SPINS + YIELDS; i++) {
            uint32_t now = generation.load(std::memory_order_acquire);
            if (now != seen) return now;
            if (i < SPINS) relax(); else std::this_thread::yield();
        }
        generation.wait(seen, std::memory_order_acquire);
        return generation.load(std::memory_order_acquire);
    }

    void worker(int thread) {
        for (uint32_t seen = 0;;) {
            seen = wait_for_job(seen);
            active.fetch_add(1);
            if (open.load()) work(thread);
            active.fetch_sub(1);
        }
    }

    void run(int64_t count, void (*function)(void *, int64_t), void *argument) {
        body = function, context = argument;
        const int64_t threads = workers + 1;
        for (int64_t i = 0; i < threads; i++) {
            shares[i].next.store(count * i / threads, std::memory_order_relaxed);
            shares[i].end = count * (i + 1) / threads;
        }
        open.store(true);
        generation.fetch_add(1, std::memory_order_release);
        generation.notify_all();
        work(0);
        open.store(false);
        while (active.load() != 0) relax();
    }
};

Pool *const pool = new Pool;  // never destroyed: its threads outlive main

}  // namespace

extern "C" void tgi_start_threads(int threads) {
    std::lock_guard<std::mutex> lock(pool->one_job);
    if (threads - 1 <= pool->workers) return;
    pool->shares.reset(new Share[threads]);
    while (pool->workers < threads - 1)
        std::thread([thread = ++pool->workers] { pool->worker(thread); }).detach();
}

int threads() { return pool->workers + 1; }

void parallel_for(int64_t items, void (*body)(void *, int64_t), void *context) {
    std::unique_lock<std::mutex> lock(pool->one_job, std::try_to_lock);
    if (items > 1 && pool->workers > 0 && lock.owns_lock()) {
        pool->run(items, body, context);
        return;
    }
    for (int64_t item = 0; item < items; item++) body(context, item);
}
