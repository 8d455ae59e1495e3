#define PENSTOCK_ISA avx2
#include "activation/kernels.inl"
