#define PENSTOCK_ISA avx512
#define PENSTOCK_LANES 16
#define PENSTOCK_VECTORS 2
#define PENSTOCK_ROWS 12
#include "linear_dense/widened.inl"
