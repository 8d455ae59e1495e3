"""Prompt expansion: every medium in its place, nothing else moved, and time that grows with the length alone."""

from __future__ import annotations

import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidRequestError
from penstock.frontend.media.expansion import MediaItem, Placement, expand_prompt

IMAGE, ROW, PAD = 900, 901, 902


def image(rows: int = 1, columns: int = 2, marker: tuple[int, ...] = (IMAGE,)) -> MediaItem:
    return MediaItem(
        kind="image",
        marker=marker,
        replacement=(*([PAD] * columns), ROW) * rows,
        takes_embedding=(*([True] * columns), False) * rows,
    )


def test_a_marker_becomes_its_run():
    expanded = expand_prompt((1, IMAGE, 2, IMAGE), [image(), image(rows=2, columns=1)])
    assert expanded.token_ids == (1, PAD, PAD, ROW, 2, PAD, ROW, PAD, ROW)
    assert expanded.placements == (Placement(1, 3, (1, 2)), Placement(5, 4, (5, 7)))
    assert expanded.mask == bytes([0, 1, 1, 0, 0, 1, 0, 1, 0])


def test_without_media_nothing_changes():
    assert expand_prompt([3, IMAGE, 4], []).token_ids == (3, IMAGE, 4)
    assert expand_prompt([], []).mask == b""


def test_what_was_put_in_is_not_read_again():
    item = MediaItem(kind="image", marker=(IMAGE,), replacement=(IMAGE,) * 3, takes_embedding=(True,) * 3)
    expanded = expand_prompt((IMAGE, 7, IMAGE), [item, item])
    assert expanded.token_ids == (IMAGE,) * 3 + (7,) + (IMAGE,) * 3
    assert [placement.offset for placement in expanded.placements] == [0, 4]


def test_markers_of_several_tokens_and_of_several_kinds():
    video = MediaItem(kind="video", marker=(5, 6), replacement=(PAD,), takes_embedding=(True,))
    picture = image(marker=(5, 6, 7))
    expanded = expand_prompt((5, 5, 6, 7, 5, 6, 5), [picture, video])
    assert expanded.token_ids == (5, PAD, PAD, ROW, PAD, 5)


@pytest.mark.parametrize(
    ("prompt", "items", "says"),
    [
        ((1, 2), [image()], "has 0 places"),
        ((IMAGE, 1), [image(), image()], "has 1 places"),
        ((IMAGE, IMAGE), [image()], "more places"),
        ((IMAGE, 8), [image(marker=(8,)), image()], "order"),
        ((IMAGE,), [image(columns=0)], "takes no token"),
    ],
)
def test_media_and_places_must_match(prompt, items, says):
    with pytest.raises(InvalidRequestError, match=says) as caught:
        expand_prompt(prompt, items)
    assert caught.value.param == "messages"


def test_masks_must_fit():
    with pytest.raises(ValueError, match="mask"):
        MediaItem(kind="image", marker=(1,), replacement=(1, 2), takes_embedding=(True,))
    with pytest.raises(ValueError, match="marker"):
        MediaItem(kind="image", marker=(), replacement=(1,), takes_embedding=(True,))


@given(st.lists(st.one_of(st.integers(0, 9), st.tuples(st.integers(1, 3), st.integers(1, 3))), max_size=40))
def test_the_expansion_undone_is_the_prompt(parts):
    items = [image(*part) for part in parts if isinstance(part, tuple)]
    prompt = [IMAGE if isinstance(part, tuple) else part for part in parts]
    expanded = expand_prompt(prompt, items)
    rest, end = [], 0
    for placement, item in zip(expanded.placements, items, strict=True):
        rest += [*expanded.token_ids[end : placement.offset], IMAGE]
        end = placement.offset + placement.length
        assert expanded.token_ids[placement.offset : end] == item.replacement
        assert all(expanded.mask[position] for position in placement.embed_positions)
    assert rest + list(expanded.token_ids[end:]) == prompt
    assert sum(expanded.mask) == sum(len(placement.embed_positions) for placement in expanded.placements)
    assert len(expanded.mask) == len(expanded.token_ids)


class Counted(list):
    """A prompt that counts how many of its tokens are read."""

    def __init__(self, values):
        super().__init__(values)
        self.reads = 0

    def __iter__(self):
        for value in super().__iter__():
            self.reads += 1
            yield value

    def __getitem__(self, key):
        found = super().__getitem__(key)
        self.reads += len(found) if isinstance(key, slice) else 1
        return found


@pytest.mark.parametrize("num_items", [1, 64, 1024])
def test_the_prompt_is_read_twice_at_most_however_many_media_it_has(num_items):
    """Once to find the markers, and once to copy what is between them."""
    prompt = Counted(([1] * 15 + [IMAGE]) * num_items + [2] * 1000)
    expanded = expand_prompt(prompt, [image(columns=3)] * num_items)
    assert prompt.reads <= 2 * len(prompt)
    assert len(expanded.token_ids) == len(prompt) + 3 * num_items


NOISE = 1024  # bytes: tracing itself allocates less between two bytecodes


def work_of(call):
    """Bytecodes that the module executes in ``call``, and bytes that they allocate, those that are given back at once
    included: a copy is one bytecode, however long it is."""
    operations = allocated = held = 0

    def trace(frame, event, argument):
        nonlocal operations, allocated, held
        if event == "call" and frame.f_globals.get("__name__") != expand_prompt.__module__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        operations += event == "opcode"
        grown = tracemalloc.get_traced_memory()[1] - held
        allocated += grown if grown > NOISE else 0
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 delivers opcodes only if a frame asked before settrace
    tracemalloc.start()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        tracemalloc.stop()
    return operations, allocated


def test_work_per_token_does_not_grow_with_the_number_of_media():
    """Nothing that was expanded already is walked through or copied for the next medium."""

    def per_token(num_items):
        prompt, items = ([1] * 15 + [IMAGE]) * num_items, [image(columns=3)] * num_items
        return [work / (len(prompt) + 3 * num_items) for work in work_of(lambda: expand_prompt(prompt, items))]

    (few_operations, few_bytes), (many_operations, many_bytes) = per_token(64), per_token(256)
    assert many_operations < 1.2 * few_operations
    # 8 for the list and 8 for the tuple, with room for a list that grows: a copy for each medium makes it hundreds.
    assert 8 < few_bytes < 32
    assert 8 < many_bytes < 32
