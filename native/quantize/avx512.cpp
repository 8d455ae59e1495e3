#define PENSTOCK_ISA avx512
#include "quantize/kernels.inl"
