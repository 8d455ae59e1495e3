#define PENSTOCK_ISA avx2
#include "quantize/kernels.inl"
