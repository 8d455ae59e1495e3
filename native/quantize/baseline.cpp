#define PENSTOCK_ISA baseline
#include "quantize/kernels.inl"
