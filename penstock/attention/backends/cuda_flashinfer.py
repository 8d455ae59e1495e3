"""Paged attention by FlashInfer (Ye et al. 2025) on NVIDIA GPUs, where it is installed.

Knows no request. Rotation and the write to the pool are Triton's kernel; FlashInfer's kernel for prompts attends for
rows of all lengths, in one launch and, where it has divided long rows, a second one that merges their parts. How it
divides them is planned on the host, from lengths that the host knows: it does not wait for the device, but a recorded
step would keep the plan of its recording, so steps are not recorded.

A block of the pool is that of cuda_triton. Behind a window only those blocks are named that a query of the row sees:
FlashInfer multiplies the values just outside it by zero, which is no cure for a NaN in a block that is another row's
by now. FlashInfer compiles its kernels when they are first used, unless flashinfer-jit-cache brings them.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from penstock.attention import needs
from penstock.attention.contract import UNSCALED, AttentionSpec, GroupStep, HostLengths, KvLayout, check_layer
from penstock.kernels.triton import lazy
from penstock.types.decision import Verdict

DTYPES = ("bfloat16", "float16")
HEAD_DIMS = (64, 128, 256)
LEAST_VERSION, BELOW_VERSION = (0, 6, 13), (0, 8)  # between them the calls are as they are made here
KERNELS = "fa2"  # for every capability from 8.0 on
LARGEST_TILE = 128  # queries, of all heads that share a KV head, of one program
PROGRAMS_OF_PROCESSOR = 2  # at most, of a step whose rows are divided
SPARE_BYTES = 16 << 20  # of the workspace: roundings, and the sums of exponentials beside the partial results

_rotate_and_write: Callable[..., torch.Tensor] = lazy("attention", "rotate_and_write")


@dataclass(frozen=True, slots=True)
class _Pages:
    """What a step's rows see, as FlashInfer wants it: int32, and on the host but for ``blocks``."""

    query_start: torch.Tensor  # [rows + 1]
    start: torch.Tensor  # [rows + 1] of the blocks of each row in ``blocks``
    blocks: torch.Tensor  # block ids of all rows, one row behind the other
    lens: torch.Tensor  # [rows] entries from the beginning of the row's first block
    last: torch.Tensor  # [rows] entries of the row's last block


@dataclass(slots=True)
class _Wrapper:
    """FlashInfer's object, which remembers one plan, and when the plan has been copied to the device."""

    flashinfer: Any
    workspace: torch.Tensor
    copied: torch.cuda.Event | None = None


@dataclass(frozen=True, slots=True, weakref_slot=True)
class _Metadata:
    spec: AttentionSpec
    slots: torch.Tensor
    flashinfer: Any


class _Wrappers:
    """Wrappers that no step in Python's hands plans with. A plan lies in pinned memory of the host until it has been
    copied, behind all that was launched before; a wrapper is given again when that is done, and there is always
    another, so that nobody waits. What they have on the device may be written over: all runs on one stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: deque[_Wrapper] = deque()
        self._workspace: torch.Tensor | None = None

    def take(self, nbytes: int) -> _Wrapper:
        """``nbytes``: of the workspace for partial results, which all share."""
        if self._workspace is None or self._workspace.numel() < nbytes:
            self._workspace = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        for wrapper in tuple(self._free):
            if wrapper.workspace is not self._workspace:
                self._free.remove(wrapper)
            elif wrapper.copied is None or wrapper.copied.query():  # type: ignore[no-untyped-call]
                self._free.remove(wrapper)
                return wrapper
        from flashinfer import BatchPrefillWithPagedKVCacheWrapper

        with torch.inference_mode(False):  # it changes tensors of its own, in whatever mode steps are planned
            made = BatchPrefillWithPagedKVCacheWrapper(self._workspace, "HND", backend=KERNELS)
        return _Wrapper(made, self._workspace)

    def lend(self, wrapper: _Wrapper, metadata: _Metadata) -> None:
        """The wrapper comes back when nobody has the metadata any more."""
        weakref.finalize(metadata, self._free.append, wrapper).atexit = False


class CudaFlashinfer:
    """FlashInfer's kernels. See the module's docstring."""

    name = "cuda_flashinfer"
    block_tokens = (16, 32, 64, 128)
    eager_because = "cuda_flashinfer plans every step on the host"
    normalizes = False

    def __init__(self) -> None:
        self._wrappers: dict[torch.device, _Wrappers] = {}
        self._lock = threading.Lock()  # steps that warm up are planned in threads

    def can_run(self, spec: AttentionSpec, /) -> Verdict:
        return needs.verdict(
            needs.card(spec),
            needs.library(spec, "flashinfer-python", LEAST_VERSION, BELOW_VERSION),
            _compiler(spec),
            needs.library(spec, "triton"),
            needs.dtype(spec, DTYPES),
            needs.kv_dtype_of_activations(spec),
            needs.equal_groups(spec),
            _head_dim(spec),
            needs.no_sinks(spec, "the call that is made here has no sinks"),
            needs.no_batch_invariance(spec, "divides long rows by what else is in the step"),
        )

    def kv_layout(self, spec: AttentionSpec, block_tokens: int, /) -> KvLayout:
        return KvLayout(getattr(torch, spec.dtype), (2, spec.num_kv_heads, block_tokens, spec.head_dim))

    def plan(self, spec: AttentionSpec, step: GroupStep) -> _Metadata:
        device, dtype = step.kv_lens.device, getattr(torch, spec.dtype)
        pages = _find_pages(spec, step)
        with self._lock:
            wrappers = self._wrappers.setdefault(device, _Wrappers(device))
            wrapper = wrappers.take(_workspace_bytes(spec, device))
            wrapper.flashinfer.plan(
                pages.query_start,
                pages.start,
                pages.blocks,
                pages.last,
                spec.num_heads,
                spec.num_kv_heads,
                spec.head_dim,
                step.block_tokens,
                causal=True,
                sm_scale=1.0,
                window_left=-1 if spec.window is None else spec.window - 1,
                logits_soft_cap=spec.soft_cap,
                q_data_type=dtype,
                kv_data_type=dtype,
                seq_lens=pages.lens,
                max_token_per_sequence=step.max_query_len,
            )
            if device.type == "cuda":
                wrapper.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                wrapper.copied.record()
            metadata = _Metadata(spec, step.slots, wrapper.flashinfer)
            wrappers.lend(wrapper, metadata)
        return metadata

    def run(
        self,
        qk: torch.Tensor,
        v: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor] | None,
        kv: torch.Tensor,
        scale: float,
        metadata: _Metadata,
        *,
        sinks: torch.Tensor | None = None,
        norms: tuple[torch.Tensor, float] | None = None,
        kv_scales: tuple[float, float] = UNSCALED,
    ) -> torch.Tensor:
        check_layer(metadata.spec, kv, sinks, kv_scales, norms)
        queries = _rotate_and_write(qk, v, tables, kv, metadata.slots)
        out = torch.empty_like(queries)
        # Scores are multiplied by the plan's scale and by that of the keys: what a layer wants, the plan did not know.
        metadata.flashinfer.run(queries, kv, k_scale=scale, out=out)
        return out


def _find_pages(spec: AttentionSpec, step: GroupStep) -> _Pages:
    """Nothing is read from the device, unless nobody has told what the host knows."""
    device, size = step.kv_lens.device, step.block_tokens
    host = step.host or HostLengths(step.query_start.cpu(), step.kv_lens.cpu())
    query_start, lens = host.query_start.numpy(), host.kv_lens.numpy()
    first = np.zeros_like(lens)  # block that the row's first query sees
    if spec.window is not None:
        first = np.maximum(lens - np.diff(query_start) + 1 - spec.window, 0) // size
    lens = lens - first * size
    counts = -(-lens // size)
    start = np.concatenate(([0], counts.cumsum()))
    here = partial(_pinned, device=device)
    repeats, shift = here(np.stack((counts, first - start[:-1])), torch.int64).to(device, non_blocking=True)
    row = torch.repeat_interleave(repeats, output_size=int(start[-1]))  # of each block that is seen
    column = torch.arange(len(row), device=device) + shift[row]
    return _Pages(
        query_start=here(query_start),
        start=here(start),
        blocks=step.block_table[row, column].to(torch.int32),
        lens=here(lens),
        last=here(lens - np.maximum(counts - 1, 0) * size),
    )


def _pinned(
    values: np.ndarray[Any, np.dtype[np.int64]], dtype: torch.dtype = torch.int32, *, device: torch.device
) -> torch.Tensor:
    """In memory of the host from which it is copied to the device without waiting for it."""
    pinned = torch.empty(values.shape, dtype=dtype, pin_memory=device.type == "cuda")
    pinned.numpy()[:] = values
    return pinned


def _workspace_bytes(spec: AttentionSpec, device: torch.device) -> int:
    """Partial results in float32: of a step whose rows are divided, one tile for each program and query head."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    group = spec.num_heads // spec.num_kv_heads
    return PROGRAMS_OF_PROCESSOR * processors * group * LARGEST_TILE * spec.head_dim * 4 + SPARE_BYTES


def _compiler(spec: AttentionSpec) -> list[str]:
    if spec.platform.cuda_compiler or "flashinfer-jit-cache" in spec.platform.libraries:
        return []
    return ["needs flashinfer-jit-cache or the CUDA compiler, nvcc, of which neither is installed"]


def _head_dim(spec: AttentionSpec) -> list[str]:
    if spec.head_dim in HEAD_DIMS:
        return []
    return [f"needs a head_dim of {', '.join(map(str, HEAD_DIMS))}, found {spec.head_dim}"]
