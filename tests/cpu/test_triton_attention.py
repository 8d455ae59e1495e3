"""Attention's Triton kernels in the interpreter, in float32, against the references: groups, odd heads, edges of blocks
and windows, ragged rows, parts of rows and their merge."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from penstock.kernels import reference
from penstock.kernels.ops import OPS

pytest.importorskip("triton", reason="the interpreter of kernels comes with triton")
from triton import knobs

from penstock.kernels.triton import attention, attention_prefill
from penstock.kernels.triton.attention import HeadNorms, PagedRows, Scoring, rotate_and_write
from penstock.kernels.triton.attention_decode import (
    MAX_SPLITS,
    choose_num_splits,
    decode,
    make_workspace,
    queries_of_tile,
)
from penstock.kernels.triton.attention_prefill import prefill

pytestmark = pytest.mark.skipif(not knobs.runtime.interpret, reason="for Triton's interpreter; tests/gpu has the card")

BLOCK = 16
INF = float("inf")
DENSE = OPS["rotate_and_write"].tolerance["float32"]
SUMMED = OPS["paged_attention"].tolerance["float32"]


@dataclass(frozen=True)
class Batch:
    """Rows as (tokens before this step, tokens of this step)."""

    rows: tuple[tuple[int, int], ...]
    group: int = 2
    kv_heads: int = 1
    head_dim: int = 16
    window: int | None = None
    soft_cap: float | None = None
    sinks: tuple[float, ...] = ()
    kv_dtype: torch.dtype = torch.float32
    kv_scales: tuple[float, float] = (1.0, 1.0)

    @property
    def heads(self) -> int:
        return self.group * self.kv_heads

    @property
    def scoring(self) -> Scoring:
        sinks = torch.tensor(self.sinks) if self.sinks else None
        return Scoring(1.2 * self.head_dim**-0.5, self.window, self.soft_cap, sinks)


class Scene:
    """A pool with a history in it, everything else NaN, and a step's tensors as strided views."""

    def __init__(self, batch: Batch, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.batch = batch
        counts = [new for _, new in batch.rows]
        lens = [history + new for history, new in batch.rows]
        tokens, d = sum(counts), batch.head_dim
        needed = [-(-length // BLOCK) for length in lens]
        ids = torch.randperm(sum(needed) + 2)
        table = torch.full((len(lens), max(needed) + 3), -1)[:, : max(needed)]
        for row, (count, blocks) in enumerate(zip(needed, ids[: sum(needed)].split(needed), strict=True)):
            table[row, :count] = blocks
        positions = [torch.arange(history, history + new) for history, new in batch.rows]
        slots = torch.cat([table[r][p // BLOCK] * BLOCK + p % BLOCK for r, p in enumerate(positions)])
        self.rows = PagedRows(torch.tensor([0, *counts]).cumsum(0), torch.tensor(lens), table, slots)
        self.pool = torch.full((len(ids), 3, 2, batch.kv_heads, BLOCK, d), float("nan")).to(batch.kv_dtype)
        for row, (history, _) in enumerate(batch.rows):
            for position in range(history):
                entry = torch.randn(2, batch.kv_heads, d)
                self.kv[table[row, position // BLOCK], :, :, position % BLOCK] = entry.to(batch.kv_dtype)
        fused = torch.randn(
            tokens, batch.heads + 2 * batch.kv_heads + 1, d
        )  # rows lie further apart than they are long
        self.qk = fused[:, : batch.heads + batch.kv_heads]
        self.v = fused[:, batch.heads + batch.kv_heads : -1]
        angles = torch.rand(tokens, 1, d // 2) * 6
        self.tables = (torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1))

    @property
    def kv(self) -> torch.Tensor:
        """The second of three layers, [blocks, 2, kv_heads, block_tokens, d]."""
        return self.pool[:, 1]

    @property
    def max_query_len(self) -> int:
        return max(new for _, new in self.batch.rows)

    def wanted(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(rotated queries, their answers); writes to the pool."""
        plain = self.kv.transpose(2, 3)
        scales = self.batch.kv_scales
        queries = reference.rotate_and_write(self.qk, self.v, self.tables, plain, self.rows.slots, scales)
        rows, scoring = self.rows, self.batch.scoring
        answers = reference.paged_attention(
            queries, plain, rows.query_start, rows.kv_lens, rows.block_table, scoring.scale, scoring.window,
            scoring.soft_cap, scoring.sinks, scales,
        )  # fmt: skip
        return queries, answers

    def empty(self) -> torch.Tensor:
        return torch.full((self.qk.shape[0], self.batch.heads, self.batch.head_dim), 7.0)


def decoded(
    scene: Scene, splits: int, *, queries: int | None = None, block_n: int = 16, norms: HeadNorms | None = None
) -> torch.Tensor:
    batch = scene.batch
    workspace = make_workspace(
        len(batch.rows), batch.heads, batch.kv_heads, batch.head_dim, queries=queries or scene.max_query_len,
        num_splits=splits, device=torch.device("cpu"),
    )  # fmt: skip
    out = scene.empty()
    decode(
        scene.qk, scene.v, scene.tables, scene.kv, scene.rows, out, batch.scoring, workspace, block_n=block_n,
        norms=norms, kv_scales=batch.kv_scales,
    )  # fmt: skip
    if workspace.counters is not None:
        assert not workspace.counters.any(), "the next layer would merge too early"
    return out


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: tuple[float, float] = SUMMED) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance[0], atol=tolerance[1])


@pytest.mark.parametrize("shape", [(2, 4, 1, 64), (2, 7, 1, 80), (2, 3, 3, 10), (0, 2, 1, 16), (1, 32, 8, 16)], ids=str)
@pytest.mark.parametrize("turned", [True, False])
def test_rotation_and_write(shape: tuple[int, int, int, int], turned: bool) -> None:
    tokens, heads, kv_heads, head_dim = shape
    scene = Scene(Batch(((5, tokens), (0, 1)), heads // kv_heads, kv_heads, head_dim))
    qk, v, slots = scene.qk[:tokens], scene.v[:tokens], scene.rows.slots[:tokens]
    tables = (scene.tables[0][:tokens], scene.tables[1][:tokens]) if turned else None
    pool = scene.pool.clone()
    wanted = reference.rotate_and_write(qk, v, tables, pool[:, 1].transpose(2, 3), slots)
    found = rotate_and_write(qk, v, tables, scene.kv, slots)
    close(found, wanted, DENSE)
    torch.testing.assert_close(scene.pool, pool, rtol=DENSE[0], atol=DENSE[1], equal_nan=True)
    assert tables is None or found.is_contiguous()


def test_heads_can_be_spread_over_programs() -> None:
    scene = Scene(Batch(((5, 2),), 5, 1))
    whole = rotate_and_write(scene.qk, scene.v, scene.tables, scene.kv, scene.rows.slots, block_heads=8)
    spread = rotate_and_write(scene.qk, scene.v, scene.tables, scene.kv, scene.rows.slots, block_heads=2)
    assert torch.equal(whole, spread)


FLOAT8 = torch.float8_e4m3fn
EDGES = ((0, 1), (14, 1), (15, 1), (16, 1), (31, 1), (62, 1))
DECODES = {
    "one": Batch(((40, 1),)),
    "edges of blocks": Batch(EDGES),
    "groups of 7": Batch(((20, 1), (33, 1)), group=7, kv_heads=2),
    "no groups": Batch(((20, 1), (33, 1)), group=1, kv_heads=2, head_dim=64),
    "heads of 128": Batch(((35, 1),), group=4, head_dim=128),
    "heads of 80": Batch(((35, 1),), group=4, head_dim=80),
    "drafts": Batch(((20, 5), (0, 3), (33, 1), (15, 4)), group=4),
    "drafts of an odd group": Batch(((30, 4), (15, 1)), group=7),
    "a row without tokens": Batch(((20, 1), (5, 0), (6, 1))),
    "window": Batch(((0, 1), (11, 1), (47, 1), (60, 3)), window=13),
    "window of one": Batch(((0, 1), (16, 3)), window=1),
    "window of two blocks": Batch(((31, 1), (32, 1), (79, 1)), window=32),
    "soft cap": Batch(((0, 1), (40, 2)), soft_cap=3.0, window=30),
    "sinks": Batch(EDGES, sinks=(2.0, -1.0)),
    "sinks that hide all": Batch(EDGES, sinks=(200.0, 90.0)),
    "sinks that are not there": Batch(EDGES, sinks=(-INF, -200.0)),
    "sinks, drafts of an odd group": Batch(((60, 4), (15, 1)), group=7, sinks=tuple(map(float, range(-3, 4)))),
    "sinks, window": Batch(((0, 1), (11, 1), (47, 1), (60, 3)), window=13, sinks=(2.0, -1.0)),
    "sinks, soft cap": Batch(((0, 1), (60, 2)), soft_cap=3.0, window=50, sinks=(4.0, 1.0)),
    "float8": Batch(EDGES, kv_dtype=FLOAT8),
    "float8, scaled": Batch(((20, 5), (0, 3), (33, 1)), group=4, kv_dtype=FLOAT8, kv_scales=(0.02, 3.0)),
    "float8, sinks": Batch(((70, 1), (3, 2)), kv_dtype=FLOAT8, kv_scales=(1.5, 0.3), window=40, sinks=(1.0, 3.0)),
}


def check_pool(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Of float8 to the bit, but for values in the middle of two, which the last bit of a rotation decides about."""
    if wanted.dtype is FLOAT8:
        different = (found.view(torch.uint8) != wanted.view(torch.uint8)).float().mean()
        assert different < 2e-3
        torch.testing.assert_close(found.float(), wanted.float(), rtol=2**-3, atol=2**-9, equal_nan=True)
    else:
        torch.testing.assert_close(found, wanted, rtol=DENSE[0], atol=DENSE[1], equal_nan=True)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("name", DECODES)
def test_rows_with_few_queries(name: str, splits: int) -> None:
    scene = Scene(DECODES[name])
    found = decoded(scene, splits)
    written = scene.pool.clone()
    close(found, scene.wanted()[1])
    check_pool(written, scene.pool)


def test_more_splits_than_tiles() -> None:
    scene = Scene(DECODES["edges of blocks"])
    close(decoded(scene, 8), scene.wanted()[1])


def test_rotation_may_come_before() -> None:
    """The same bits, whether the kernel that attends has rotated and written or another one."""
    scene = Scene(Batch(((40, 3), (15, 1)), group=3))
    found = decoded(scene, 3)
    other = Scene(scene.batch)
    queries = rotate_and_write(other.qk, other.v, other.tables, other.kv, other.rows.slots)
    assert torch.equal(other.pool.nan_to_num(9.0), scene.pool.nan_to_num(9.0))
    workspace = make_workspace(2, 3, 1, 16, queries=3, num_splits=3, device=torch.device("cpu"))
    out = other.empty()
    decode(queries, None, None, other.kv, other.rows, out, other.batch.scoring, workspace, block_n=16)
    assert torch.equal(out, found)


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("head_dim", [16, 80])
def test_norms_may_come_in_passing(head_dim: int, splits: int, turned: bool) -> None:
    """Norms by the kernel that attends, by the one that rotates, and by the reference before either."""
    batch = Batch(((40, 3), (15, 1), (0, 2)), group=3, kv_heads=2, head_dim=head_dim)
    norms = (torch.rand(batch.heads + batch.kv_heads, head_dim) + 0.5, 1e-5)
    scenes = [Scene(batch) for _ in range(3)]
    for scene in scenes:
        scene.tables = scene.tables if turned else None
    attending, rotating, before = scenes
    before.qk = reference.rms_norm(before.qk, *norms)
    queries, wanted = before.wanted()
    close(decoded(attending, splits, norms=norms), wanted)
    found = rotate_and_write(rotating.qk, rotating.v, rotating.tables, rotating.kv, rotating.rows.slots, norms=norms)
    close(found, queries)
    for scene in (attending, rotating):
        close(scene.pool.nan_to_num(9.0), before.pool.nan_to_num(9.0))


def test_norms_of_other_heads_are_refused() -> None:
    scene = Scene(Batch(((4, 1),)))
    with pytest.raises(ValueError, match="norms are not contiguous float32"):
        decoded(scene, 1, norms=(torch.ones(2, 16), 1e-6))


def test_a_row_has_the_same_bits_in_every_batch_of_as_many_splits() -> None:
    rows = ((70, 1), (3, 1), (33, 1))
    together = Scene(Batch(rows))
    found = decoded(together, 4)
    alone = Scene(Batch(rows[:1]))
    alone.pool, alone.qk, alone.v = together.pool, together.qk[:1], together.v[:1]
    alone.tables = (together.tables[0][:1], together.tables[1][:1])
    alone.rows = replace(
        together.rows, query_start=torch.tensor([0, 1]), kv_lens=together.rows.kv_lens[:1],
        block_table=together.rows.block_table[:1], slots=together.rows.slots[:1],
    )  # fmt: skip
    assert torch.equal(decoded(alone, 4), found[:1])


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("sinks", [(), (2.0, -1.0), (-INF, 0.0)], ids=str)
def test_padding_without_keys_answers_zero(splits: int, sinks: tuple[float, ...]) -> None:
    scene = Scene(Batch(((20, 1), (5, 1)), sinks=sinks))
    scene.rows.kv_lens[1] = 0
    found = decoded(scene, splits)
    assert not found[1].any()
    scene.rows.kv_lens[1] = 6
    close(found[:1], scene.wanted()[1][:1])


PREFILLS = {
    "fresh": Batch(((0, 17), (0, 1), (0, 16)), group=2),
    "behind a prefix": Batch(((40, 9), (15, 18)), group=2),
    "mixed": Batch(((20, 1), (0, 9), (5, 12), (61, 1), (3, 0)), group=4, kv_heads=1),
    "groups of 7": Batch(((20, 9),), group=7),
    "two KV heads of 80": Batch(((20, 9),), group=1, kv_heads=2, head_dim=80),
    "window": Batch(((30, 19), (0, 9)), window=20),
    "window of two tiles": Batch(((33, 20),), window=32),
    "window of one": Batch(((5, 20),), window=1),
    "soft cap": Batch(((30, 12),), soft_cap=3.0),
    "sinks": Batch(((30, 12), (0, 1), (0, 17)), sinks=(2.0, -1.0)),
    "sinks, window": Batch(((30, 19), (0, 9)), window=20, sinks=(2.0, -INF)),
    "sinks, groups of 7": Batch(((20, 9),), group=7, soft_cap=3.0, sinks=tuple(map(float, range(-3, 4)))),
    "float8": Batch(((30, 12), (0, 1)), kv_dtype=FLOAT8),
    "float8, scaled": Batch(((30, 12), (0, 1)), kv_dtype=FLOAT8, kv_scales=(0.02, 3.0), window=20, sinks=(2.0, -1.0)),
}


@pytest.mark.parametrize("name", PREFILLS)
def test_rows_with_many_queries(name: str) -> None:
    scene = Scene(PREFILLS[name])
    queries, wanted = scene.wanted()
    out = scene.empty()
    scales = scene.batch.kv_scales
    prefill(queries, scene.kv, scene.rows, out, scene.batch.scoring, kv_scales=scales, block_m=16, block_n=16)
    close(out, wanted)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.02, 3.0)], ids=str)
def test_rotation_and_write_in_float8(scales: tuple[float, float]) -> None:
    scene = Scene(Batch(((5, 9), (0, 1)), 3, 2, 80, kv_dtype=FLOAT8, kv_scales=scales))
    found = Scene(scene.batch)
    queries = rotate_and_write(found.qk, found.v, found.tables, found.kv, found.rows.slots, kv_scales=scales)
    close(queries, scene.wanted()[0], DENSE)
    check_pool(found.pool, scene.pool)


def test_every_value_and_every_middle_of_two_in_float8() -> None:
    """Bytes as torch has them, beyond the largest the largest, NaN; and back."""
    codes = torch.arange(256, dtype=torch.uint8).view(FLOAT8)
    values = codes.float()[codes.float().isfinite()].sort().values
    middles = (values[1:] + values[:-1]) / 2
    beside = [torch.nextafter(middles, torch.full_like(middles, to)) for to in (-INF, INF)]
    edges = torch.tensor([448.0, 449.0, 464.0, 465.0, 1e30, INF, -465.0, -INF, float("nan"), 2**-10, -(2**-11), 1e-40])
    x = torch.cat((values, middles, *beside, edges))
    x = torch.cat((x, torch.zeros(-len(x) % 16))).view(-1, 1, 16)
    tokens = len(x)
    pool = torch.zeros((-(-tokens // BLOCK), 2, 1, BLOCK, 16), dtype=FLOAT8)
    rotate_and_write(torch.cat((x, x), 1), x, None, pool, torch.arange(tokens))
    wanted = x[:, 0].clamp(-448, 448).to(FLOAT8).float()
    for which in (0, 1):
        stored = pool[:, which].float().reshape(-1, 16)[:tokens]
        torch.testing.assert_close(stored, wanted, rtol=0, atol=0, equal_nan=True)
    # A query that sees one key answers its value, whatever the byte is.
    rows = PagedRows(torch.arange(17), torch.ones(16, dtype=torch.int64), torch.arange(16)[:, None], torch.arange(16))
    pool = torch.zeros((16, 2, 1, BLOCK, 16), dtype=torch.uint8)
    pool[:, 1, 0, 0] = codes.view(torch.uint8).view(16, 16)
    out = torch.zeros(16, 1, 16)
    prefill(torch.ones(16, 1, 16), pool.view(FLOAT8), rows, out, Scoring(1.0), block_m=16, block_n=16)
    torch.testing.assert_close(out[:, 0], codes.float().view(16, 16), rtol=0, atol=0, equal_nan=True)


def test_two_kernels_share_a_step() -> None:
    """Each leaves the rows of the other alone."""
    scene = Scene(PREFILLS["mixed"])
    queries, wanted = scene.wanted()
    out = scene.empty()
    prefill(queries, scene.kv, scene.rows, out, scene.batch.scoring, more_than=4, block_m=16, block_n=32)
    assert (out[[0, 22]] == 7.0).all()
    close(out[1:22], wanted[1:22])
    workspace = make_workspace(5, 4, 1, 16, queries=4, num_splits=2, device=torch.device("cpu"))
    decode(queries, None, None, scene.kv, scene.rows, out, scene.batch.scoring, workspace)
    close(out, wanted)


def test_rows_are_found_beyond_the_first_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_prefill, "SCANNED_ROWS", 2)
    scene = Scene(Batch(((0, 3), (5, 0), (0, 9), (2, 1), (1, 10)), group=2))
    queries, wanted = scene.wanted()
    out = scene.empty()
    prefill(queries, scene.kv, scene.rows, out, scene.batch.scoring, block_m=16, block_n=16)
    close(out, wanted)


def test_how_many_queries_decoding_takes() -> None:
    assert queries_of_tile(4, 1) == 1
    assert [queries_of_tile(4, longest) for longest in (2, 4, 5, 16)] == [4, 4, 16, 16]
    assert queries_of_tile(4, 17) == 4  # long rows are there: only what costs nothing beside a single query
    assert queries_of_tile(7, 100) == 2
    assert queries_of_tile(64, 1) == 1
    assert queries_of_tile(64, 2) == 1


def test_splits_follow_from_the_number_of_rows() -> None:
    assert choose_num_splits(1, 8, 132) == MAX_SPLITS
    assert choose_num_splits(8, 8, 132) == 8
    assert choose_num_splits(256, 8, 132) == 1
    assert choose_num_splits(0, 8, 132) == MAX_SPLITS


def test_what_kernels_cannot_read_is_refused() -> None:
    scene = Scene(Batch(((5, 2),)))
    with pytest.raises(ValueError, match="with contiguous blocks"):
        attention.check_pool(scene.kv.transpose(2, 3), 1, 16)
    with pytest.raises(ValueError, match="no power of two"):
        attention.check_pool(torch.zeros(2, 2, 1, 24, 16), 1, 16)
    with pytest.raises(ValueError, match="heads are not contiguous"):
        rotate_and_write(scene.qk.transpose(0, 1), scene.v, None, scene.kv, scene.rows.slots)
    with pytest.raises(ValueError, match="float32 table of 2 x 16"):
        rotate_and_write(scene.qk, scene.v, (scene.tables[0][:1],) * 2, scene.kv, scene.rows.slots)
    with pytest.raises(ValueError, match=r"sinks are not contiguous float32 \[2\]"):
        prefill(scene.qk[:, :2], scene.kv, scene.rows, scene.empty(), Scoring(1.0, sinks=torch.zeros(3)))
    with pytest.raises(ValueError, match="has no scales"):
        rotate_and_write(scene.qk, scene.v, None, scene.kv, scene.rows.slots, kv_scales=(2.0, 1.0))
    with pytest.raises(ValueError, match="scales of keys and values are positive"):
        rotate_and_write(scene.qk, scene.v, None, scene.kv.to(FLOAT8), scene.rows.slots, kv_scales=(1.0, 0.0))
    with pytest.raises(ValueError, match="a positive scale"):
        prefill(scene.qk[:, :2], scene.kv, scene.rows, scene.empty(), Scoring(0.0))
