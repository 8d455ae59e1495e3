#define PENSTOCK_ISA neon
#include "activation/kernels.inl"
