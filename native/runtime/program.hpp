// A program: a sequence of kernel calls with fixed arguments, recorded once and run many times without Python. What a
// CUDA graph is to a GPU. `submit` is how every binding calls a kernel: it runs the call, or records it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "runtime/thread_pool.hpp"

namespace penstock {

// A kernel computes one share of its work. Arguments are plain data: addresses, strides, sizes.
template <class Args>
using Kernel = void (*)(const Args&, Share);

class Program {
  public:
    static constexpr size_t kMaxArgs = 256;

    struct Step {
        const char* name;  // of static storage
        void (*invoke)(const Step&, Share);
        void (*kernel)();
        alignas(8) std::byte args[kMaxArgs];
    };

    template <class Args>
    static Step make_step(const char* name, Kernel<Args> kernel, const Args& args) {
        static_assert(std::is_trivially_copyable_v<Args> && sizeof(Args) <= kMaxArgs);
        Step step{name, nullptr, reinterpret_cast<void (*)()>(kernel), {}};
        step.invoke = [](const Step& self, Share share) {
            Args copy;
            std::memcpy(&copy, self.args, sizeof(Args));
            reinterpret_cast<Kernel<Args>>(self.kernel)(copy, share);
        };
        std::memcpy(step.args, &args, sizeof(Args));
        return step;
    }

    void add(const Step& step) { steps_.push_back(step); }
    size_t size() const { return steps_.size(); }

    // Runs all steps in order on the pool; every step sees what the ones before it wrote.
    void run() const;

    // The same, and answers the name and the nanoseconds of each step.
    std::vector<std::pair<std::string, int64_t>> run_timed() const;

    // What `submit` on this thread adds to; null: it runs calls at once.
    static Program*& recording();

    static void run_now(const Step& step, bool alone);

  private:
    std::vector<Step> steps_;
};

// `work` is a rough count of the bytes or operations of the call: little work is not worth waking other threads.
constexpr int64_t kAloneBelow = 1 << 14;

template <class Args>
void submit(const char* name, Kernel<Args> kernel, const Args& args, int64_t work) {
    const Program::Step step = Program::make_step(name, kernel, args);
    if (Program* program = Program::recording())
        program->add(step);
    else
        Program::run_now(step, work < kAloneBelow);
}

}  // namespace penstock
