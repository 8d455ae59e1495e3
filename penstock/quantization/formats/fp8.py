"""Weights in float8 e4m3 on the hub: from a stored matrix and its scales to canonical parts.

Two tools write such checkpoints. quant_method "fp8" stores a scale per matrix, or one per block of 128 x 128 values
(``weight_scale_inv``, which is multiplied with in spite of its name: DeepSeek-V3, Liu et al. 2024). quant_method
"compressed-tensors" stores ``weight_scale`` per matrix, per row or per such a block. What a stored scale covers is told
by its shape.

Scales become float32 entries of every row, which is exact. Scales that were measured for activations (``input_scale``)
are not used: each row gets its own as it comes, which fits it at least as well. Those of a float8 KV cache belong
to the attention; tools do not agree on their names.

It does not know files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from penstock.quantization.schemes import SCHEMES, WeightRecord, WeightScheme

BLOCK = 128
SCALE_SUFFIXES = ("_scale_inv", "_scale")  # behind the name of the weight that they belong to
# Scales of activations, and those of a KV cache that are not there for both keys and values, by the end of their name.
UNUSED_SCALES = ("input_scale", "output_scale", "k_scale", "v_scale", "kv_scale", "q_scale", "prob_scale")
# llm-compressor writes self_attn.k_scale, ModelOpt k_proj.k_scale, AutoFP8 and older compressed-tensors
# k_proj.output_scale.
_CACHE_SCALES = (
    re.compile(r"(?P<attention>.*\bself_attn\.)(?P<which>[kv])_scale"),
    re.compile(r"(?P<attention>.*\bself_attn\.)(?P<which>[kv])_proj\.(?P=which)_scale"),
    re.compile(r"(?P<attention>.*\bself_attn\.)(?P<which>[kv])_proj\.output_scale"),
)


@dataclass(frozen=True, slots=True)
class Fp8Layout:
    """How a checkpoint's matrices are quantized. ``blocks``: scales cover blocks; ``weights_only``: activations are to
    stay as they are."""

    blocks: bool
    weights_only: bool

    @property
    def scheme(self) -> WeightScheme:
        if self.blocks:
            return SCHEMES["fp8_block"]
        return SCHEMES["fp8_row_only" if self.weights_only else "fp8_row"]


def read_layout(config: dict[str, Any]) -> Fp8Layout:
    """From a quantization_config. Raises ValueError with what cannot be read: the rest of a sentence that begins with
    "the weights are quantized with"."""
    method = config.get("quant_method")
    if method == "fp8":
        return _fp8(config)
    if method == "compressed-tensors":
        return _compressed_tensors(config)
    raise ValueError(str(method or "an unknown method"))


def cache_scales(names: Iterable[str]) -> dict[str, str]:
    """Of the tensors that are scales of a float8 KV cache: "....self_attn.k_scale", "....v_scale" -> the stored name,
    for every layer that has both."""
    found: dict[str, str] = {}
    names = list(names)
    for pattern in _CACHE_SCALES:
        for name in names:
            if (match := pattern.fullmatch(name)) is not None:
                found.setdefault(f"{match['attention']}{match['which']}_scale", name)
    pairs = {one.replace("k_scale", "v_scale"): one for one in found if one.endswith("k_scale")}
    return {one: found[one] for values, keys in pairs.items() if values in found for one in (keys, values)}


def convert_fp8(layout: Fp8Layout, codes: torch.Tensor, scales: torch.Tensor) -> WeightRecord:
    """codes uint8 [rows, columns] and the scales as stored -> the record. Raises ValueError when they do not fit."""
    rows, columns = codes.shape
    stored = tuple(scales.shape)
    blocks = (-(-rows // BLOCK), -(-columns // BLOCK))
    scales = scales.to(torch.float32)
    if layout.blocks and columns % BLOCK:
        raise ValueError(f"{columns} columns are no whole number of blocks of {BLOCK}")
    if layout.blocks and stored == blocks:
        parts = scales.repeat_interleave(BLOCK, 0)[:rows]
    elif not layout.blocks and scales.numel() == 1:
        parts = scales.reshape(1, 1).repeat(rows, 1)
    elif not layout.blocks and stored in ((rows,), (rows, 1)):
        parts = scales.reshape(rows, 1).clone()
    else:
        wanted = f"{list(blocks)}" if layout.blocks else f"one value or [{rows}, 1]"
        raise ValueError(f"the scales of [{rows}, {columns}] values have the shape {list(stored)}, not {wanted}")
    return WeightRecord(layout.scheme, (rows, columns), {"codes": codes, "scales": parts})


def _fp8(config: dict[str, Any]) -> Fp8Layout:
    if config.get("fmt", "e4m3") != "e4m3":
        raise ValueError(f"fp8 in the format {config['fmt']}")
    block = config.get("weight_block_size")
    if block is not None and list(block) != [BLOCK, BLOCK]:
        raise ValueError(f"fp8 in blocks of {block}")
    return Fp8Layout(blocks=block is not None, weights_only=False)


def _compressed_tensors(config: dict[str, Any]) -> Fp8Layout:
    """All groups must be quantized alike: which layer is in which group is not looked at."""
    groups = [group for group in (config.get("config_groups") or {}).values() if group]
    sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise ValueError(f"compressed-tensors in the sparse format {sparsity}")
    layouts = {_group_layout(group) for group in groups}
    if len(layouts) != 1:
        raise ValueError(f"compressed-tensors in {len(layouts)} different ways")
    return layouts.pop()


def _group_layout(group: dict[str, Any]) -> Fp8Layout:
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    what = f"{weights.get('num_bits')}-bit {weights.get('type')} values"
    strategy, block = weights.get("strategy"), weights.get("block_structure")
    if what != "8-bit float values" or not weights.get("symmetric", True):
        raise ValueError(f"compressed-tensors ({what})")
    if strategy not in ("tensor", "channel", "block") or (strategy == "block" and list(block or ()) != [BLOCK, BLOCK]):
        raise ValueError(f"compressed-tensors ({what}, scales per {strategy}{f' {block}' if block else ''})")
    if inputs is not None and (inputs.get("num_bits"), inputs.get("type")) != (8, "float"):
        raise ValueError(
            f"compressed-tensors (activations in {inputs.get('num_bits')}-bit {inputs.get('type')} values)"
        )
    if strategy == "block" and inputs is None:
        raise ValueError(f"compressed-tensors ({what}, blocks, activations as they are)")
    return Fp8Layout(blocks=strategy == "block", weights_only=inputs is None)
