"""Runs one model over a KV pool without an executor: rows with histories in, logits out.

Blocks are scattered over a pool full of NaN, so that a backend that reads what no row wrote is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from penstock.attention.context import ForwardContext, forward_context
from penstock.attention.contract import AttentionBackend, AttentionSpec, GroupStep
from penstock.attention.select import choose_attention
from penstock.loader.config_reader import ConfigReader
from penstock.models.family import KvGeometry, ModelParts, attention_spec
from penstock.quantization.linear import InputFormat, LinearInput, LinearSpec
from penstock.quantization.schemes import WeightRecord
from penstock.types.decision import YES, Verdict
from penstock.types.facts import PlatformFacts

CPU = PlatformFacts(name="cpu", machine="x86_64")


@dataclass(frozen=True)
class PlainWeight:
    values: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.values.numel() * self.values.element_size()


class PlainLinear:
    """A LinearMethod over dense weights, so that model tests do not depend on the quantization backends."""

    name = "plain"

    def can_run(self, spec: LinearSpec, /) -> Verdict:
        return YES

    def prepared_bytes(self, spec: LinearSpec) -> int:
        return spec.out_features * spec.in_features * getattr(torch, spec.dtype).itemsize

    def prepare(self, record: WeightRecord, spec: LinearSpec) -> PlainWeight:
        assert record.scheme.kind == "dense"
        return PlainWeight(record.parts["values"].to(getattr(torch, spec.dtype)))

    def input_format(self, spec: LinearSpec) -> InputFormat:
        return InputFormat.TENSOR

    def apply(
        self, prepared: PlainWeight, x: LinearInput, bias: torch.Tensor | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert isinstance(x, torch.Tensor)
        result = torch.nn.functional.linear(x, prepared.values, bias)
        return result if out is None else out.copy_(result)

    def argmax(self, prepared: PlainWeight, x: LinearInput) -> tuple[torch.Tensor, torch.Tensor]:
        largest, places = self.apply(prepared, x, None).float().max(-1)
        return places, largest

    def embed(self, prepared: PlainWeight, token_ids: torch.Tensor) -> torch.Tensor:
        return prepared.values[token_ids]


def make_parts(backend: str | None = None, dtype: torch.dtype = torch.float32) -> ModelParts:
    method = PlainLinear()
    return ModelParts(
        dtype=dtype,
        platform=CPU,
        linear_method=lambda spec: method,
        attention_backend=lambda spec: choose_attention(spec, backend)[0],
        kv_dtype=str(dtype).removeprefix("torch."),
    )


@dataclass
class Row:
    """A sequence with its block tables, one per group."""

    blocks: dict[str, list[int]] = field(default_factory=dict)
    length: int = 0


class ModelDriver:
    """One model over its own pools, one pool per group with all the group's layers inside a block."""

    def __init__(self, family: ModuleType, config: Any, parts: ModelParts, *, num_blocks: int = 96) -> None:
        self.family, self.config, self.parts, self.block_tokens = family, config, parts, 16
        self.model = family.build(config, parts)
        self.groups: tuple[KvGeometry, ...] = family.kv_groups(config)
        self.kv: dict[int, torch.Tensor] = {}
        self.free: dict[str, list[int]] = {}
        self.backends: dict[str, tuple[AttentionBackend, AttentionSpec]] = {}
        generator = torch.Generator().manual_seed(7)
        for group in self.groups:
            spec = attention_spec(group, parts.dtype_name, parts.platform, parts.kv_dtype)
            backend = parts.attention_backend(spec)
            layout = backend.kv_layout(spec, self.block_tokens)
            # Every float is a NaN.
            pool = torch.full((num_blocks, len(group.layers), layout.nbytes), 255, dtype=torch.uint8)
            pool = pool.view(layout.dtype).view(num_blocks, len(group.layers), *layout.shape)
            self.kv.update({layer: pool[:, place] for place, layer in enumerate(group.layers)})
            self.free[group.name] = torch.randperm(num_blocks, generator=generator).tolist()
            self.backends[group.name] = (backend, spec)

    def step(self, work: Sequence[tuple[Row, Sequence[int]]], *, all_logits: bool = True) -> torch.Tensor:
        """Append tokens to rows in one forward. Returns logits of every token, or of each row's last one."""
        carry, _ = self.forward(work)
        ends = torch.tensor([len(tokens) for _, tokens in work]).cumsum(0)
        rows = torch.arange(int(ends[-1])) if all_logits else ends - 1
        with torch.inference_mode():
            return self.model.logits(carry, rows)

    def forward(
        self, work: Sequence[tuple[Row, Sequence[int]]], **options: Any
    ) -> tuple[Any, tuple[torch.Tensor, ...]]:
        """The forward of ``step``, before logits. ``options`` go to the model: embeds, taps."""
        counts = [len(tokens) for _, tokens in work]
        starts = torch.tensor([0, *counts]).cumsum(0)
        positions = torch.cat([torch.arange(row.length, row.length + len(tokens)) for row, tokens in work])
        for row, tokens in work:
            row.length += len(tokens)
        metadata = {group.name: self._plan(group, work, starts, positions) for group in self.groups}
        token_ids = torch.tensor([token for _, tokens in work for token in tokens])
        with torch.inference_mode(), forward_context(ForwardContext(metadata, self.kv)):
            return self.model.forward(token_ids, positions, **options)

    def _plan(
        self,
        group: KvGeometry,
        work: Sequence[tuple[Row, Sequence[int]]],
        starts: torch.Tensor,
        positions: torch.Tensor,
    ) -> Any:
        tables = []
        for row, _ in work:
            blocks = row.blocks.setdefault(group.name, [])
            while len(blocks) * self.block_tokens < row.length:
                blocks.append(self.free[group.name].pop())
            tables.append(blocks)
        widest = max(len(blocks) for blocks in tables)
        block_table = torch.tensor([blocks + [0] * (widest - len(blocks)) for blocks in tables])
        row_of_token = torch.repeat_interleave(torch.arange(len(work)), starts.diff())
        blocks_of_tokens = block_table[row_of_token, positions // self.block_tokens]
        kv_lens = torch.tensor([row.length for row, _ in work])
        step = GroupStep(
            query_start=starts,
            kv_lens=kv_lens,
            block_table=block_table,
            slots=blocks_of_tokens * self.block_tokens + positions % self.block_tokens,
            positions=positions,
            max_query_len=int(starts.diff().max()),
            max_kv_len=int(kv_lens.max()),
            block_tokens=self.block_tokens,
        )
        backend, spec = self.backends[group.name]
        return backend.plan(spec, step)


def read_config(family: ModuleType, config: Mapping[str, Any]) -> Any:
    return family.read_config(ConfigReader(config, "config.json"))
