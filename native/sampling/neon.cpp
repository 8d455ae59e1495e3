#define PENSTOCK_ISA neon
#include "sampling/kernels.inl"
