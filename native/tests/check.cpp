#include "tests/check.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace penstock::test {
namespace {

struct Case {
    const char* name;
    Body body;
};

// In functions, so that they are there before the first registration.
std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

std::vector<std::string>& context() {
    static std::vector<std::string> words;
    return words;
}

int failures_of_this_test = 0;
constexpr int kShown = 10;

}  // namespace

Registration::Registration(const char* name, Body body) { cases().push_back({name, body}); }

void fail(const char* file, int line, const std::string& message) {
    if (++failures_of_this_test > kShown) return;
    std::string where;
    for (const std::string& words : context()) where += " [" + words + "]";
    std::printf("  %s:%d:%s %s\n", file, line, where.c_str(), message.c_str());
}

Context::Context(const std::string& words) { context().push_back(words); }
Context::~Context() { context().pop_back(); }

void check_close(const char* file, int line, const float* found, const float* wanted, int64_t count, float relative,
                 float absolute) {
    for (int64_t i = 0; i < count; ++i) {
        const bool close = std::isnan(wanted[i])   ? std::isnan(found[i])
                           : std::isinf(wanted[i]) ? found[i] == wanted[i]
                                                   : std::fabs(found[i] - wanted[i]) <=
                                                         relative * std::fabs(wanted[i]) + absolute;
        if (close) continue;
        char message[128];
        std::snprintf(message, sizeof message, "at %lld: found %.9g, wanted %.9g", static_cast<long long>(i),
                      static_cast<double>(found[i]), static_cast<double>(wanted[i]));
        fail(file, line, message);
        return;
    }
}

bool can_run(Isa isa) {
    switch (isa) {
        case Isa::baseline:
            return true;
#if defined(__x86_64__)
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        case Isa::avx512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512vnni");
        case Isa::avx512_bf16:
            return can_run(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
#elif defined(__aarch64__) && defined(__linux__)  // bits of asm/hwcap.h: ASIMDDP; I8MM, BF16
        case Isa::neon:
            return (getauxval(AT_HWCAP) >> 20 & 1) != 0 && (getauxval(AT_HWCAP2) >> 13 & 1) != 0;
        case Isa::neon_bf16:
            return can_run(Isa::neon) && (getauxval(AT_HWCAP2) >> 14 & 1) != 0;
#elif defined(__aarch64__)  // every Apple processor since the M2
        case Isa::neon:
        case Isa::neon_bf16:
            return true;
#endif
        default:
            return false;
    }
}

GuardedBytes::GuardedBytes(size_t size) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t used = (size + page - 1) / page * page;
    mapped_ = used + page;
    void* pages = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    pages_ = static_cast<unsigned char*>(pages);
    if (mprotect(pages_ + used, page, PROT_NONE) != 0) throw std::bad_alloc();
    data_ = pages_ + used - size;
    std::memset(pages_, 0xa5, used);
}

GuardedBytes::~GuardedBytes() { munmap(pages_, mapped_); }

// Written out, because the standard library's distributions differ between implementations.
std::vector<float> normal_values(int64_t count, uint32_t seed, float scale) {
    std::mt19937 bits(seed);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) {
        double sum = -6.0;
        for (int i = 0; i < 12; ++i) sum += static_cast<double>(bits()) / 4294967296.0;
        value = static_cast<float>(sum) * scale;
    }
    return values;
}

std::vector<int> uniform_integers(int64_t count, int low, int high, uint32_t seed) {
    std::mt19937 bits(seed);
    std::vector<int> values(static_cast<size_t>(count));
    for (int& value : values) value = low + static_cast<int>(bits() % static_cast<uint32_t>(high - low + 1));
    return values;
}

}  // namespace penstock::test

// Without arguments all tests run, else those whose names begin with one of the arguments.
int main(int argc, char** argv) {
    using namespace penstock::test;
    std::string sets;
    for (int isa = 0; isa < penstock::kNumIsas; ++isa)
        if (can_run(static_cast<penstock::Isa>(isa))) sets += std::string(" ") + penstock::kIsaNames[isa];
    std::printf("this processor runs:%s\n", sets.c_str());
    penstock::ThreadPool::instance().resize(3);
    int run = 0, broken = 0;
    for (const Case& each : cases()) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; ++i) wanted = wanted || std::strncmp(each.name, argv[i], std::strlen(argv[i])) == 0;
        if (!wanted) continue;
        failures_of_this_test = 0;
        std::printf("%s\n", each.name);
        std::fflush(stdout);
        try {
            each.body();
        } catch (const std::exception& error) {
            fail(each.name, 0, std::string("threw: ") + error.what());
        }
        if (failures_of_this_test > kShown) std::printf("  and %d more\n", failures_of_this_test - kShown);
        run += 1;
        broken += failures_of_this_test > 0;
    }
    if (broken > 0)
        std::printf("%d of %d tests FAILED\n", broken, run);
    else
        std::printf("%d tests passed\n", run);
    return broken > 0 || run == 0;
}
