"""Loops that only read or only multiply and add, on the extension: what kernels are compared with. Knows no clock."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from penstock.kernels.native.extension import extension

# The numbers of native/ceilings/ceilings.hpp.
KINDS: Mapping[str, int] = {"float32": 0, "int8": 1, "bfloat16": 2}

_ROUND_BYTES = 512  # read between two looks at the end of a chunk


def read_bytes(isa: int, data: torch.Tensor, chunk_bytes: int, repeats: int, *, own: bool = False) -> int:
    """Read ``data`` uint8 ``repeats`` times with all threads, in chunks; answers the bytes read.

    With ``own`` every thread reads one chunk alone, again and again: chunks that fit its cache stay there. Raises
    ValueError when there are fewer chunks than threads then, or a chunk is not a multiple of 512 bytes.
    """
    chunks, threads = data.numel() // chunk_bytes, extension().num_threads()
    if chunk_bytes % _ROUND_BYTES or (own and chunks < threads):
        raise ValueError(f"{chunks} chunks of {chunk_bytes} bytes are no work for {threads} threads")
    sink = _sink(threads)
    extension().read_bytes(isa, data.data_ptr(), chunk_bytes, chunks, repeats, own, sink.data_ptr())
    return chunks * chunk_bytes * repeats


def multiply_add(isa: int, kind: str, items: int) -> int:
    """Do ``items`` portions of products of ``kind``, a key of KINDS, with all threads. Answers the operations done, a
    product and a sum being two; 0 when the instruction set has no instruction of the kind."""
    operands, sink = torch.zeros(128, dtype=torch.uint8), _sink(extension().num_threads())
    operations: int = extension().multiply_add(isa, KINDS[kind], operands.data_ptr(), items, sink.data_ptr())
    return operations


def _sink(threads: int) -> torch.Tensor:
    return torch.empty(threads * extension().SINK_BYTES, dtype=torch.uint8)
