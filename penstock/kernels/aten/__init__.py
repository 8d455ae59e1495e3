"""Ops as a few torch calls each: they run on every device that torch runs on, with the fewest dispatches."""

from penstock.kernels.aten.activation import gelu_and_mul, silu_and_mul
from penstock.kernels.aten.norm import rms_norm
from penstock.kernels.aten.rotary import rotary

__all__ = ["gelu_and_mul", "rms_norm", "rotary", "silu_and_mul"]
