#include "runtime/scratch.hpp"

#include <new>

namespace penstock {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Memory {
    void* data = nullptr;
    size_t size = 0;

    ~Memory() { operator delete(data, kAlignment); }
};

}  // namespace

void* thread_scratch(size_t size) {
    thread_local Memory memory;
    if (memory.size < size) {
        operator delete(memory.data, kAlignment);
        memory.data = nullptr;
        memory.size = 0;
        memory.data = operator new(size, kAlignment);
        memory.size = size;
    }
    return memory.data;
}

}  // namespace penstock
