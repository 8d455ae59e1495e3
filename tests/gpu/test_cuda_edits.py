"""``tests/cpu/test_device_edits.py`` on a card, recorded and not, in float32: the host's sampler over the CPU's logits
decides what is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from executor_fixtures import PlanMaker, save_tiny_model, tiny_spec
from test_device_edits import *  # noqa: F403
from test_device_edits import HERE, Start

from penstock.executor.local import LocalExecutor
from penstock.platforms.probe import probe_platform

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module", params=[True, False], ids=["recorded", "eager"])
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("llama")
    save_tiny_model("llama", directory)
    started: list[LocalExecutor] = []

    def make(*, launches: bool, depth: int = 2, **changes: Any) -> tuple[LocalExecutor, PlanMaker]:
        platform = probe_platform() if launches else HERE
        spec = tiny_spec(directory, platform=platform, depth=depth, graphs=request.param, **changes)
        executor = LocalExecutor(spec)
        started.append(executor)
        return executor, PlanMaker(executor.start())

    yield make
    for executor in started:
        executor.stop()
