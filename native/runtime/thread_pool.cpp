#include "runtime/thread_pool.hpp"

#include <chrono>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

#include <pthread.h>
#include <signal.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace penstock {
namespace {

// The parts of the entrance: workers inside, one bit for "open", the number of the run. The number wraps around; a worker
// that sleeps through exactly all numbers misses a run, which it may at any time.
constexpr uint32_t kInside = 0xfff, kOpen = 0x1000, kRun = 0x2000;

constexpr uint32_t run_of(uint32_t entrance) { return entrance / kRun; }

// A worker without work stays awake this long: longer than the gap between two ops that Python calls one by one.
constexpr auto kIdle = std::chrono::microseconds(50);
// Pauses (20 to 40 ns each) before a waiting thread offers its processor to others: to torch's threads, to the frontend,
// or to the very thread that it waits for. An idle worker does so sooner, and looks at the clock then.
constexpr int kPausesOfIdle = 64, kPausesBeforeYield = 512;

thread_local bool inside_body = false;

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
}

template <class Done>
inline void wait_until(Done done) {
    for (int pauses = 0; !done();) {
        if (pauses < kPausesBeforeYield) {
            pause();
            ++pauses;
        } else {
            std::this_thread::yield();
        }
    }
}

}  // namespace

void StepGate::leave_and_wait() {
    uint32_t state = state_.load(std::memory_order_relaxed);
    for (;;) {
        // Releases what this thread wrote and, as the last one, acquires what the others did: all of them changed this
        // word, so each change continues the release sequence of those before it.
        const bool last = state == 1;
        if (state_.compare_exchange_weak(state, last ? kComplete : state - 1, std::memory_order_acq_rel,
                                         std::memory_order_relaxed)) {
            if (last) return;
            break;
        }
    }
    wait_until([this] { return (state_.load(std::memory_order_acquire) & kComplete) != 0; });
}

ThreadPool& ThreadPool::instance() {
    // Never destroyed: at exit the system ends the workers, and a destructor would have to wait for them.
    static ThreadPool* pool = [] {
        pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
        return new ThreadPool;
    }();
    return *pool;
}

void ThreadPool::resize(int num_threads) {
    if (inside_body) throw std::logic_error("the thread pool cannot change its size inside a body");
    if (num_threads < 1) num_threads = 1;
    if (num_threads > static_cast<int>(kInside)) num_threads = static_cast<int>(kInside);
    const std::lock_guard lock(turn_);
    if (num_threads == size()) return;
    stop_workers();
    start_workers(num_threads - 1);
    size_ = static_cast<int>(workers_.size()) + 1;
    if (size() < num_threads)
        throw std::runtime_error("the system gave " + std::to_string(size()) + " of " + std::to_string(num_threads) +
                                 " threads for kernels");
}

void ThreadPool::start_workers(int count) {
    // Signals are for the threads that know what to do with them.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const uint32_t seen = run_of(entrance_.load(std::memory_order_relaxed));
    workers_.reserve(static_cast<size_t>(count));
    try {
        for (int i = 1; i <= count; ++i) workers_.emplace_back([this, i, seen] { work(i, seen); });
    } catch (const std::system_error&) {
        // As many as there are.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void ThreadPool::stop_workers() {
    stopping_ = true;
    open_entrance();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    entrance_.fetch_and(~(kOpen | kInside), std::memory_order_relaxed);
    stopping_ = false;
}

void ThreadPool::open_entrance() {
    const uint32_t number = run_of(entrance_.load(std::memory_order_relaxed)) + 1;
    // Sequentially consistent, because notify_all looks whether anyone sleeps: that must not be read before a worker
    // that is about to sleep can see this value.
    entrance_.store(number * kRun | kOpen, std::memory_order_seq_cst);
    entrance_.notify_all();
}

// Waits for the next run that is open, and is inside it on return. False: the workers shall stop.
bool ThreadPool::join(uint32_t& seen) {
    auto idle_since = std::chrono::steady_clock::time_point::max();
    for (int pauses = 0;; ++pauses) {
        uint32_t entrance = entrance_.load(std::memory_order_relaxed);
        if ((entrance & kOpen) != 0 && run_of(entrance) != seen) {
            // Acquires body_ and context_, which stay as they are while a worker is inside.
            if (!entrance_.compare_exchange_weak(entrance, entrance + 1, std::memory_order_acquire,
                                                 std::memory_order_relaxed))
                continue;
            seen = run_of(entrance);
            return !stopping_;
        }
        pause();
        if (pauses % kPausesOfIdle != kPausesOfIdle - 1) continue;
        std::this_thread::yield();
        const auto now = std::chrono::steady_clock::now();
        if (idle_since > now) {
            idle_since = now;
        } else if (now - idle_since >= kIdle) {
            entrance_.wait(entrance, std::memory_order_relaxed);
            idle_since = std::chrono::steady_clock::time_point::max();
        }
    }
}

void ThreadPool::work(int index, uint32_t seen) {
    inside_body = true;
#if defined(__linux__)
    pthread_setname_np(pthread_self(), ("penstock-" + std::to_string(index)).c_str());
#endif
    while (join(seen)) {
        body_(context_, index, size());
        entrance_.fetch_sub(1, std::memory_order_release);
    }
}

void ThreadPool::run(Body body, void* context) {
    if (inside_body) {
        body(context, 0, 1);
        return;
    }
    const std::lock_guard lock(turn_);
    inside_body = true;
    const int count = size();
    if (count > 1) {
        if (workers_.empty()) start_workers(count - 1);  // this is the child of a fork
        body_ = body;
        context_ = context;
        open_entrance();
    }
    body(context, 0, count);
    if (count > 1) {
        entrance_.fetch_and(~kOpen, std::memory_order_relaxed);
        wait_until([this] { return (entrance_.load(std::memory_order_acquire) & kInside) == 0; });
    }
    inside_body = false;
}

void ThreadPool::before_fork() { instance().turn_.lock(); }

void ThreadPool::after_fork_in_parent() { instance().turn_.unlock(); }

void ThreadPool::after_fork_in_child() {
    ThreadPool& pool = instance();
    // The workers stayed in the parent. Their handles can be neither joined nor destroyed; the next run starts others.
    new (&pool.workers_) std::vector<std::thread>;
    pool.turn_.unlock();
}

}  // namespace penstock
