"""``penstock check``: facts and decisions of this machine and of recorded ones."""

from __future__ import annotations

import json

import pytest

from penstock.cli.check import machine_lines
from penstock.cli.main import main
from penstock.platforms.recorded import RECORDED


@pytest.mark.parametrize("platform", ["laptop-avx2", "h200"])
def test_check_shows_what_it_announces(capsys, platform):
    with pytest.raises(SystemExit):
        main(["check", "--platform", platform, "--json"])
    decisions = json.loads(capsys.readouterr().out)["decisions"]
    with pytest.raises(SystemExit):
        main(["check", "--platform", platform])
    text = capsys.readouterr().out
    assert {decision["subject"].split()[0] for decision in decisions} >= {"dtype", "attention", "linear"}
    for decision in decisions:
        assert f"  {decision['subject']}: {decision['chosen'] or 'nothing'} (" in text
        for rejection in decision["rejected"]:
            assert f"not {rejection['name']}: {'; '.join(rejection['reasons'])}" in text


@pytest.mark.parametrize(
    ("platform", "sets"),
    [
        ("laptop-avx2", "avx2, baseline"),
        ("server-amx", "avx512_bf16, avx512, avx2, baseline"),
        ("laptop-arm64", "neon_bf16, neon, baseline"),
        ("board-arm64", "baseline"),
    ],
)
def test_native_kernels_of_a_machine_are_listed(platform, sets):
    (line,) = [line for line in machine_lines(RECORDED[platform]) if line.startswith("native kernels")]
    assert line.split(None, 2)[2].startswith(f"{sets}; best first, {RECORDED[platform].num_cores} threads")


def test_a_missing_extension_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["check"])
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if line.startswith("native kernels")]
    assert "was not built for this Python: install a C++20 compiler" in line
