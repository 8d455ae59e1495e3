"""What backends need of a spec, for those needs that several of them have: each gives the reasons against it.

``can_run`` of a backend is a list of such needs and of its own, in the order in which people should read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from penstock.attention.contract import AttentionSpec
from penstock.types.decision import YES, Verdict
from penstock.types.facts import LEAST_CAPABILITY

Version = tuple[int, ...]


def verdict(*needs: Iterable[str]) -> Verdict:
    """Yes, unless there are reasons."""
    reasons = tuple(reason for need in needs for reason in need)
    return Verdict(reasons) if reasons else YES


def card(spec: AttentionSpec, least: Version = LEAST_CAPABILITY) -> list[str]:
    """An NVIDIA GPU of compute capability ``least``."""
    platform = spec.platform
    if platform.name != "cuda":
        return [f"needs platform cuda, found {platform.name}"]
    if not platform.accelerators:
        return ["needs a GPU, found none"]
    found = platform.accelerators[0]
    if found.compute_capability >= least:
        return []
    return [f"needs compute capability {_dotted(least)}, found {found.capability}"]


def cpu(spec: AttentionSpec) -> list[str]:
    return [] if spec.platform.name == "cpu" else [f"needs platform cpu, found {spec.platform.name}"]


def library(spec: AttentionSpec, name: str, least: Version = (), below: Version = ()) -> list[str]:
    """An installed distribution, of a version from ``least`` on and before ``below``."""
    found = spec.platform.libraries.get(name)
    asked = [f"{name} {_dotted(least)} or newer" if least else name, f"before {_dotted(below)}" if below else ""]
    wanted = ", ".join(filter(None, asked))
    if found is None:
        return [f"needs {wanted}, which is not installed"]
    version = _version(found)
    return [] if version >= least and (not below or version < below) else [f"needs {wanted}, found {found}"]


def dtype(spec: AttentionSpec, known: Sequence[str]) -> list[str]:
    return [] if spec.dtype in known else [f"needs dtype {', '.join(known)}, asked for {spec.dtype}"]


def kv_dtype(spec: AttentionSpec, known: Sequence[str]) -> list[str]:
    """One of the types that the backend stores, or none in particular."""
    if spec.kv_dtype in ("auto", *known):
        return []
    return [f"keeps keys and values in {', '.join(known)}, asked for {spec.kv_dtype}"]


def kv_dtype_of_activations(spec: AttentionSpec) -> list[str]:
    if spec.kv_dtype in ("auto", spec.dtype):
        return []
    return [f"keeps keys and values in the type of activations, asked for {spec.kv_dtype}"]


def equal_groups(spec: AttentionSpec, most: int = 0) -> list[str]:
    """As many query heads for every KV head, at most ``most``, where that is not 0."""
    reasons = []
    if spec.num_heads % spec.num_kv_heads:
        reasons.append(f"needs heads in equal groups, found {spec.num_heads} over {spec.num_kv_heads} KV heads")
    if most and spec.num_heads > most * spec.num_kv_heads:
        reasons.append(f"needs at most {most} heads for a KV head, found {spec.num_heads}")
    return reasons


def even_head_dim(spec: AttentionSpec, most: int) -> list[str]:
    if spec.head_dim % 2 or spec.head_dim > most:
        return [f"needs an even head_dim up to {most}, found {spec.head_dim}"]
    return []


def no_soft_cap(spec: AttentionSpec) -> list[str]:
    if spec.soft_cap is None:
        return []
    return [f"scaled_dot_product_attention has no soft cap, asked for {spec.soft_cap}"]


def no_sinks(spec: AttentionSpec, because: str) -> list[str]:
    """``because`` says who has none, as in "scaled_dot_product_attention has no sinks"."""
    return [f"{because}, asked for them"] if spec.sinks else []


def no_batch_invariance(spec: AttentionSpec, because: str) -> list[str]:
    """``because`` says what the backend does that such results forbid, as in "pads rows to the longest"."""
    return [f"{because}, asked for batch-invariant results"] if spec.batch_invariant else []


def _version(text: str) -> Version:
    """Numbers at the beginning of "2.8.3.post2"; none of "main"."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found.group().split("."))) if found else ()


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
