#include "runtime/program.hpp"

#include <chrono>

namespace penstock {
namespace {

using Clock = std::chrono::steady_clock;

struct Run {
    const Program::Step* steps;
    size_t num_steps;
    StepGate* gates;          // one for each step
    Clock::time_point* ends;  // null when nobody asks
};

void run_share(void* context, int index, int count) noexcept {
    const Run& run = *static_cast<const Run*>(context);
    for (size_t i = 0; i < run.num_steps; ++i) {
        StepGate& gate = run.gates[i];
        if (gate.enter()) {
            run.steps[i].invoke(run.steps[i], Share{index, count, &gate.queue});
            gate.leave_and_wait();
        }
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
    StepGate gate;
    Run run{&step, 1, &gate, nullptr};
    ThreadPool::instance().run(run_share, &run);
}

void Program::run() const {
    std::vector<StepGate> gates(steps_.size());
    Run run{steps_.data(), steps_.size(), gates.data(), nullptr};
    ThreadPool::instance().run(run_share, &run);
}

std::vector<std::pair<std::string, int64_t>> Program::run_timed() const {
    std::vector<StepGate> gates(steps_.size());
    std::vector<Clock::time_point> ends(steps_.size());
    Run run{steps_.data(), steps_.size(), gates.data(), ends.data()};
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
