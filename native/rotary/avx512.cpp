#define PENSTOCK_ISA avx512
#include "rotary/kernels.inl"
