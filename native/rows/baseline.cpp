#define PENSTOCK_ISA baseline
#include "rows/kernels.inl"
