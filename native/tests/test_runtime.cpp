// The thread pool and recorded programs: every item exactly once and in order of the steps, whatever the threads do.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "tests/check.hpp"

using namespace penstock;
using namespace penstock::test;

namespace {

void set_num_threads(int n) { ThreadPool::instance().resize(n); }

// One step: out[i] = in[(i * 7 + 1) % n] + add, so that an item needs one that another thread may have computed.
struct MixArgs {
    const int64_t* in;
    int64_t* out;
    int64_t n, chunk, add;
};

void mix(const MixArgs& args, Share share) {
    int64_t begin, end;
    while (share.take(args.chunk, args.n, begin, end))
        for (int64_t i = begin; i < end; ++i) args.out[i] = args.in[(i * 7 + 1) % args.n] + args.add;
}

// Counts how often each item is taken.
struct CountArgs {
    std::atomic<int>* counts;
    int64_t n, chunk;
    int stall_every;  // a thread sleeps behind every so many items; 0: never
};

void count(const CountArgs& args, Share share) {
    int64_t begin, end;
    while (share.take(args.chunk, args.n, begin, end)) {
        for (int64_t i = begin; i < end; ++i) {
            args.counts[i].fetch_add(1);
            if (args.stall_every > 0 && i % args.stall_every == 0)
                std::this_thread::sleep_for(std::chrono::microseconds(200));
        }
    }
}

// A chain of steps over two buffers, and what it should leave in the last one written.
struct Chain {
    static constexpr int64_t kItems = 97;
    std::vector<int64_t> a = std::vector<int64_t>(kItems), b = std::vector<int64_t>(kItems);
    Program program;
    std::vector<int64_t> wanted = std::vector<int64_t>(kItems);

    explicit Chain(int num_steps) {
        for (int64_t i = 0; i < kItems; ++i) wanted[static_cast<size_t>(i)] = i;
        for (int step = 0; step < num_steps; ++step) {
            const MixArgs args{in(step).data(), in(step + 1).data(), kItems, 1 + step % 5, step};
            program.add(Program::make_step("mix", mix, args));
            std::vector<int64_t> next(kItems);
            for (int64_t i = 0; i < kItems; ++i) next[i] = wanted[(i * 7 + 1) % kItems] + step;
            wanted = next;
        }
    }

    std::vector<int64_t>& in(int step) { return step % 2 == 0 ? a : b; }

    bool run() {
        for (int64_t i = 0; i < kItems; ++i) a[static_cast<size_t>(i)] = i;
        program.run();
        return in(static_cast<int>(program.size())) == wanted;
    }
};

}  // namespace

TEST(runtime_every_item_is_taken_once) {
    for (const int threads : {1, 2, 3, 8}) {
        set_num_threads(threads);
        for (const int64_t items : {0, 1, 2, 63, 1000}) {
            for (const int64_t chunk : {1, 3, 64}) {
                std::vector<std::atomic<int>> counts(static_cast<size_t>(items) + 1);
                run_kernel(count, CountArgs{counts.data(), items, chunk, 0});
                for (int64_t i = 0; i < items; ++i) CHECK(counts[static_cast<size_t>(i)] == 1);
            }
        }
    }
}

TEST(runtime_steps_see_what_the_steps_before_them_wrote) {
    Chain chain(150);
    for (const int threads : {1, 2, 3, 8}) {
        const Context context(std::to_string(threads) + " threads");
        set_num_threads(threads);
        for (int repeat = 0; repeat < 40; ++repeat) CHECK(chain.run());
    }
}

TEST(runtime_threads_that_come_late_do_no_harm) {
    // Between runs the workers fall asleep, and within them some threads stall while the others go on.
    set_num_threads(4);
    Chain chain(20);
    for (int repeat = 0; repeat < 20; ++repeat) {
        std::this_thread::sleep_for(std::chrono::microseconds(repeat * 20));
        CHECK(chain.run());
        std::vector<std::atomic<int>> counts(50);
        Program program;
        for (int step = 0; step < 3; ++step)
            program.add(Program::make_step("count", count, CountArgs{counts.data(), 50, 1, 17}));
        program.run();
        CHECK(std::all_of(counts.begin(), counts.end(), [](const auto& each) { return each == 3; }));
    }
}

TEST(runtime_callers_on_several_threads_take_turns) {
    set_num_threads(3);
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller) {
        callers.emplace_back([&wrong, caller] {
            Chain chain(10 + caller);
            for (int repeat = 0; repeat < 100; ++repeat) wrong += !chain.run();
        });
    }
    for (int size : {1, 4, 2, 3}) set_num_threads(size);
    for (std::thread& caller : callers) caller.join();
    CHECK(wrong == 0);
}

TEST(runtime_a_run_inside_a_run_stays_on_its_thread) {
    set_num_threads(3);
    struct Nested {
        std::atomic<int> wrong{0};
        std::atomic<int> refused{0};
    } nested;
    ThreadPool::instance().run(
        [](void* context, int, int) noexcept {
            Nested& self = *static_cast<Nested*>(context);
            Chain chain(8);
            self.wrong += !chain.run();
            try {
                ThreadPool::instance().resize(2);
            } catch (const std::logic_error&) {
                self.refused += 1;
            }
        },
        &nested);
    CHECK(nested.wrong == 0);
    CHECK(nested.refused >= 1);
    CHECK(ThreadPool::instance().size() == 3);
}

TEST(runtime_the_size_is_at_least_one) {
    for (const int asked : {0, -3, 1, 5}) {
        set_num_threads(asked);
        CHECK(ThreadPool::instance().size() == std::max(asked, 1));
        CHECK(Chain(5).run());
    }
}

TEST(runtime_a_forked_child_has_workers_of_its_own) {
    set_num_threads(3);
    Chain chain(30);
    CHECK(chain.run());
    std::atomic<bool> ended{false};
    std::thread busy([&] {
        Chain other(30);
        while (!ended) other.run();
    });
    for (int repeat = 0; repeat < 5; ++repeat) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(60);
            Chain inner(30);
            bool right = inner.run() && chain.run();
            ThreadPool::instance().resize(2);
            _exit(right && inner.run() ? 0 : 1);
        }
        int status = -1;
        waitpid(child, &status, 0);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    ended = true;
    busy.join();
    CHECK(chain.run());
}

TEST(runtime_timed_runs_name_every_step) {
    set_num_threads(2);
    Chain chain(6);
    for (int64_t i = 0; i < Chain::kItems; ++i) chain.a[static_cast<size_t>(i)] = i;
    const auto times = chain.program.run_timed();
    CHECK(times.size() == 6);
    CHECK(chain.a == chain.wanted);
    for (const auto& [name, nanoseconds] : times) CHECK(name == "mix" && nanoseconds >= 0);
}

TEST(runtime_calls_are_recorded_on_the_thread_that_records) {
    Program program;
    std::vector<int64_t> in(64), out(64);
    const MixArgs args{in.data(), out.data(), 64, 8, 5};
    Program::recording() = &program;
    submit("mix", mix, args, 64);
    std::thread([&] { submit("mix", mix, args, 64); }).join();
    Program::recording() = nullptr;
    CHECK(program.size() == 1);
    CHECK(out[0] == 5);
    out[0] = 0;
    program.run();
    CHECK(out[0] == 5);
}

TEST(runtime_kernels_of_other_instruction_sets_are_refused) {
    const PerIsa<void (*)()> none{};
    for (const int isa : {-1, 0, 3, kNumIsas, 1000}) {
        bool refused = false;
        try {
            none[isa];
        } catch (const std::invalid_argument&) {
            refused = true;
        }
        CHECK(refused);
    }
}
