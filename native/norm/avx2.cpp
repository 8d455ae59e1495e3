#define PENSTOCK_ISA avx2
#include "norm/kernels.inl"
