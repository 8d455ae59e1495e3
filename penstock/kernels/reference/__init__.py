"""Plain float32 truth of every op, written to be read. Nothing here is fast."""

from penstock.kernels.reference.activation import gelu_and_mul, silu_and_mul
from penstock.kernels.reference.attention import paged_attention
from penstock.kernels.reference.linear import (
    argmax,
    embedding,
    embedding_quantized,
    linear,
    linear_bf16,
    linear_quantized,
    linear_quantized_argmax,
)
from penstock.kernels.reference.norm import rms_norm
from penstock.kernels.reference.quantize import quantize_rows
from penstock.kernels.reference.rotary import rotary

__all__ = [
    "argmax",
    "embedding",
    "embedding_quantized",
    "gelu_and_mul",
    "linear",
    "linear_bf16",
    "linear_quantized",
    "linear_quantized_argmax",
    "paged_attention",
    "quantize_rows",
    "rms_norm",
    "rotary",
    "silu_and_mul",
]
