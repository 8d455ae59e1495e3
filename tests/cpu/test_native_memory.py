"""Arena and programs of the native library: reuse in order, what keeps memory alive, and what cannot be recorded."""

from __future__ import annotations

import gc
import random
import threading

import pytest
import torch

from penstock.kernels.native.memory import ALIGNMENT, Arena, ArenaFullError, empty, results_in
from penstock.kernels.pages import LINE, Regions
from penstock.platforms.probe import extension_missing

needs_extension = pytest.mark.skipif(bool(extension_missing()), reason=extension_missing() or "-")


def buffer(nbytes: int) -> torch.Tensor:
    return torch.zeros(nbytes, dtype=torch.uint8)


def test_the_lowest_free_region_is_given_again_once_its_tensor_is_gone() -> None:
    arena = Arena(buffer(1 << 12))
    first, second = arena.allocate((10,), torch.float32), arena.allocate((3, 5), torch.int64)
    assert second.data_ptr() - first.data_ptr() == ALIGNMENT
    assert (first.shape, first.dtype) == ((10,), torch.float32)
    assert (second.shape, second.dtype) == ((3, 5), torch.int64)
    place = first.data_ptr()
    del first
    assert arena.allocate((16,), torch.float32).data_ptr() == place
    assert arena.peak == 3 * ALIGNMENT


@pytest.mark.parametrize("offset", [0, 1, 63])
def test_regions_are_aligned_wherever_the_buffer_lies(offset: int) -> None:
    arena = Arena(buffer(1 << 10)[offset:])
    kept = [arena.allocate((size,), torch.int8) for size in (1, 64, 65, 0)]
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in kept if tensor.numel())
    assert kept[3].shape == (0,)


def test_a_view_keeps_its_region() -> None:
    arena = Arena(buffer(1 << 10))
    whole = arena.allocate((4, 16), torch.float32)
    place, view = whole.data_ptr(), whole[2:].view(torch.int32).reshape(2, 4, 4)[1]
    del whole
    assert arena.allocate((1,), torch.int8).data_ptr() != place
    del view
    gc.collect()
    assert arena.allocate((4, 16), torch.float32).data_ptr() == place


def test_a_tensor_outlives_arena_and_buffer() -> None:
    memory = buffer(1 << 10)
    arena = Arena(memory)
    kept = arena.allocate((8,), torch.float32)
    del arena, memory
    gc.collect()
    kept.fill_(3.0)
    assert kept.sum() == 24.0


def test_a_full_arena_says_so_and_serves_again_when_room_comes_back() -> None:
    arena = Arena(buffer(4 * ALIGNMENT + ALIGNMENT - 1))
    kept = [arena.allocate((ALIGNMENT,), torch.uint8) for _ in range(4)]
    with pytest.raises(ArenaFullError, match="no region of 64 bytes"):
        arena.allocate((1,), torch.uint8)
    del kept[1:3]  # two neighbours become one region
    arena.allocate((2 * ALIGNMENT,), torch.uint8)


def test_regions_never_overlap_and_all_come_back() -> None:
    dice = random.Random(5)
    arena = Arena(buffer(1 << 16))
    held: list[torch.Tensor] = []
    for step in range(2000):
        if held and dice.random() < 0.5:
            value, tensor = held.pop(dice.randrange(len(held)))
            assert (tensor == value).all()
        else:
            tensor = arena.allocate((dice.randrange(1, 700),), torch.uint8)
            tensor.fill_(step % 251)
            held.append((step % 251, tensor))
    held.clear()
    del tensor
    assert arena.allocate(((1 << 16) - ALIGNMENT,), torch.uint8).numel() > 0


def test_only_the_thread_that_asked_for_it_allocates_in_an_arena() -> None:
    memory = buffer(1 << 12)
    inside: list[bool] = []

    def place() -> None:
        start = memory.data_ptr()
        inside.append(start <= empty((8,), torch.float32).data_ptr() < start + memory.numel())

    with results_in(Arena(memory)):
        place()
        thread = threading.Thread(target=place)
        thread.start()
        thread.join()
    place()
    assert inside == [True, False, False]


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    from penstock.kernels.native import norm

    return norm.rms_norm(0, x, weight, 1e-5)


@needs_extension
@torch.inference_mode()
def test_a_program_computes_from_what_its_inputs_hold_when_it_runs() -> None:
    from penstock.kernels.native.program import record

    x, weight = torch.randn(5, 48), torch.randn(48)
    memory = buffer(1 << 14)

    def compute() -> torch.Tensor:
        out = x
        for _ in range(4):  # results between lie in two regions in turn
            out = normed(out.view(5, 1, 48), weight).reshape(5, 48)[:, :]
        return out

    program, answer = record(compute, memory)
    assert len(program) == 4
    assert not answer.any()  # nothing has run
    for _ in range(2):
        x.normal_()
        program.run()
        assert torch.equal(answer, compute())
    assert [name for name, _ in program.run_timed()] == ["rms_norm"] * 4
    assert torch.equal(answer, compute())


@needs_extension
@torch.inference_mode()
def test_programs_of_one_buffer_run_in_any_order() -> None:
    from penstock.kernels.native.program import record

    memory, weight = buffer(1 << 14), torch.randn(16)
    inputs = [torch.randn(rows, 16) for rows in (1, 4, 9)]
    programs = [record(lambda x=x: normed(normed(x, weight), weight), memory) for x in inputs]
    for place in (2, 0, 1, 0, 2, 2):
        program, answer = programs[place]
        program.run()
        assert torch.equal(answer, normed(normed(inputs[place], weight), weight))


REFUSED = {
    "computes": (lambda x: x + 1, "aten.add"),
    "allocates": (lambda x: torch.empty(3), "aten.empty"),
    "makes": (lambda x: torch.tensor([1, 2]), "aten"),
    "composite": (lambda x: torch.nn.functional.linear(x, x), "aten.mm"),
    "copies": (lambda x: x.t().contiguous(), "aten.clone"),
    "hidden copy": (lambda x: x.t().reshape(-1), "aten.clone"),
    "converts": (lambda x: x.double(), "aten._to_copy"),
    "writes": (lambda x: x.copy_(x), "aten.copy_"),
    "reads a list": (lambda x: x.tolist(), "tolist or numpy reads values"),
    "reads an array": (lambda x: x.numpy(), "tolist or numpy reads values"),
    "reads a number": (lambda x: x[0, 0].item(), "_local_scalar_dense"),
    "branches": (lambda x: 1 if x[0, 0] else 2, "_local_scalar_dense|aten.is_nonzero"),
    "counts": (lambda x: range(int(x[0, 0])), "_local_scalar_dense"),
    "too large": (lambda x: normed(x.expand(900, 3, 4), torch.ones(4)[:4]), "torch|no region of"),
}


@needs_extension
@pytest.mark.parametrize("case", REFUSED)
@torch.inference_mode()
def test_what_would_be_missing_from_a_program_is_refused_by_name(case: str) -> None:
    from penstock.kernels.native.program import RecordingRefusedError, record

    compute, reason = REFUSED[case]
    x = torch.ones(3, 4)
    with pytest.raises(RecordingRefusedError, match=reason):
        record(lambda: compute(x), buffer(1 << 10))
    # Nothing is left behind: calls run at once again, in torch's memory.
    assert torch.allclose(normed(x, torch.ones(4)), x, atol=1e-4)


@needs_extension
@torch.inference_mode()
def test_views_and_shapes_are_free() -> None:
    from penstock.kernels.native.program import record

    x = torch.randn(4, 8)

    def look() -> int:
        parts = x.view(2, 2, 8).transpose(0, 1).unbind(0)
        q, k = x[:, :3], x.split([3, 5], dim=1)[1]
        assert x.float() is x
        assert x.contiguous() is x
        assert x.reshape(-1, 1, 8).flatten(0, 1).shape == x.shape
        return len(parts) + q.shape[1] + k.stride(0) + len(x)

    program, answer = record(look, buffer(64))
    assert answer == 2 + 3 + 8 + 4
    assert len(program) == 0
    program.run()


def test_pieces_of_a_region_are_apart_and_own_no_more_than_themselves() -> None:
    regions = Regions(region_bytes=1 << 12)
    pieces = [regions.take(nbytes) for nbytes in (1, 100, LINE, 1 << 13, 0, 3000)]
    for value, piece in enumerate(pieces):
        assert not piece.any()  # nobody wrote here before
        piece.fill_(value + 1)
    for value, piece in enumerate(pieces):
        assert (piece == value + 1).all()
        assert piece.data_ptr() % LINE == 0
        assert piece.untyped_storage().nbytes() == piece.numel()


def test_a_piece_keeps_its_region() -> None:
    regions = Regions(region_bytes=1 << 12)
    piece = regions.take(1 << 16)
    piece.fill_(7)
    del regions
    gc.collect()
    others = [Regions(region_bytes=1 << 12).take(1 << 16).fill_(9) for _ in range(8)]  # lie in what was given back
    assert (piece == 7).all()
    assert all((other == 9).all() for other in others)
