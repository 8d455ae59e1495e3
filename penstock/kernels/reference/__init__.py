"""Plain float32 truth of every op, written to be read. Nothing here is fast."""

from penstock.kernels.reference.activation import (
    gelu_and_mul,
    gelu_and_mul_quantized,
    silu_and_mul,
    silu_and_mul_quantized,
)
from penstock.kernels.reference.attention import paged_attention, rotate_and_write
from penstock.kernels.reference.edits import count_tokens, edit_logits, mask_logits
from penstock.kernels.reference.linear import (
    argmax,
    embedding,
    embedding_quantized,
    linear,
    linear_bf16,
    linear_quantized,
    linear_quantized_argmax,
)
from penstock.kernels.reference.linear_fp8 import dequantize_fp8, linear_fp8, linear_fp8_dynamic, quantize_fp8
from penstock.kernels.reference.norm import add_rms_norm, add_rms_norm_quantized, rms_norm, rms_norm_quantized
from penstock.kernels.reference.quantize import quantize_rows
from penstock.kernels.reference.rotary import rotary, rotary_tables
from penstock.kernels.reference.rows import add, gather_rows, scale
from penstock.kernels.reference.sampling import sample
from penstock.kernels.reference.step import keep_tokens, resolve_tokens

__all__ = [
    "add",
    "add_rms_norm",
    "add_rms_norm_quantized",
    "argmax",
    "count_tokens",
    "edit_logits",
    "dequantize_fp8",
    "embedding",
    "embedding_quantized",
    "gather_rows",
    "gelu_and_mul",
    "gelu_and_mul_quantized",
    "keep_tokens",
    "linear",
    "linear_bf16",
    "linear_fp8",
    "linear_fp8_dynamic",
    "linear_quantized",
    "linear_quantized_argmax",
    "mask_logits",
    "paged_attention",
    "quantize_fp8",
    "quantize_rows",
    "resolve_tokens",
    "rms_norm",
    "rms_norm_quantized",
    "rotate_and_write",
    "rotary",
    "rotary_tables",
    "sample",
    "scale",
    "silu_and_mul",
    "silu_and_mul_quantized",
]
