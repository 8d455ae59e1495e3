#define PENSTOCK_ISA neon
#define PENSTOCK_LANES 4
#define PENSTOCK_VECTORS 4
#define PENSTOCK_ROWS 5
#include "linear_dense/widened.inl"
