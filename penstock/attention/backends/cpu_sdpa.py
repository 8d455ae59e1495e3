"""Paged attention in batched torch calls on the CPU: gather by entry, then scaled_dot_product_attention.

Knows no request. ``plan`` sorts the rows of a step once for all layers of a group:

- short rows (decode, verification of drafts) with equally many queries and similar lengths run as one batch. Query
  heads that share a KV head are folded into the query dimension, so keys and values are never repeated.
- long rows (prefill) run one by one in tiles of queries; a row without history reads k and v where they are.

Entries, not blocks, are gathered. A shorter row of a batch is padded with its own last entry, so that no slot that the
row did not write is ever touched: whatever lies in a free block, even NaN, cannot reach a result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention

from penstock.attention import needs
from penstock.attention.contract import UNSCALED, AttentionSpec, GroupStep, KvLayout, check_layer
from penstock.kernels.implementation import OpSpec
from penstock.kernels.ops import choose_op
from penstock.types.decision import Verdict

DTYPES = ("float32", "bfloat16", "float16")
MAX_BATCHED_QUERIES = 8  # rows with more queries than this run one by one
TILE_QUERIES = 256
MIN_LENGTH_CLASS = 8  # rows up to 2**8 entries are padded to each other, longer ones to the next power of two
MAX_GATHERED_VALUES = 1 << 26  # of one gather of keys and values: 256 MiB in float32; one row always fits


@dataclass(frozen=True, slots=True)
class _Entries:
    """Places in the pool, turned into row numbers of one layer's flat view when its strides are known."""

    blocks: torch.Tensor
    offsets: torch.Tensor

    def rows(self, strides: tuple[int, int]) -> torch.Tensor:
        """Rows of the keys, then of the values: [2 * entries]."""
        keys = self.blocks * strides[0] + self.offsets
        return torch.cat((keys, keys + strides[1]))


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows with ``queries`` tokens each, all padded to ``length`` entries. ``mask`` [rows, 1, queries * group, length]
    (or 1 in place of the third) is None when nothing is padded."""

    tokens: slice | torch.Tensor
    num_rows: int
    queries: int
    length: int
    entries: _Entries
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Tile:
    """Queries [first, last) of a long row over its keys [low, high). Without a mask the tile is plainly causal."""

    first: int
    last: int
    low: int
    high: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _LongRow:
    """``entries`` is None for a row without history: its keys are this step's."""

    tokens: slice
    length: int
    entries: _Entries | None
    tiles: tuple[_Tile, ...]


@dataclass(slots=True)
class _Metadata:
    spec: AttentionSpec
    rotary: Callable[..., torch.Tensor]
    written: _Entries
    batches: list[_Batch]
    long_rows: list[_LongRow]
    covers_all: bool  # one batch holds every token, in order
    row_numbers: dict[tuple[int, int], list[torch.Tensor]] = field(default_factory=dict)

    def rows_of(self, strides: tuple[int, int]) -> list[torch.Tensor]:
        """Row numbers of the writes and of every gather, for one pool layout; made by the first layer, then shared."""
        found = self.row_numbers.get(strides)
        if found is None:
            gathers = [batch.entries for batch in self.batches]
            gathers += [row.entries for row in self.long_rows if row.entries is not None]
            found = self.row_numbers[strides] = [entries.rows(strides) for entries in (self.written, *gathers)]
        return found


class CpuSdpa:
    """Batched attention for CPUs. See the module's docstring for the plan of a step."""

    name = "cpu_sdpa"
    block_tokens = (16, 32, 8, 64, 128, 256)
    eager_because = ""
    normalizes = False

    def can_run(self, spec: AttentionSpec, /) -> Verdict:
        return needs.verdict(
            needs.cpu(spec),
            needs.dtype(spec, DTYPES),
            needs.kv_dtype_of_activations(spec),
            needs.equal_groups(spec),
            needs.no_soft_cap(spec),
            needs.no_sinks(spec, "scaled_dot_product_attention has no sinks"),
            needs.no_batch_invariance(spec, "batches rows by their lengths"),
        )

    def kv_layout(self, spec: AttentionSpec, block_tokens: int, /) -> KvLayout:
        return KvLayout(getattr(torch, spec.dtype), (2, block_tokens, spec.num_kv_heads, spec.head_dim))

    def plan(self, spec: AttentionSpec, step: GroupStep) -> _Metadata:
        starts, lens = step.query_start.tolist(), step.kv_lens.tolist()
        classes: dict[tuple[int, int], list[int]] = {}
        long_rows = []
        for row, kv_len in enumerate(lens):
            queries = starts[row + 1] - starts[row]
            if queries > MAX_BATCHED_QUERIES:
                long_rows.append(row)
            elif queries:
                span = _span(kv_len, queries, spec.window)
                length_class = max(MIN_LENGTH_CLASS, (span - 1).bit_length())
                classes.setdefault((queries, length_class), []).append(row)
        batches = [
            _plan_batch(spec, step, chunk, queries, starts)
            for (queries, length_class), rows in classes.items()
            for chunk in _chunks(rows, spec, length_class)
        ]
        covers_all = len(batches) == 1 and not long_rows and isinstance(batches[0].tokens, slice)
        rotary, _ = choose_op("rotary", OpSpec(dtype=spec.dtype, platform=spec.platform))
        return _Metadata(
            spec=spec,
            rotary=rotary,
            written=_Entries(*_split(step.slots, step.block_tokens)),
            batches=batches,
            long_rows=_plan_long_rows(spec, step, long_rows, starts, lens),
            covers_all=covers_all,
        )

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
        rotated = qk if tables is None else metadata.rotary(qk, *tables)
        spec = metadata.spec
        q, k = rotated[:, : spec.num_heads], rotated[:, spec.num_heads :]
        flat, strides = _flat_view(kv)
        row_numbers = iter(metadata.rows_of(strides))
        flat.index_copy_(0, next(row_numbers), torch.cat((k, v)).view(-1, flat.shape[1]))
        if metadata.covers_all:
            return _run_batch(q, flat, next(row_numbers), k.shape[1], scale, metadata.batches[0])
        out = q.new_empty(q.shape)
        for batch in metadata.batches:
            rows = next(row_numbers)
            out[batch.tokens] = _run_batch(q[batch.tokens], flat, rows, k.shape[1], scale, batch)
        for row in metadata.long_rows:
            if row.entries is None:
                keys, values = k[row.tokens], v[row.tokens]
            else:
                gathered = flat.index_select(0, next(row_numbers))
                keys, values = gathered.view(2, row.length, *k.shape[1:]).unbind(0)
            _run_long_row(
                q[row.tokens], keys, values, out[row.tokens], scale, spec.num_heads // spec.num_kv_heads, row.tiles
            )
        return out


def _flat_view(kv: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """The layer's pool as rows of one entry's heads, and the steps in rows from a block to the next and from keys to
    values. A view: index_select and index_copy_ on it are several times faster than indexing by block and offset."""
    width = kv.shape[3] * kv.shape[4]
    block, value, entry, head, element = kv.stride()
    if (entry, head, element) != (width, kv.shape[4], 1) or block % width or value % width:
        raise ValueError(f"cpu_sdpa needs contiguous entries and block strides in whole entries, found {kv.stride()}")
    num_rows = ((kv.shape[0] - 1) * block + value) // width + kv.shape[2]
    flat = kv.as_strided((num_rows, width), (width, 1), kv.storage_offset())
    return flat, (block // width, value // width)


def _split(entries: torch.Tensor, block_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quotient and remainder; shifts, where they serve, take a tenth of the time of torch's integer division."""
    if block_tokens & (block_tokens - 1):
        return entries // block_tokens, entries % block_tokens
    return entries >> (block_tokens.bit_length() - 1), entries & (block_tokens - 1)


def _span(kv_len: int, queries: int, window: int | None) -> int:
    """Entries that at least one of the row's queries sees."""
    return kv_len if window is None else min(kv_len, window + queries - 1)


def _chunks(rows: list[int], spec: AttentionSpec, length_class: int) -> list[list[int]]:
    """Cut a batch so that one gather stays within MAX_GATHERED_VALUES."""
    per_row = 2 * spec.num_kv_heads * spec.head_dim << length_class
    size = max(1, MAX_GATHERED_VALUES // per_row)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _plan_batch(spec: AttentionSpec, step: GroupStep, rows: list[int], queries: int, starts: Sequence[int]) -> _Batch:
    consecutive = rows[-1] - rows[0] == len(rows) - 1 and starts[rows[-1]] - starts[rows[0]] == queries * (
        len(rows) - 1
    )
    chosen: slice | torch.Tensor = slice(rows[0], rows[-1] + 1) if consecutive else torch.tensor(rows)
    lens = step.kv_lens[chosen, None]  # [rows, 1]
    spans = lens if spec.window is None else lens.clamp(max=spec.window + queries - 1)
    length = int(spans.max())
    positions = lens - spans + torch.arange(length)  # [rows, length], past the row's end where padded
    stored = torch.minimum(positions, lens - 1)
    places, offsets = _split(stored, step.block_tokens)
    blocks = step.block_table[chosen].gather(1, places)
    tokens: slice | torch.Tensor = slice(starts[rows[0]], starts[rows[0]] + queries * len(rows))
    if not consecutive:
        tokens = (step.query_start[chosen, None] + torch.arange(queries)).flatten()
    mask = None
    if queries > 1 or int(spans.min()) < length:
        asking = lens - queries + torch.arange(queries)  # [rows, queries] positions of the queries
        mask = _mask(asking[:, :, None] - positions[:, None, :], spec)[:, None]
        if queries > 1:
            mask = mask.repeat_interleave(spec.num_heads // spec.num_kv_heads, dim=2)
    entries = _Entries(blocks.flatten(), offsets.flatten())
    return _Batch(tokens, len(rows), queries, length, entries, mask)


def _mask(distance: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """0 where a query sees a key that lies ``distance`` positions before it, minus infinity elsewhere."""
    hidden = distance < 0
    if spec.window is not None:
        hidden |= distance >= spec.window
    return torch.zeros(distance.shape, dtype=getattr(torch, spec.dtype)).masked_fill_(hidden, float("-inf"))


def _plan_long_rows(
    spec: AttentionSpec, step: GroupStep, rows: list[int], starts: Sequence[int], lens: Sequence[int]
) -> list[_LongRow]:
    """Masks depend only on how far a key lies behind a query, so all tiles cut theirs from the lower right corner of
    one table [TILE_QUERIES, longest span of a tile]."""
    cuts = []
    for row in rows:
        queries = starts[row + 1] - starts[row]
        low = lens[row] - _span(lens[row], queries, spec.window)
        cuts.append((row, low, _tiles(queries, lens[row], low, spec.window)))
    longest = max((high - low for _, _, tiles in cuts for _, _, low, high, causal in tiles if not causal), default=0)
    places = torch.arange(longest) - (longest - TILE_QUERIES)
    table = _mask(torch.arange(TILE_QUERIES)[:, None] - places, spec) if longest else None
    planned = []
    for row, low, tiles in cuts:
        entries = None
        if lens[row] > starts[row + 1] - starts[row]:
            positions = torch.arange(low, lens[row])
            places, offsets = _split(positions, step.block_tokens)
            entries = _Entries(step.block_table[row][places], offsets)
        base = 0 if entries is None else low
        planned.append(
            _LongRow(
                slice(starts[row], starts[row + 1]),
                lens[row] - base,
                entries,
                tuple(
                    _Tile(first, last, k_low - base, k_high - base, None if causal or table is None else
                          table[TILE_QUERIES - (last - first) :, longest - (k_high - k_low) :])
                    for first, last, k_low, k_high, causal in tiles
                ),
            )
        )  # fmt: skip
    return planned


def _tiles(queries: int, kv_len: int, low: int, window: int | None) -> list[tuple[int, int, int, int, bool]]:
    """(first query, last query, first key position, last key position, plainly causal) of every tile of a row."""
    if kv_len == queries and (window is None or queries <= window):
        return [(0, queries, 0, kv_len, True)]
    history = kv_len - queries
    tiles = []
    for first in range(0, queries, TILE_QUERIES):
        last = min(first + TILE_QUERIES, queries)
        lowest = 0 if window is None else max(0, history + first - window + 1)
        tiles.append((first, last, max(low, lowest), history + last, False))
    return tiles


def _run_batch(
    q: torch.Tensor, flat: torch.Tensor, rows: torch.Tensor, kv_heads: int, scale: float, batch: _Batch
) -> torch.Tensor:
    """q [rows * queries, heads, head_dim] -> the same shape."""
    _, heads, head_dim = q.shape
    gathered = flat.index_select(0, rows).view(2, batch.num_rows, batch.length, kv_heads, head_dim).transpose(2, 3)
    if batch.queries == 1:
        folded = q.view(batch.num_rows, kv_heads, -1, head_dim)
        return scaled_dot_product_attention(folded, gathered[0], gathered[1], batch.mask, scale=scale).reshape(q.shape)
    split = (batch.num_rows, batch.queries, kv_heads, heads // kv_heads, head_dim)
    folded = q.reshape(split).transpose(1, 2).flatten(2, 3)
    out = scaled_dot_product_attention(folded, gathered[0], gathered[1], batch.mask, scale=scale)
    return out.view(split[0], kv_heads, split[1], split[3], head_dim).transpose(1, 2).reshape(q.shape)


def _run_long_row(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    group: int,
    tiles: Sequence[_Tile],
) -> None:
    """q, out [queries, heads, head_dim]; keys, values [length, kv_heads, head_dim]. KV heads are the batch, and their
    query heads read one key through a stride of zero."""
    by_head = q.view(len(q), -1, group, q.shape[2]).permute(1, 2, 0, 3)  # [kv_heads, group, queries, head_dim]
    target = out.view(len(q), -1, group, q.shape[2]).permute(1, 2, 0, 3)
    keys, values = (t.transpose(0, 1)[:, None].expand(-1, group, -1, -1) for t in (keys, values))
    for tile in tiles:
        target[:, :, tile.first : tile.last] = scaled_dot_product_attention(
            by_head[:, :, tile.first : tile.last],
            keys[:, :, tile.low : tile.high],
            values[:, :, tile.low : tile.high],
            tile.mask,
            is_causal=tile.mask is None,
            scale=scale,
        )
