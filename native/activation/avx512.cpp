#define PENSTOCK_ISA avx512
#include "activation/kernels.inl"
