#define PENSTOCK_ISA baseline
#define PENSTOCK_LANES 4
#if defined(__aarch64__)
#define PENSTOCK_VECTORS 4
#define PENSTOCK_ROWS 5
#else
#define PENSTOCK_VECTORS 2
#define PENSTOCK_ROWS 4
#endif
#include "linear_dense/widened.inl"
