"""The offline benchmarks through the command line, on the mock engine: 2 ms a step, one token per byte of a prompt."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from penstock import LLM
from penstock.bench import offline
from penstock.cli import bench
from penstock.cli.main import main

PROMPTS = ["a short one", "another that is somewhat longer", "the third"]


@pytest.fixture
def report(monkeypatch, capsys):
    """Run ``penstock bench`` with arguments and answer its JSON report."""
    monkeypatch.setattr(bench, "_llm", lambda model, options: LLM(mock=True, max_model_len=512))

    def run(*arguments: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["penstock", "bench", *arguments])
        with pytest.raises(SystemExit) as ended:
            main(["bench", *arguments, "--json", "-"])
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def prompt_file(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return str(path)


def tokens_of(*prompts: str) -> int:
    with LLM(mock=True, max_model_len=64) as llm:
        return sum(len(llm.tokenizer.encode(prompt)) for prompt in prompts)


SMALL = ("latency", "--batch-size", "1,4", "--output-len", "16", "--repeats", "2")


def test_latency_of_the_prompts_of_a_file(report, prompt_file):
    found = report(*SMALL, "--prompts", prompt_file)
    assert found["workload"]["prompts"] == "file"
    assert "input_len" not in found["workload"]
    one, four = found["rows"]
    assert one["prompt_tokens"] == tokens_of(PROMPTS[0])
    assert four["prompt_tokens"] == tokens_of(*PROMPTS, PROMPTS[0])


def test_latency_of_random_prompts(report):
    found = report(*SMALL, "--input-len", "32")
    assert found["workload"]["prompts"] == "random"
    assert [row["prompt_tokens"] for row in found["rows"]] == [32, 128]


def test_latency_comes_from_the_times_of_tokens(report):
    """The mock takes 2 ms a step, whatever is in it."""
    for row in report(*SMALL, "--input-len", "32")["rows"]:
        assert row["decode_step_ms_p50"] == pytest.approx(2.0, rel=0.5)
        assert row["decode_step_ms_p50"] <= row["decode_step_ms_p95"]
        low, high = (float(number) for number in row["decode_tokens_per_s_range"].strip("()").split(" to "))
        assert low <= row["decode_tokens_per_s"] <= high
        assert row["prefill_tokens_per_s"] > 0


def test_only_steps_in_which_all_rows_decode_count():
    """The second row has its first token when the first has had two, which ends first."""
    found = offline._decode([(1.0, 2.0, 3.0, 4.0), (3.0, 4.0, 6.0, 7.0)])
    assert found.steps_s == (1.0,)
    assert found.tokens_per_s == 2.0
    in_one_step = offline._decode([(1.0, 2.001, 3.001), (1.001, 2.0, 3.002)])
    assert in_one_step.tokens_per_s == pytest.approx(2.0, rel=0.01)
    assert math.isnan(offline._decode([(1.0, 2.0), (3.0, 4.0)]).tokens_per_s)
    assert math.isnan(offline._decode([(1.0,)]).tokens_per_s)


def test_the_prefix_cache_does_not_help(report, monkeypatch):
    """Both runs of a pair have the same prompts: nothing may be answered from the cache."""
    hits = []
    time_tokens = LLM.time_tokens

    def watched(llm, *arguments):
        answers = time_tokens(llm, *arguments)
        hits.append(llm.stats().prefix_hit_tokens)
        return answers

    monkeypatch.setattr(LLM, "time_tokens", watched)
    report("latency", "--batch-size", "1", "--output-len", "4", "--repeats", "3", "--input-len", "200")
    assert len(hits) == 7
    assert set(hits) == {0}


def test_throughput_of_the_prompts_of_a_file(report, prompt_file):
    found = report("throughput", "--num-prompts", "3", "--output-len", "4", "--repeats", "1", "--prompts", prompt_file)
    assert found["workload"]["prompts"] == "file"
    assert found["rows"][0]["prompt_tokens"] == tokens_of(*PROMPTS)
    assert found["rows"][0]["output_tokens"] == 12


def test_help_says_how_many_requests_are_sent(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "serve", "--help"])
    assert "at least two per stream" in " ".join(capsys.readouterr().out.split())


def test_step_shows_every_part_of_the_mocks_step(report):
    """Parts and the rest add up to the step; without recorded steps no kernel is told apart, and the report says so."""
    found = report("step", "--batch-size", "1,3", "--output-len", "16", "--repeats", "3", "--input-len", "32")
    assert [row["batch"] for row in found["rows"]] == [1, 3]
    assert any("eagerly" in note for note in found["notes"])
    for row in found["rows"]:
        parts = {name: value for name, value in row.items() if name.endswith(", us")}
        assert parts["executor: forward, us"] == pytest.approx(2000, rel=0.15)
        assert min(parts["core: plan, us"], parts["core: take result in, us"], parts["core: updates out, us"]) > 0
        assert not any(name.startswith("kernel") for name in row)
