#define PENSTOCK_ISA avx2
#include "sampling/kernels.inl"
