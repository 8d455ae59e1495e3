// The one thread pool of the library: the calling thread and size - 1 workers run a body together.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace penstock {

// One thread's view of a step that several threads run together. Items are handed out in chunks, so that a thread that
// the system takes away for a while is not waited for. Which thread computes an item must never change its result.
struct Share {
    int index;  // of this thread, 0 <= index < count
    int count;
    std::atomic<int64_t>* queue;  // shared by the threads, 0 when the step begins

    // Takes the next chunk [begin, end) of items 0 to total; false when none is left.
    bool take(int64_t chunk, int64_t total, int64_t& begin, int64_t& end) const {
        begin = queue->fetch_add(chunk, std::memory_order_relaxed);
        end = begin + chunk < total ? begin + chunk : total;
        return begin < total;
    }
};

// All threads of a run meet here between steps. The last to arrive resets the queue before it lets the others go.
class StepBarrier {
  public:
    explicit StepBarrier(int count) : count_(count) {}

    std::atomic<int64_t> queue{0};

    void arrive_and_wait();

  private:
    const int count_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

class ThreadPool {
  public:
    using Body = void (*)(void* context, int index, int count);

    static ThreadPool& instance();

    // Takes effect at once; at least 1. Not while a body runs.
    void resize(int num_threads);
    int size() const { return size_; }

    // Runs body(context, i, size()) on every thread and returns when all have returned. One caller at a time.
    void run(Body body, void* context);

    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

  private:
    ThreadPool() = default;
    ~ThreadPool();

    void work(int index, uint32_t seen);
    void stop_workers();

    int size_ = 1;
    std::vector<std::thread> workers_;
    Body body_ = nullptr;
    void* context_ = nullptr;
    bool stopping_ = false;
    alignas(64) std::atomic<uint32_t> epoch_{0};  // changes when there is a body to run, or the workers shall stop
    alignas(64) std::atomic<int> running_{0};     // workers that have not returned from the body
};

}  // namespace penstock
