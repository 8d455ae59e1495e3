"""How the end of an engine process is told, and what its threads are told before it starts."""

from __future__ import annotations

import sys

import pytest

from penstock.engine.spawn import describe_exit
from penstock.engine.threads import prefer_short_spins


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (1, "exited with code 1"),
        (-9, "killed by SIGKILL. The system may have run out of memory"),
        (-11, "killed by SIGSEGV."),
        (-200, "killed by signal 200"),
    ],
)
def test_how_a_process_ended_is_one_sentence(code, sentence):
    assert sentence in describe_exit(code)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_kernel_threads_give_their_cores_away_soon_unless_the_user_chose(environ, expected):
    assert "torch" not in sys.modules
    prefer_short_spins(environ)
    assert environ == expected
