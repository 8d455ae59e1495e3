"""scripts/compare_peers.py: what llama.cpp's tool prints is read, other processes' time is told from ours, and samples
that they disturbed do not count while there are others."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compare_peers.py"
TABLE = """main: n_kv_max = 4
|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|   128 |     64 |    1 |    192 |    0.100 |  1280.00 |    0.400 |   160.00 |    0.500 |   384.00 |
|   128 |     64 |    8 |   1536 |    1.000 |  1024.00 |    1.000 |   512.00 |    2.000 |   768.00 |
"""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compare_peers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool(tmp_path):
    path = tmp_path / "llama-batched-bench"
    path.write_text(f"#!{sys.executable}\nprint('''{TABLE}''')\n")
    path.chmod(0o755)
    return str(path)


def test_the_table_of_llama_batched_bench(script, tool):
    work = script.parse(["--batches", "1,8"])
    engine = script.LlamaCpp(tool, "Q4_1", "model.gguf", [], work)
    assert engine.name == "llama.cpp Q4_1"
    assert engine.measure() == {"decode 1": 160.0, "decode 8": 512.0, "prefill": 1280.0}
    more = script.LlamaCpp(tool, "Q4_1", "model.gguf", [], script.parse(["--batches", "1,8,32"]))
    with pytest.raises(SystemExit, match="no line for some"):
        more.measure()


class Busy:
    """Uses the processor for a while, itself."""

    name = "busy"

    def measure(self):
        return {"decode 1": float(sum(i * i for i in range(2_000_000)))}

    def seconds_used(self):
        return 0.0


def test_what_the_engine_itself_uses_is_not_others(script, monkeypatch):
    ours = iter([0.0, 3.0])
    machine = iter([100.0, 103.0])
    monkeypatch.setattr(script, "_own_seconds", lambda engine: next(ours))
    monkeypatch.setattr(script, "_machine_seconds", lambda: next(machine))
    columns, foreign = script.sample(Busy())
    assert columns["decode 1"] > 0
    assert foreign == 0.0


def sample(engine, tokens, foreign):
    return {"round": 0, "engine": engine, "columns": {"decode 1": tokens}, "foreign": foreign}


def test_disturbed_samples_do_not_count_while_there_are_others(script):
    samples = [
        sample("penstock", 300.0, 0.0),
        sample("penstock", 20.0, 0.6),
        sample("penstock", 320.0, 0.02),
        sample("llama.cpp a", 155.0, 0.01),
        sample("vLLM", 50.0, 0.4),
    ]
    header, _, ours, llama, vllm, ratio = script.summarize(samples, 0.05)
    assert "decode 1" in header
    assert ours.startswith("| penstock | 310.0 | 2 of 3, 0% to 2% |")
    assert llama.startswith("| llama.cpp a | 155.0 | 1 of 1")
    assert "**disturbed**" in vllm
    assert ratio == "| ours / best peer | 2.00 | |"
