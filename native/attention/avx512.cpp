#define PENSTOCK_ISA avx512
#include "attention/write.inl"

#include "attention/attend.inl"
