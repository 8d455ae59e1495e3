"""Workloads and reports of the benchmarks: deterministic prompts, percentiles, JSON that carries its facts."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest

from penstock.bench.report import Report, percentile, spread
from penstock.bench.workload import file_prompts, random_prompts, random_texts
from penstock.errors import ConfigError


def test_random_prompts_repeat_with_the_seed_and_differ_from_each_other() -> None:
    prompts = random_prompts(8, 32, 5000, seed=3)
    assert prompts == random_prompts(8, 32, 5000, seed=3)
    assert prompts != random_prompts(8, 32, 5000, seed=4)
    assert len({tuple(prompt) for prompt in prompts}) == 8
    assert all(100 <= token < 5000 for prompt in prompts for token in prompt)


def test_random_prompts_fit_a_tiny_vocabulary() -> None:
    assert all(token < 10 for token in random_prompts(1, 50, 10, seed=0)[0])


def test_random_texts_repeat_with_the_seed() -> None:
    texts = random_texts(4, 12, seed=1)
    assert texts == random_texts(4, 12, seed=1)
    assert all(len(text.split()) == 12 for text in texts)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", '{"prompt": "one"}\n\n{"text": "two"}\n'),
        ("p.json", '["one", {"prompt": "two"}]'),
        ("p.txt", "one\n\ntwo\n"),
    ],
)
def test_prompt_files(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert file_prompts(path, 3) == ["one", "two", "one"]


@pytest.mark.parametrize(("name", "content"), [("p.jsonl", '{"question": 1}'), ("p.json", "{"), ("p.txt", "\n")])
def test_broken_prompt_files_are_sentences(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError, match="p\\."):
        file_prompts(path, 1)
    with pytest.raises(ConfigError, match="Cannot read"):
        file_prompts(tmp_path / "absent.txt", 1)


def test_percentile_agrees_with_the_standard_library() -> None:
    values = [5.0, 1.0, 9.5, 3.25, 7.0, 2.0, 8.0]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    for share in (1, 25, 50, 90, 99):
        assert percentile(values, share) == pytest.approx(cuts[share - 1])
    assert math.isnan(percentile([], 50))


def test_report_json_embeds_engine_facts(tmp_path: Path) -> None:
    row = {"batch": 1} | spread("itl_ms", [0.001, 0.003])
    report = Report(
        name="x", command="penstock bench x", workload={"n": 1}, rows=(row,), engine={"model": {"name": "m"}}
    )
    report.save(tmp_path / "r.json")
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved["engine"]["model"]["name"] == "m"
    assert saved["rows"][0]["itl_ms_mean"] == 2.0
    with pytest.raises(ConfigError, match="Cannot write"):
        report.save(tmp_path / "absent" / "r.json")
