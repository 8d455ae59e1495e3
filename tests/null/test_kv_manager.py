"""KV bookkeeping: identity, pools, tables, hits and what leaves its reach."""

from __future__ import annotations

import subprocess
import sys

import pytest
from core_fixtures import MIXED, group
from drawn_examples import num_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.kv.groups import GroupGeometry, RequestBlocks
from penstock.core.kv.manager import KvManager
from penstock.core.kv.pool import BlockPool
from penstock.core.kv.prefix import ChainHasher, chain_root
from penstock.errors import IntegrityError
from penstock.types.kv import KvCapacity, Visibility

FULL = group("full", Visibility.ALL, 4)


def manager(groups, *num_blocks, caching=True) -> KvManager:
    return KvManager(KvCapacity(groups=groups, num_blocks=num_blocks), model_identity="m", caching=caching)


def compute(kv: KvManager, tokens, upto=None, salt="") -> RequestBlocks:
    """A request whose first ``upto`` tokens are computed and confirmed."""
    blocks = kv.open(salt, ())
    advance(kv, blocks, tokens, len(tokens) if upto is None else upto)
    return blocks


def advance(kv: KvManager, blocks: RequestBlocks, tokens, computed) -> None:
    assert kv.reserve(blocks, computed) is not None
    kv.seal(blocks, tokens, computed)
    kv.free_passed(blocks, computed)


# -- identity ----------------------------------------------------------------------------------------------------


def test_identity_is_the_same_in_every_process():
    """A recorded value: changing it makes every stored block of every user unreachable."""
    code = (
        "from penstock.core.kv.prefix import *; from penstock.types.kv import *;"
        "spec = KvGroupSpec(name='full', visibility=Visibility.ALL, entries_per_block=4, bytes_per_block=64);"
        "root = chain_root('m', spec, 'salt', ('adapter',)); chain = [];"
        "ChainHasher(4).extend(root, chain, list(range(8)), 2); print(chain[1].hex())"
    )
    recorded = "6c185faac79a2cc77f9bb5d5e91853d3"
    for seed in ("0", "1"):
        answer = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert answer.stdout.strip() == recorded


def test_everything_that_changes_kv_changes_identity():
    roots = {
        chain_root("m", FULL, "", ()),
        chain_root("n", FULL, "", ()),
        chain_root("m", group("other", Visibility.ALL, 4), "", ()),
        chain_root("m", group("full", Visibility.ALL, 2, 2), "", ()),
        chain_root("m", group("full", Visibility.WINDOW, 4, window=9), "", ()),
        chain_root("m", FULL, "s", ()),
        chain_root("m", FULL, "", ("s",)),
        chain_root("m", FULL, "", ("s", "")),
        chain_root("m", FULL, "", ("", "s")),
    }
    assert len(roots) == 9
    assert chain_root("m", FULL, "", ()) == chain_root("m", group("full", Visibility.ALL, 4, pool=1), "", ())


@given(st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8), st.integers(0, 7), st.integers(0, 2**32 - 1))
def test_a_token_changes_its_block_and_all_later_ones(tokens, at, other):
    first, second = [], []
    changed = [*tokens[:at], other, *tokens[at + 1 :]]
    ChainHasher(2).extend(b"root", first, tokens, 4)
    ChainHasher(2).extend(b"root", second, changed, 4)
    same = [a == b for a, b in zip(first, second, strict=True)]
    assert same == [changed == tokens or index < at // 2 for index in range(4)]


# -- pool --------------------------------------------------------------------------------------------------------


def test_cached_blocks_are_evicted_least_recently_released_first():
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    for index, block in enumerate(blocks):
        pool.seal(block, bytes([index]))
    pool.release([blocks[1], blocks[0], blocks[2]])
    pool.acquire([blocks[1]])
    pool.release([blocks[1]])
    assert pool.allocate(2) == [blocks[0], blocks[2]]
    assert pool.lookup(bytes([1])) == blocks[1]
    assert pool.lookup(bytes([0])) is None
    assert pool.num_evictions == 2


def test_free_blocks_go_before_cached_ones():
    pool = BlockPool(2)
    cached, plain = pool.allocate(2)
    pool.seal(cached, b"h")
    pool.release([cached, plain])
    assert pool.allocate(1) == [plain]
    assert pool.lookup(b"h") == cached


def test_a_second_block_of_the_same_content_stays_anonymous():
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.seal(first, b"h")
    pool.seal(second, b"h")
    pool.release([second])
    assert pool.num_available == 1
    assert pool.lookup(b"h") == first
    assert pool.violations([1, 0]) == []


def test_a_block_released_twice_is_noticed():
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.release([block])
    with pytest.raises(IntegrityError, match="more often"):
        pool.release([block])


def test_violations_name_what_is_wrong():
    pool = BlockPool(2)
    pool.allocate(1)
    assert any("1 references, tables and transfers make 0" in text for text in pool.violations([0, 0]))


# -- hits --------------------------------------------------------------------------------------------------------


def test_a_prefix_is_hit_in_whole_blocks():
    kv = manager((FULL,), 20)
    tokens = list(range(10))
    compute(kv, tokens)
    assert kv.lookup(kv.open("", ()), tokens, 9) == 8
    assert kv.lookup(kv.open("", ()), tokens, 7) == 4
    assert kv.lookup(kv.open("", ()), tokens[:4] + [99] * 6, 9) == 4
    assert kv.lookup(kv.open("other", ()), tokens, 9) == 0


def test_without_caching_nothing_is_hit():
    kv = manager((FULL,), 20, caching=False)
    tokens = list(range(10))
    kv.release(compute(kv, tokens))
    assert kv.lookup(kv.open("", ()), tokens, 9) == 0
    assert kv.pools[0].num_available == 20


def test_lookup_changes_no_block():
    kv = manager((FULL,), 4)
    tokens = list(range(16))
    kv.release(compute(kv, tokens))
    for _ in range(3):
        assert kv.lookup(kv.open("", ()), tokens, 8) == 8  # the first half only
    assert kv.pools[0].num_used == 0
    kv.pools[0].allocate(1)
    # Touching by look-up would have saved the end of the prefix at the cost of its beginning.
    assert kv.lookup(kv.open("", ()), tokens, 16) == 12


def test_groups_agree_on_the_longest_common_hit():
    """Block sizes of 4 and 6 tokens: hits are multiples of both, so the fixpoint walks down to 12."""
    kv = manager((FULL, group("other", Visibility.ALL, 6)), 40)
    tokens = list(range(30))
    compute(kv, tokens)
    assert kv.lookup(kv.open("", ()), tokens, 29) == 24
    assert kv.lookup(kv.open("", ()), tokens, 23) == 12
    assert kv.lookup(kv.open("", ()), tokens, 11) == 0


def test_a_window_needs_only_its_own_blocks():
    window = group("window", Visibility.WINDOW, 4, window=5)
    kv = manager((window,), 30)
    tokens = list(range(32))
    blocks = compute(kv, tokens)
    table = blocks.tables[0]
    assert table.first == 7  # position 32 reads from 28 on
    kv.release(blocks)
    again = kv.open("", ())
    assert kv.lookup(again, tokens, 31) == 28
    kv.attach(again, 28)
    assert again.tables[0].first == 6
    assert len(again.tables[0].live) == 1
    # The block before is gone: 28 is no hit any more, 24 is one again, because it reads other blocks.
    kv.pools[0]._forget(again.tables[0].blocks[6])
    assert kv.lookup(kv.open("", ()), tokens, 31) == 24


def test_a_state_is_hit_at_its_checkpoints():
    kv = manager((group("state", Visibility.STATE, 1, 8),), 10)
    tokens = list(range(40))
    blocks = compute(kv, tokens, upto=20)
    assert len(blocks.tables[0].live) == 1
    other = kv.open("", ())
    assert kv.lookup(other, tokens, 39) == 16
    kv.attach(other, 16)
    assert other.tables[0].first == 1
    assert len(other.tables[0].live) == 1


def test_mixed_groups_hit_only_where_all_can():
    kv = manager(MIXED, 200, 20)
    tokens = [i % 50 for i in range(600)]
    compute(kv, tokens)
    assert kv.lookup(kv.open("", ()), tokens, 599) == 512
    assert kv.lookup(kv.open("", ()), tokens, 511) == 256
    assert kv.lookup(kv.open("", ()), tokens, 255) == 0


@settings(max_examples=num_examples(60), deadline=None)
@given(
    evicted=st.sets(st.integers(0, 15)),
    limit=st.integers(0, 63),
    window=st.integers(1, 20),
    visibility=st.sampled_from(Visibility),
)
def test_hits_equal_their_definition(evicted, limit, window, visibility):
    """Against the definition in KvGroupSpec, tried for every length from the longest down."""
    spec = group("g", visibility, 4, window=window if visibility is Visibility.WINDOW else None)
    kv = manager((spec,), 64)
    blocks, tokens = kv.open("", ()), list(range(64))
    kv.groups[0].hasher.extend(blocks.roots[0], blocks.chains[0], tokens, 16)
    gone = {blocks.chains[0][index] for index in evicted}
    found = kv.longest_prefix(blocks, tokens, limit, lambda g, block_hash: block_hash not in gone)

    def is_hit(length):
        low = {Visibility.ALL: 0, Visibility.STATE: length - 1, Visibility.WINDOW: max(0, length - window + 1)}
        read = {position // 4 for position in range(low[visibility], length)}
        return length % 4 == 0 and not read & evicted

    assert found == next(length for length in range(limit, -1, -1) if length == 0 or is_hit(length))


# -- room --------------------------------------------------------------------------------------------------------


def test_reservation_is_all_or_nothing_over_groups():
    kv = manager((FULL, group("two", Visibility.ALL, 4, pool=1)), 5, 2)
    blocks = kv.open("", ())
    assert kv.reserve(blocks, 8) == [(0, (0, 1)), (1, (0, 1))]
    assert blocks.reserved == 8
    assert kv.reserve(blocks, 9) is None
    assert kv.pools[0].num_available == 3
    assert kv.reserve(blocks, 7) == []


def test_a_window_holds_a_constant_number_of_blocks():
    window = group("window", Visibility.WINDOW, 16, window=64)
    kv = manager((window,), 6)
    tokens = [1] * 1000
    blocks = kv.open("", ())
    for computed in range(1, 1000):
        advance(kv, blocks, tokens, computed)
        assert kv.pools[0].num_used <= 5
    kv.release(blocks)
    assert kv.pools[0].num_used == 0


def test_next_event_is_never_late_nor_idle():
    kv = manager(MIXED, 60, 20)
    tokens = [1] * 700
    blocks = kv.open("", ())
    advance(kv, blocks, tokens, 1)
    seen = 0
    for computed in range(2, 700):
        assert kv.reserve(blocks, computed) is not None
        before = [(table.first, table.sealed) for table in blocks.tables]
        due = computed >= blocks.next_event
        kv.seal(blocks, tokens, computed)
        kv.free_passed(blocks, computed)
        changed = before != [(table.first, table.sealed) for table in blocks.tables]
        assert changed == due
        seen += changed
    assert seen > 40


def test_peak_blocks_of_a_group_with_reach_do_not_grow_with_length():
    window = GroupGeometry(group("window", Visibility.WINDOW, 16, window=64))
    assert window.peak_blocks(100_000, 32) == window.peak_blocks(1_000, 32) < 12
    assert GroupGeometry(FULL).peak_blocks(100, 32) == 25


def test_groups_of_one_name_are_refused():
    with pytest.raises(ValueError, match="must differ"):
        manager((FULL, FULL), 4)
