#define PENSTOCK_ISA avx2
#define PENSTOCK_LANES 8
#define PENSTOCK_VECTORS 2
#define PENSTOCK_ROWS 5
#include "linear_dense/widened.inl"
