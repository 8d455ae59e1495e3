#define PENSTOCK_ISA neon
#include "quantize/kernels.inl"
