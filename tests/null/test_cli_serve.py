"""What ``penstock serve`` prints when it is ready."""

from __future__ import annotations

import json
import shlex

import pytest

from penstock.cli.serve import ready_text


def snippet(printed):
    return printed.partition("In Python:\n\n")[2].partition("\n\n")[0]


@pytest.mark.parametrize("name", ["assistant", 'it\'s "quoted" $HOME'])
def test_the_texts_survive_any_name(name):
    text = ready_text("http://127.0.0.1:8000", name, needs_key=False)
    (line,) = [line for line in text.splitlines() if line.strip().startswith("curl ")]
    assert json.loads(shlex.split(line)[-1])["model"] == name
    compile(snippet(text), "snippet", "exec")
    assert json.dumps(name) in text
