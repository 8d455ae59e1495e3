#define PENSTOCK_ISA neon
#include "rows/kernels.inl"
