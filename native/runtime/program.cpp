#include "runtime/program.hpp"

#include <chrono>

namespace penstock {
namespace {

using Clock = std::chrono::steady_clock;

struct Run {
    const Program::Step* steps;
    size_t num_steps;
    StepBarrier barrier;
    Clock::time_point* ends;  // null when nobody asks
};

void run_share(void* context, int index, int count) {
    Run& run = *static_cast<Run*>(context);
    for (size_t i = 0; i < run.num_steps; ++i) {
        run.steps[i].invoke(run.steps[i], Share{index, count, &run.barrier.queue});
        if (i + 1 < run.num_steps || run.ends != nullptr) run.barrier.arrive_and_wait();
        if (run.ends != nullptr && index == 0) run.ends[i] = Clock::now();
    }
}

}  // namespace

Program*& Program::recording() {
    thread_local Program* current = nullptr;
    return current;
}

void Program::run_now(const Step& step, bool alone) {
    if (alone) {
        std::atomic<int64_t> queue{0};
        step.invoke(step, Share{0, 1, &queue});
        return;
    }
    Run run{&step, 1, StepBarrier(ThreadPool::instance().size()), nullptr};
    ThreadPool::instance().run(run_share, &run);
}

void Program::run() const {
    Run run{steps_.data(), steps_.size(), StepBarrier(ThreadPool::instance().size()), nullptr};
    ThreadPool::instance().run(run_share, &run);
}

std::vector<std::pair<std::string, int64_t>> Program::run_timed() const {
    std::vector<Clock::time_point> ends(steps_.size());
    Run run{steps_.data(), steps_.size(), StepBarrier(ThreadPool::instance().size()), ends.data()};
    Clock::time_point before = Clock::now();
    ThreadPool::instance().run(run_share, &run);
    std::vector<std::pair<std::string, int64_t>> times;
    for (size_t i = 0; i < steps_.size(); ++i) {
        times.emplace_back(steps_[i].name, std::chrono::nanoseconds(ends[i] - before).count());
        before = ends[i];
    }
    return times;
}

}  // namespace penstock
