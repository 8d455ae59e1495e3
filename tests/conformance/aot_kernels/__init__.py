"""Kernels that only tests of the ahead-of-time compiler know."""
