// The one thread pool of the library: the calling thread and size - 1 workers run a body together.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace penstock {

// One thread's view of a step that several threads run together. All work of a step must come out of `take`: the other
// threads may come late or not at all, because the system runs something else in their place, and are not waited for.
// Which thread computes an item must never change its result. `index` only picks a thread's own scratch memory.
struct Share {
    int index;  // of this thread, 0 <= index < count
    int count;
    std::atomic<int64_t>* queue;  // shared by the threads, 0 when the step begins

    // Takes the next chunk [begin, end) of items 0 to total; false when none is left. A kernel asks until then.
    bool take(int64_t chunk, int64_t total, int64_t& begin, int64_t& end) const {
        begin = queue->fetch_add(chunk, std::memory_order_relaxed);
        end = begin + chunk < total ? begin + chunk : total;
        return begin < total;
    }

    // A chunk for items of equal work: few enough takes to cost nothing, enough of them to even out lost time.
    int64_t chunk_of(int64_t total) const { return total / (4 * count) > 0 ? total / (4 * count) : 1; }
};

// Where the threads of a run meet around one step. A step is complete when a thread has found its queue empty and no
// thread is inside; whoever comes later is turned away, and whoever was inside waits for that moment.
class StepGate {
  public:
    std::atomic<int64_t> queue{0};

    // False: the step is complete, and everything that it wrote is visible to this thread.
    bool enter() {
        if (state_.load(std::memory_order_acquire) & kComplete) return false;
        return !(state_.fetch_add(1, std::memory_order_acquire) & kComplete);
    }

    // After `enter` and the kernel, which found the queue empty. Returns when the step is complete.
    void leave_and_wait();

  private:
    static constexpr uint32_t kComplete = 1u << 31;

    // Threads inside, until the last of them to leave completes the step. It is 0 only before the first one enters.
    std::atomic<uint32_t> state_{0};
};

class ThreadPool {
  public:
    // Called once on the calling thread, as index 0, and at most once on each worker.
    using Body = void (*)(void* context, int index, int count) noexcept;

    static ThreadPool& instance();

    // Takes effect at once; at least 1. Raises std::runtime_error when the system gives fewer threads, and keeps those,
    // and std::logic_error inside a body.
    void resize(int num_threads);
    int size() const { return size_.load(std::memory_order_relaxed); }

    // Returns when this thread's call has returned and no other runs. Callers on several threads take turns. A call
    // inside a body runs on its thread alone.
    void run(Body body, void* context);

    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

  private:
    ThreadPool() = default;

    void work(int index, uint32_t seen);
    bool join(uint32_t& seen);
    void start_workers(int count);
    void stop_workers();
    void open_entrance();

    static void before_fork();
    static void after_fork_in_parent();
    static void after_fork_in_child();

    std::mutex turn_;  // held while a body runs, and while workers start and stop
    std::atomic<int> size_{1};
    std::vector<std::thread> workers_;
    Body body_ = nullptr;
    void* context_ = nullptr;
    bool stopping_ = false;

    // Number of the run, whether it is open to workers, and how many are in it: see thread_pool.cpp.
    alignas(64) std::atomic<uint32_t> entrance_{0};
};

}  // namespace penstock
