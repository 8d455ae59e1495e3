"""scripts/on_card.py: every part is a command that exists, and its figures stand beside the right anchors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from penstock.cli import bench

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("on_card", ROOT / "scripts" / "on_card.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_parts_can_be_chosen_and_run_in_one_order(script, capsys):
    assert script.parse([]).parts == [*script.CHECKS, *script.BENCHES]
    assert script.parse(["kernels", "gpu"]).parts == ["gpu", "kernels"]
    with pytest.raises(SystemExit):
        script.parse(["decode"])
    assert "there is no part decode: choose of gpu, ops" in capsys.readouterr().err


def test_every_part_is_a_command_that_exists(script, tmp_path):
    for paths in script.CHECKS.values():
        assert all((ROOT / path).exists() for path in paths)
    for verb, *_ in script.BENCHES.values():
        assert hasattr(bench, verb)
    command = script.command_of("gpu", tmp_path, tmp_path, 3)
    assert command[1:] == ["-m", "pytest", "-q", "-n", "3", "tests/gpu"]


def test_figures_stand_beside_their_anchors(script, tmp_path):
    def report(part, rows):
        (tmp_path / f"{part}.json").write_text(json.dumps({"rows": rows}))
        return script.compared(part, tmp_path)

    lines = report("latency", [{"batch": batch, "decode_step_ms_p50": 5.0} for batch in reversed(script.BATCHES)])
    assert [line.split()[-1] for line in lines] == ["MISSED", "MISSED", "holds", "holds", "holds"]
    assert lines[0].split()[:7] == ["decode", "step,", "batch", "1,", "ms", "5.00", "4.90"]
    (line,) = report("throughput", [{"output_tokens_per_s": figure} for figure in (10_000, 10_890, 12_000)])
    assert line.split()[4:7] == ["10,890.00", "10,140.00", "1.07"]
    assert line.endswith("at least 1.05: holds")
    (line,) = report("prefill", [{"prefill_tokens_per_s": 40_250}])
    assert line.endswith("at least 1.00: MISSED")
    assert report("kernels", []) == []
