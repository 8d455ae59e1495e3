// Memory that a kernel uses within one call. A thread keeps what it once needed: the same lines, still in a near cache,
// serve the next call.
#pragma once

#include <cstddef>

namespace penstock {

// At least `size` bytes, aligned to 64, of undefined content. Valid until this thread asks again.
void* thread_scratch(size_t size);

}  // namespace penstock
