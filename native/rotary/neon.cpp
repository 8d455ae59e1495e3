#define PENSTOCK_ISA neon
#include "rotary/kernels.inl"
