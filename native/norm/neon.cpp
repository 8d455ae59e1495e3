#define PENSTOCK_ISA neon
#include "norm/kernels.inl"
