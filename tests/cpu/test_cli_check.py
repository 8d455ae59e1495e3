"""``penstock check``: facts and decisions of this machine and of recorded ones."""

from __future__ import annotations

import json

import pytest

from penstock.cli.main import main


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
