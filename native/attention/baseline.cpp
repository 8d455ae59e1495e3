#define PENSTOCK_ISA baseline
#include "attention/write.inl"

#include "attention/attend.inl"
