#include "sampling/sampling.hpp"

#include "binding/binding.hpp"
#include "runtime/program.hpp"

namespace penstock {

void bind_sampling(nb::module_& module) {
    module.def("sample_workspace_bytes", [](int64_t vocab) { return sampling::workspace_bytes(vocab); },
               "Of each thread.");
    module.def("sample", [](int isa, Address logits, int64_t rows, int64_t vocab, int64_t stride, Address temperature,
                            Address min_p, Address top_k, Address top_p, Address uniform, Address tokens,
                            Address finite, Address workspace) {
        const sampling::SampleArgs args{as<const float>(logits),   rows, vocab, stride, as<const float>(temperature),
                                        as<const float>(min_p), as<const int64_t>(top_k), as<const double>(top_p),
                                        as<const double>(uniform),  as<int64_t>(tokens), as<uint8_t>(finite),
                                        as<char>(workspace)};
        submit("sample", sampling::kSample[isa], args, rows * vocab * 8);
    });
}

}  // namespace penstock
