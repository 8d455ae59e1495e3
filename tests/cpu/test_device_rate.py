"""The rate of a device's memory is measured once, and a device that cannot be measured is left as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from penstock.kernels import device_rate
from penstock.kernels.device_rate import with_measured_rate
from penstock.platforms import rates
from penstock.platforms.recorded import RECORDED
from penstock.types.facts import PlatformFacts


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PlatformFacts:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    monkeypatch.setattr(rates, "_in_this_process", {})
    return RECORDED["h100"]


def test_it_is_measured_once(unmeasured: PlatformFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(device_rate, "copied_bytes_per_s", lambda device: asked.append(device) or 3_000_000_000_000)
    measured = with_measured_rate(unmeasured)
    assert measured.accelerators[0].copied_bytes_per_s == 3_000_000_000_000
    assert rates.with_known_rates(unmeasured.accelerators) == measured.accelerators
    assert with_measured_rate(measured) is measured
    assert asked == [torch.device("cuda", 0)]


def test_what_is_no_cuda_device_is_not_measured(unmeasured: PlatformFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_rate, "copied_bytes_per_s", lambda device: pytest.fail("measured"))
    for platform in (RECORDED["laptop-avx2"], RECORDED["mi300x"], dataclasses.replace(unmeasured, name="cpu")):
        assert with_measured_rate(platform) is platform


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without the device")
def test_a_device_that_cannot_be_measured_stays_as_it_is(unmeasured: PlatformFacts, tmp_path: Path) -> None:
    assert with_measured_rate(unmeasured) is unmeasured
    assert list(tmp_path.iterdir()) == []
