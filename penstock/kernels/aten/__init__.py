"""Ops as a few torch calls each: they run on every device that torch runs on, with the fewest dispatches."""

from penstock.kernels.aten.activation import (
    gelu_and_mul,
    gelu_and_mul_quantized,
    silu_and_mul,
    silu_and_mul_quantized,
)
from penstock.kernels.aten.argmax import argmax
from penstock.kernels.aten.edits import count_tokens, edit_logits, mask_logits
from penstock.kernels.aten.norm import add_rms_norm, add_rms_norm_quantized, rms_norm, rms_norm_quantized
from penstock.kernels.aten.quantize import quantize_rows
from penstock.kernels.aten.rotary import rotary, rotary_tables
from penstock.kernels.aten.rows import add, gather_rows, scale
from penstock.kernels.aten.step import keep_tokens, resolve_tokens

__all__ = [
    "add",
    "add_rms_norm",
    "add_rms_norm_quantized",
    "argmax",
    "count_tokens",
    "edit_logits",
    "gather_rows",
    "gelu_and_mul",
    "gelu_and_mul_quantized",
    "keep_tokens",
    "mask_logits",
    "quantize_rows",
    "resolve_tokens",
    "rms_norm",
    "rms_norm_quantized",
    "rotary",
    "rotary_tables",
    "scale",
    "silu_and_mul",
    "silu_and_mul_quantized",
]
