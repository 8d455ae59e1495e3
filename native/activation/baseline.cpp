#define PENSTOCK_ISA baseline
#include "activation/kernels.inl"
