#define PENSTOCK_ISA avx2
#include "attention/write.inl"

#include "attention/attend.inl"
