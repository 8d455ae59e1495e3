#define PENSTOCK_ISA neon
#include "attention/write.inl"

#include "attention/attend.inl"
