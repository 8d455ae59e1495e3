#define PENSTOCK_ISA baseline
#include "rotary/kernels.inl"
