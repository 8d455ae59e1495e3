#include "attention/attention.hpp"
#include "binding/binding.hpp"
#include "runtime/program.hpp"

namespace penstock {

void bind_attention(nb::module_& module) {
    using namespace attention;
    module.attr("ATTENTION_CHUNK") = kChunk;
    module.def("kv_tile_bytes", [](int type, int64_t head_dim) {
        return tile_bytes(static_cast<KvType>(type), head_dim);
    });
    module.def("rotate_and_write", [](int isa, int type, Address qk, int64_t qk_token_stride, int64_t qk_head_stride,
                                      Address v, int64_t v_token_stride, int64_t v_head_stride, Address cosines,
                                      Address sines, int64_t tokens, int64_t heads, float scale, Address slots,
                                      Address kv, int64_t block_stride, int64_t block_tokens, int64_t kv_heads,
                                      int64_t head_dim, Address q, Address arrived) {
        const KvPool pool{as<char>(kv), block_stride, block_tokens, kv_heads, head_dim};
        const WriteArgs args{as<const float>(qk), qk_token_stride, qk_head_stride, as<const float>(v), v_token_stride,
                             v_head_stride, as<const float>(cosines), as<const float>(sines), tokens, heads, scale,
                             as<const int64_t>(slots), pool, as<float>(q), as<int32_t>(arrived)};
        submit("rotate_and_write", kWrite[type][isa], args, tokens * (heads + 2 * kv_heads) * head_dim * 4);
    });
    module.def("paged_attention", [](int isa, int type, Address q, Address kv, int64_t block_stride,
                                     int64_t block_tokens, int64_t kv_heads, int64_t head_dim, Address query_start,
                                     Address kv_lens, Address block_table, int64_t table_stride, int64_t table_width,
                                     int64_t rows, int64_t tokens, int64_t heads, int64_t window, float soft_cap,
                                     Address sinks, Address out, Address parts, Address arrived, int64_t max_chunks) {
        const KvPool pool{as<char>(kv), block_stride, block_tokens, kv_heads, head_dim};
        const AttendArgs args{as<const float>(q), pool, as<const int64_t>(query_start), as<const int64_t>(kv_lens),
                              as<const int64_t>(block_table), table_stride, rows, tokens, heads, window, soft_cap,
                              as<const float>(sinks), as<float>(out), as<float>(parts), as<int32_t>(arrived), max_chunks};
        submit("paged_attention", kAttend[type][isa], args, tokens * heads * head_dim * table_width * block_tokens);
    });
}

}  // namespace penstock
