#define PENSTOCK_ISA avx2
#include "rotary/kernels.inl"
