"""The store of responses: bounded, conversations kept or lost as chains, exact counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.frontend.responses.store import BrokenChainError, ResponseStore, StoredResponse


def stored(name, previous=None, nbytes=1):
    return StoredResponse(id=name, body=b"x" * (nbytes // 2), input=b"y" * (nbytes - nbytes // 2), previous_id=previous)


def test_a_chain_comes_first_one_first():
    store = ResponseStore(10, 100)
    store.add(stored("a"))
    store.add(stored("b", "a"))
    store.add(stored("c", "b"))
    assert [one.id for one in store.chain("c")] == ["a", "b", "c"]
    assert [one.id for one in store.chain("a")] == ["a"]


def test_use_keeps_the_whole_conversation():
    store = ResponseStore(4, 100)
    for name, previous in (("a", None), ("b", "a"), ("x", None), ("y", None)):
        store.add(stored(name, previous))
    store.chain("b")
    store.add(stored("z"))
    assert [name for name in "abxyz" if store.get(name)] == ["a", "b", "y", "z"]


def test_bytes_count_too():
    store = ResponseStore(10, 100)
    store.add(stored("a", nbytes=60))
    store.add(stored("b", nbytes=60))
    assert store.get("a") is None
    assert store.num_bytes == 60
    store.add(stored("c", nbytes=101))
    assert len(store) == store.num_bytes == 0


def test_what_is_missing_is_named():
    store = ResponseStore(10, 100)
    store.add(stored("a"))
    store.add(stored("b", "a"))
    assert store.delete("a")
    assert not store.delete("a")
    for name, missing in (("b", "a"), ("nobody", "nobody")):
        with pytest.raises(BrokenChainError) as caught:
            store.chain(name)
        assert caught.value.missing_id == missing


KINDS = ["add", "go_on", "delete", "use"]
actions = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 12), st.integers(0, 40)))


@given(actions)
def test_never_above_its_limits_and_never_a_gap_by_itself(actions):
    store = ResponseStore(5, 100)
    deleted, added = set(), []
    for action, number, nbytes in actions:
        name = added[number % len(added)] if added else "none"
        if action == "delete" and store.delete(name):
            deleted.add(name)
        elif action == "use" and store.get(name) and not deleted:
            assert store.chain(name)[-1].id == name
        elif action == "add" or (action == "go_on" and store.get(name)):
            added.append(f"r{len(added)}")
            store.add(stored(added[-1], name if action == "go_on" else None, nbytes))
        alive = [one for one in map(store.get, added) if one is not None]
        assert len(alive) == len(store) <= 5
        assert sum(one.nbytes for one in alive) == store.num_bytes <= 100
        if not deleted:  # what is there has all that it goes on from
            assert all(one.previous_id is None or store.get(one.previous_id) for one in alive)
