#define PENSTOCK_ISA avx2
#include "rows/kernels.inl"
