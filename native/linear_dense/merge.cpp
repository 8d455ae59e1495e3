// The last pass of an argmax: the best of the chunks' candidates. Little work, the same on every instruction set.
#include "linear_dense/linear_dense.hpp"

namespace penstock::linear_dense {

void merge(const MergeArgs& args, Share share) {
    int64_t row, next;
    while (share.take(1, args.rows, row, next)) {
        float best = args.values[row];
        int64_t best_id = args.ids[row];
        for (int64_t chunk = 1; chunk < args.chunks; ++chunk) {
            const float value = args.values[chunk * args.rows + row];
            if (best == best && !(value <= best)) {
                best = value;
                best_id = args.ids[chunk * args.rows + row];
            }
        }
        args.best_values[row] = best;
        args.best_ids[row] = best_id;
    }
}

}  // namespace penstock::linear_dense
