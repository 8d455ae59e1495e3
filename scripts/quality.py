"""How far the engine's arithmetic is from float32 on the same weights: mean KL divergence of the next-token
distribution, top-1 agreement, perplexities.

    python scripts/quality.py MODEL [--text FILE ...] [--tokens 6144] [--kv-cache-dtype auto] [--linear-backend NAME]

The text is cut into windows that are computed alone; every position counts. The reference multiplies dequantized
weights in float32, with float32 keys and values. ``--ids FILE.npy`` takes token ids instead of texts,
``--reference FILE.npy`` logits [tokens, vocab] of another engine, ``--save FILE.npy`` keeps ours, to compare engines.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.attention.context import ForwardContext, forward_context
from penstock.attention.contract import GroupStep
from penstock.executor.kv_storage import KvStorage
from penstock.executor.load import BuiltModel, build_model, group_specs, kv_layouts
from penstock.frontend.text.load import load_text_assets
from penstock.loader.checkpoint import open_checkpoint
from penstock.loader.sources import ModelSource, resolve_source
from penstock.loader.weights import load_parameters
from penstock.platforms.probe import probe_platform

ROOT = Path(__file__).resolve().parent.parent
TEXTS = (ROOT / "docs" / "structure.md", ROOT / "docs" / "performance.md", ROOT / "LICENSE")
ROWS = 64  # compared at once


class Windows:
    """Logits of whole windows by one way of computing, without an engine around it."""

    def __init__(self, source: ModelSource, size: int, **backends: Any) -> None:
        checkpoint = open_checkpoint(source)
        self._built: BuiltModel = build_model(checkpoint, dtype="float32", platform=probe_platform(), **backends)
        built = self._built
        with torch.inference_mode():
            load_parameters(built.family.WEIGHTS, built.facts.num_layers, checkpoint, built.model.parameters())
        checkpoint.close()
        self._groups = group_specs(built, None)
        self._blocks = [-(-size // group.tokens_per_block) for group in self._groups]
        groups = [replace(group, pool=place) for place, group in enumerate(self._groups)]
        self._storage = KvStorage(built.geometries, groups, self._blocks, kv_layouts(built, None))

    @property
    def methods(self) -> str:
        attention = [group.backend.name for group in self._built.attention]
        return ", ".join(dict.fromkeys((*self._built.choices.linear_names, *attention)))

    @torch.inference_mode()
    def logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids [n] -> float32 [n, vocab_size]."""
        size = len(token_ids)
        positions = torch.arange(size)
        metadata = {}
        for group, attention, blocks in zip(self._groups, self._built.attention, self._blocks, strict=True):
            step = GroupStep(
                query_start=torch.tensor([0, size]),
                kv_lens=torch.tensor([size]),
                block_table=torch.arange(blocks)[None],
                slots=positions,
                positions=positions,
                max_query_len=size,
                max_kv_len=size,
                block_tokens=group.tokens_per_block,
            )
            metadata[group.name] = attention.backend.plan(attention.spec, step)
        with forward_context(ForwardContext(metadata, self._storage.layers)):
            carry, _ = self._built.model.forward(token_ids, positions)
        return self._built.model.logits(carry, None)


def compare(reference: torch.Tensor, ours: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(KL divergence from the reference in nats, whether the largest logits agree), both [n], in float64."""
    divergences, agreements = [], []
    for start in range(0, len(ours), ROWS):
        p, q = (logits[start : start + ROWS].double().log_softmax(-1) for logits in (reference, ours))
        divergences.append((p.exp() * (p - q)).sum(-1))
        agreements.append(p.argmax(-1) == q.argmax(-1))
    return torch.cat(divergences), torch.cat(agreements)


def surprise(logits: torch.Tensor, token_ids: torch.Tensor) -> float:
    """Sum of the negative log-probabilities of the window's tokens but the first."""
    picked = logits[:-1].gather(1, token_ids[1:, None])[:, 0].double()
    return float((logits[:-1].double().logsumexp(-1) - picked).sum())


def token_windows(options: argparse.Namespace, source: ModelSource) -> Iterator[torch.Tensor]:
    if options.ids:
        ids = torch.from_numpy(np.load(options.ids).astype(np.int64))
    else:
        text = "".join(path.read_text() for path in options.text)
        ids = torch.tensor(load_text_assets(source).tokenizer.encode(text))
    yield from ids[: options.tokens // options.window * options.window].split(options.window)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--text", type=Path, nargs="+", default=TEXTS)
    parser.add_argument("--ids")
    parser.add_argument("--tokens", type=int, default=6144)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--linear-backend")
    parser.add_argument("--attention-backend")
    parser.add_argument("--reference")
    parser.add_argument("--save")
    options = parser.parse_args()

    source = resolve_source(options.model)
    windows = [window for window in token_windows(options, source) if len(window) == options.window]
    ours = Windows(
        source,
        options.window,
        linear_backend=options.linear_backend,
        attention_backend=options.attention_backend,
        kv_cache_dtype=options.kv_cache_dtype,
    )
    stored = np.load(options.reference, mmap_mode="r") if options.reference else None
    truth = None
    if stored is None:
        truth = Windows(
            source, options.window, linear_backend="dense", attention_backend="cpu_sdpa", kv_cache_dtype="float32"
        )
    report(options, windows, ours, truth, stored)


def report(
    options: argparse.Namespace, windows: list[torch.Tensor], ours: Windows, truth: Windows | None, stored: Any
) -> None:
    divergences, agreements, kept, surprises = [], [], [], [0.0, 0.0]
    for place, window in enumerate(windows):
        found = ours.logits(window)
        if truth is None:
            reference = torch.from_numpy(np.array(stored[place * len(window) : (place + 1) * len(window)]))
        else:
            reference = truth.logits(window)
        divergence, agreement = compare(reference, found)
        divergences.append(divergence)
        agreements.append(agreement)
        surprises = [s + surprise(logits, window) for s, logits in zip(surprises, (reference, found), strict=True)]
        if options.save:
            kept.append(found.numpy())
    if options.save:
        np.save(options.save, np.concatenate(kept))
    divergence, agreement = torch.cat(divergences), torch.cat(agreements)
    count = len(divergence) - len(windows)
    perplexities = [math.exp(s / count) for s in surprises]
    print(f"{len(divergence)} positions of {options.model}, {ours.methods}, KV {options.kv_cache_dtype}")
    print(f"mean KL divergence  {divergence.mean():.3e} +- {divergence.std() / len(divergence) ** 0.5:.1e} nats")
    print(f"top-1 agreement     {agreement.double().mean():.4%}")
    print(f"perplexity          {perplexities[1]:.3f}, reference {perplexities[0]:.3f}")


if __name__ == "__main__":
    main()
