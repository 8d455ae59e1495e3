#define PENSTOCK_ISA baseline
#include "sampling/kernels.inl"
