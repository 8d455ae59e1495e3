"""The benchmark of text measures what it says: the calls that it feeds are read as calls, and names are checked."""

from __future__ import annotations

import json

import pytest

from penstock.bench.text import TextWorkload, long_call, measure_text
from penstock.errors import ConfigError
from penstock.frontend.dialects.contract import Dialect
from penstock.frontend.dialects.events import AnswerFold
from penstock.frontend.dialects.machine import Machine
from penstock.frontend.dialects.table import DIALECTS
from penstock.mock.tokenizer import ByteTokenizer

VALUE = "one long argument, " * 100


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda one: one.name)
def test_the_long_argument_is_read_as_one(dialect: Dialect) -> None:
    made = long_call(dialect, VALUE)
    if dialect.name == "think":
        assert made is None
        return
    assert made is not None
    text, reading = made
    machine, fold = Machine(dialect, reading), AnswerFold()
    fold.add(machine.push(text))
    fold.add(machine.finish())
    assert json.loads(fold.calls[0].arguments)["city"].strip() == VALUE.strip()


def test_every_path_has_a_figure_for_every_size() -> None:
    said: list[str] = []
    report = measure_text(ByteTokenizer(), TextWorkload(sizes=(1, 2), repeats=1), "penstock bench text", said.append)
    assert [row["path"] for row in report.rows] == said
    assert len(said) == 3 + len(DIALECTS) - 1
    assert all(row["us_per_kib_1k"] > 0 and row["us_per_kib_2k"] > 0 for row in report.rows)


def test_one_dialect_alone() -> None:
    report = measure_text(ByteTokenizer(), TextWorkload(sizes=(1,), dialects=("kimi_k2",), repeats=1))
    assert [row["path"] for row in report.rows] == ["dialect kimi_k2"]
    with pytest.raises(ConfigError, match="no dialect 'klingon' with calls"):
        measure_text(ByteTokenizer(), TextWorkload(dialects=("klingon",)))
