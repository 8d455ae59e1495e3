"""``penstock bench startup``: processes of the command line that run to their end. On the mock engine."""

from __future__ import annotations

import json

import pytest

from penstock.cli.main import main


@pytest.fixture
def report(capsys):
    """Run ``penstock bench`` with arguments and answer its JSON report."""

    def run(*arguments: str) -> dict:
        with pytest.raises(SystemExit) as ended:
            main(["bench", *arguments, "--json", "-"])
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        return json.loads(out)

    return run


def test_startup_runs_new_processes(report):
    found = report("startup", "smollm2", "--run-option=--mock", "--repeats", "1", "--output-len", "4")
    (row,) = found["rows"]
    assert 0 < row["first_token_s"] <= row["exit_s"]
    assert 5 < row["peak_mib"] < 5000


def test_startup_of_a_server_waits_for_its_answers(report):
    found = report("startup", "smollm2", "--server", "--run-option=--mock", "--repeats", "1")
    (row,) = found["rows"]
    assert 0 < row["health_s"] <= row["ready_s"]
    assert row["cpu_s"] > 0
    assert row["resident_mib"] > 10


def test_startup_of_a_server_passes_on_what_went_wrong(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "startup", "--server", "--run-option=--mock", "--run-option=--mock-time=x", "--repeats", "1"])
    assert "Write --mock-time as a time" in capsys.readouterr().err


def test_startup_passes_on_what_went_wrong(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "startup", "smollm2", "--run-option=--max-num-seqs=none", "--repeats", "1"])
    assert ended.value.code == 2
    assert "--max-num-seqs is 'none'" in capsys.readouterr().err
