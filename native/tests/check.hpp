// What the unit tests are written with: TEST, the CHECK macros, test data, and a loop over the instruction sets that
// this build has and this processor can run. Expected values come from plain scalar code in the test itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "runtime/isa.hpp"
#include "runtime/program.hpp"

namespace penstock::test {

using Body = void (*)();

struct Registration {
    Registration(const char* name, Body body);
};

// Records a failure of the running test, which goes on.
void fail(const char* file, int line, const std::string& message);

// What failures that follow are about, e.g. "avx2, 3 rows of 65". Ends with the scope.
class Context {
  public:
    explicit Context(const std::string& words);
    ~Context();
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;
};

// |found - wanted| <= relative * |wanted| + absolute, and both are NaN or both are not. One failure for the first place
// that differs.
void check_close(const char* file, int line, const float* found, const float* wanted, int64_t count, float relative,
                 float absolute);

template <class T>
void check_same(const char* file, int line, const T* found, const T* wanted, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        if (found[i] == wanted[i]) continue;
        fail(file, line, "at " + std::to_string(i) + ": found " + std::to_string(found[i]) + ", wanted " +
                             std::to_string(wanted[i]));
        return;
    }
}

// Whether this processor runs the instruction set, as native/CMakeLists.txt compiles it.
bool can_run(Isa isa);

// Calls use(kernel) for every instruction set that has a kernel in the table and runs here, with its name as context.
template <class Function, class Use>
void for_each_isa(const PerIsa<Function>& table, Use use) {
    for (int isa = 0; isa < kNumIsas; ++isa) {
        const Function kernel = table.find(isa);
        if (kernel == nullptr || !can_run(static_cast<Isa>(isa))) continue;
        const Context context(kIsaNames[isa]);
        use(kernel);
    }
}

// Runs one call of a kernel on the thread pool, as the bindings do.
template <class Args>
void run_kernel(Kernel<Args> kernel, const Args& args) {
    Program::run_now(Program::make_step("test", kernel, args), false);
}

// Memory that ends where a page without access begins, so that a kernel that reads or writes behind it is killed. All
// bytes are 0xa5 at first: results that a kernel forgot to write are seen.
class GuardedBytes {
  public:
    explicit GuardedBytes(size_t size);
    ~GuardedBytes();
    GuardedBytes(const GuardedBytes&) = delete;
    GuardedBytes& operator=(const GuardedBytes&) = delete;
    unsigned char* data() const { return data_; }

  private:
    unsigned char* pages_;
    size_t mapped_;
    unsigned char* data_;
};

template <class T>
class Guarded {
  public:
    explicit Guarded(int64_t count) : bytes_(static_cast<size_t>(count) * sizeof(T)), count_(count) {}
    Guarded(const std::vector<T>& values) : Guarded(static_cast<int64_t>(values.size())) {
        for (int64_t i = 0; i < count_; ++i) data()[i] = values[static_cast<size_t>(i)];
    }
    T* data() const { return reinterpret_cast<T*>(bytes_.data()); }
    T& operator[](int64_t i) const { return data()[i]; }
    int64_t size() const { return count_; }

  private:
    GuardedBytes bytes_;
    int64_t count_;
};

// The same values in every run and on every machine.
std::vector<float> normal_values(int64_t count, uint32_t seed, float scale = 1.0f);
std::vector<int> uniform_integers(int64_t count, int low, int high, uint32_t seed);

}  // namespace penstock::test

#define TEST(name)                                                            \
    static void test_##name();                                                \
    static const penstock::test::Registration registration_##name(#name, test_##name); \
    static void test_##name()

#define CHECK(condition) \
    do { \
        if (!(condition)) penstock::test::fail(__FILE__, __LINE__, "not true: " #condition); \
    } while (false)

#define CHECK_CLOSE(found, wanted, count, relative, absolute) \
    penstock::test::check_close(__FILE__, __LINE__, found, wanted, count, relative, absolute)

#define CHECK_SAME(found, wanted, count) penstock::test::check_same(__FILE__, __LINE__, found, wanted, count)
