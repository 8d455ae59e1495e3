#include "runtime/thread_pool.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace penstock {
namespace {

// A worker that finds nothing to do spins about 50 us before it sleeps: longer than the gap between two ops, shorter
// than what another process would miss.
constexpr int kIdleSpins = 2000;
// A thread at a barrier spins this long before it offers its processor to whoever keeps the others from arriving.
constexpr int kBarrierSpins = 4000;

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
}

}  // namespace

void StepBarrier::arrive_and_wait() {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        queue.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
        if (spins < kBarrierSpins)
            pause();
        else
            std::this_thread::yield();
    }
}

ThreadPool& ThreadPool::instance() {
    // Never destroyed: at exit the system ends the workers, and a destructor would have to wait for them.
    static ThreadPool* pool = new ThreadPool;
    return *pool;
}

ThreadPool::~ThreadPool() { stop_workers(); }

void ThreadPool::resize(int num_threads) {
    if (num_threads < 1) num_threads = 1;
    if (num_threads == size_) return;
    stop_workers();
    size_ = num_threads;
    const uint32_t seen = epoch_.load(std::memory_order_relaxed);
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i, seen] { work(i, seen); });
}

void ThreadPool::stop_workers() {
    stopping_ = true;
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stopping_ = false;
}

void ThreadPool::work(int index, uint32_t seen) {
    for (;;) {
        for (int spins = 0; spins < kIdleSpins && epoch_.load(std::memory_order_acquire) == seen; ++spins) pause();
        epoch_.wait(seen, std::memory_order_acquire);
        seen = epoch_.load(std::memory_order_acquire);
        if (stopping_) return;
        body_(context_, index, size_);
        running_.fetch_sub(1, std::memory_order_release);
    }
}

void ThreadPool::run(Body body, void* context) {
    if (size_ > 1) {
        body_ = body;
        context_ = context;
        running_.store(size_ - 1, std::memory_order_relaxed);
        epoch_.fetch_add(1, std::memory_order_release);
        epoch_.notify_all();
    }
    body(context, 0, size_);
    for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
        if (spins < kBarrierSpins)
            pause();
        else
            std::this_thread::yield();
    }
}

}  // namespace penstock
