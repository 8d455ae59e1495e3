"""The truths of ``tests/cpu/test_executor_truth.py`` on a card: recorded steps, in float32, against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_executor_truth as truth
import torch
from executor_fixtures import tiny_spec
from test_executor_truth import *  # noqa: F403

from penstock.executor.local import LocalExecutor
from penstock.platforms.probe import probe_platform

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class CudaLab(truth.Lab):
    backends = ("cuda_sdpa", "reference_torch")

    def __init__(self, name: str, directory: Path, *, graphs: bool) -> None:
        super().__init__(name, directory, launches=True)
        self._graphs = graphs

    def start(self, **changes: Any) -> tuple[LocalExecutor, truth.PlanMaker]:
        executor = LocalExecutor(tiny_spec(self.directory, platform=probe_platform(), graphs=self._graphs, **changes))
        self._open.append(executor)
        return executor, truth.PlanMaker(executor.start())


@pytest.fixture(scope="module", params=[(name, graphs) for name in truth.FAMILIES for graphs in (True, False)], ids=str)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[truth.Lab]:
    pytest.importorskip("transformers")
    name, graphs = request.param
    lab = CudaLab(name, tmp_path_factory.mktemp(name), graphs=graphs)
    yield lab
    lab.close()
