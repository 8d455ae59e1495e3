#define PENSTOCK_ISA avx512
#include "sampling/kernels.inl"
