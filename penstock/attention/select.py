"""The attention candidates in order of preference, and the one call that selects.

One table for all platforms: a backend that cannot run on one refuses it by name, so that the reason is there to read.
"""

from __future__ import annotations

from collections.abc import Mapping

from penstock.attention.backends.cpu_native import CpuNative
from penstock.attention.backends.cpu_sdpa import CpuSdpa
from penstock.attention.backends.cuda_flash_attn import CudaFlashAttn
from penstock.attention.backends.cuda_flashinfer import CudaFlashinfer
from penstock.attention.backends.cuda_sdpa import CudaSdpa
from penstock.attention.backends.cuda_triton import CudaTriton
from penstock.attention.backends.reference_torch import ReferenceTorch
from penstock.attention.contract import AttentionBackend, AttentionSpec
from penstock.oracle.choose import choose
from penstock.types.decision import Decision

BACKENDS: Mapping[str, AttentionBackend] = {
    backend.name: backend
    for backend in (
        CudaTriton(),
        CudaFlashinfer(),
        CudaFlashAttn(),
        CudaSdpa(),
        CpuNative(),
        CpuSdpa(),
        ReferenceTorch(),
    )
}

# What the place of a backend rests on (docs/performance.md).
GROUNDS: Mapping[str, str] = {
    "cuda_triton": "256 rows of 576 tokens of an 8B model take 0.16 ms a layer, 3.8 TB/s; prefill 402 TFLOP/s (H200)",
    "cuda_flashinfer": "16 prompts of 3,500 tokens of an 8B model take 219 ms, with cuda_triton 165 ms (H200)",
    "cuda_flash_attn": "not timed here, behind what was; blocks of 256 tokens waste more of the last one of each row",
    "cuda_sdpa": "not timed; the plain rung: the reference synchronises with the device at every row",
    "cpu_native": "32 rows of 160 tokens take 0.12 ms per layer of SmolLM2-135M, with cpu_sdpa 0.78 ms (2 CPU cores)",
    "cpu_sdpa": "prefill of 16 x 256 tokens of SmolLM2-135M takes 4.5 s, with the reference 8.1 s (2 CPU cores)",
}


def choose_attention(
    spec: AttentionSpec, forced: str | None = None, forced_by: str = "--attention-backend"
) -> tuple[AttentionBackend, Decision]:
    """Select the backend of one KV group. Raises NoBackendError, which carries every refusal."""
    window = f", window {spec.window}" if spec.window is not None else ""
    subject = f"attention {spec.num_heads}/{spec.num_kv_heads} heads of {spec.head_dim}, {spec.dtype}{window}"
    subject += ", sinks" if spec.sinks else ""
    subject += ", batch-invariant" if spec.batch_invariant else ""
    candidates = tuple(BACKENDS.values())
    chosen, decision = choose(subject, spec, candidates, forced=forced, forced_by=forced_by, grounds=GROUNDS)
    return BACKENDS[chosen.name], decision
