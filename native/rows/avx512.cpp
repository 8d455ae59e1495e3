#define PENSTOCK_ISA avx512
#include "rows/kernels.inl"
