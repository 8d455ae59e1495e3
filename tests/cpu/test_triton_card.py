"""What launches and what is compiled ahead of time take a device for, by its compute capability."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from penstock.kernels.triton import attention_prefill, card, early, float8

GPU = torch.device("cuda", 0)
# (capability as torch tells it, ROCm, launches dependents, operands from shared memory, float8)
DEVICES = [
    ((8, 0), None, False, False, False),
    ((8, 9), None, False, False, True),
    ((9, 0), None, True, True, True),
    ((10, 0), None, True, True, True),
    ((12, 0), None, True, False, True),
    ((9, 4), "7.2", False, False, False),
    ((9, 5), "7.2", False, False, False),
    ((11, 0), "7.2", False, False, False),
]


@pytest.fixture(autouse=True)
def _forget():
    card.capability_of.cache_clear()
    yield
    card.capability_of.cache_clear()


@pytest.mark.parametrize(("told", "hip", "dependents", "shared", "fp8"), DEVICES)
def test_a_device_is_what_its_maker_and_its_capability_say(monkeypatch, told, hip, dependents, shared, fp8) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: told)
    capability = card.capability_of(GPU)
    assert capability == (card.NONE if hip else told)
    assert card.launches_dependents(capability) == dependents
    assert float8.has_float8(GPU) == fp8
    few = torch.empty(4, 2).as_subclass(_OnTheCard)
    assert early.launches_early(few) == dependents
    assert not early.launches_early(torch.empty(1, 2).as_subclass(_OnTheCard))
    tile = attention_prefill.tile_of(capability, 128, 2)
    assert tile == ((256, 64, 8, 3) if shared else (64, 32, 4, 3))
    assert attention_prefill.tile_of(capability, 128, 4) == (32, 32, 4, 2)


def test_the_interpreter_is_no_device() -> None:
    assert card.capability_of(torch.device("cpu")) == card.NONE


class _OnTheCard(torch.Tensor):
    device = GPU
