#define PENSTOCK_ISA baseline
#include "norm/kernels.inl"
