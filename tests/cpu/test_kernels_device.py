"""What is settled before a device computes: whose facts it has, and where its kernels are kept."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from penstock.errors import ConfigError
from penstock.kernels.device import prepare_device
from penstock.platforms.recorded import RECORDED

CARD = RECORDED["h200"].accelerators[0]
FIRST, SECOND = (dataclasses.replace(CARD, uuid=f"GPU-{letter}") for letter in "ab")
TWO = dataclasses.replace(RECORDED["h200"], accelerators=(FIRST, SECOND))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.delenv("TRITON_CACHE_DIR")


def computes_on(monkeypatch: pytest.MonkeyPatch, uuid: str, name: str = CARD.name) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(uuid=uuid, name=name))


@pytest.mark.parametrize(("uuid", "name"), [("a", CARD.name), ("of a slice", f"{CARD.name} MIG 1g.18gb"), ("", "old")])
def test_the_device_of_the_facts_and_those_that_they_cannot_know_are_taken(
    monkeypatch: pytest.MonkeyPatch, uuid: str, name: str
) -> None:
    computes_on(monkeypatch, uuid, name)
    prepare_device(TWO)


def test_a_device_that_is_hidden_from_the_facts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES=0 in two orders."""
    computes_on(monkeypatch, "b")
    alone = dataclasses.replace(TWO, accelerators=(FIRST,))
    with pytest.raises(ConfigError, match="Set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        prepare_device(alone)


def test_a_device_whose_facts_are_not_the_first_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    computes_on(monkeypatch, "b")
    with pytest.raises(ConfigError, match=r"^Set CUDA_DEVICE_ORDER=PCI_BUS_ID .* it is FASTEST_FIRST.*GPU-b.*GPU-a"):
        prepare_device(TWO)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    with pytest.raises(ConfigError, match="CUDA was started before it was set"):
        prepare_device(TWO)


def test_kernels_are_kept_in_the_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    prepare_device(RECORDED["h200"])
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    prepare_device(RECORDED["h200"])
    assert os.environ["TRITON_CACHE_DIR"] == "/elsewhere"
