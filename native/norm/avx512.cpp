#define PENSTOCK_ISA avx512
#include "norm/kernels.inl"
