"""Lines about the long parts of a start."""

from __future__ import annotations

from penstock.engine.progress import SAY_EVERY_S, StartProgress


def test_a_part_is_told_of_when_it_takes_a_while_and_then_every_while():
    now, said = 0.0, []
    progress = StartProgress(said.append, lambda: now)
    for step in range(9):
        now = step * SAY_EVERY_S / 2
        progress("weights", step, 8)
    assert said == [f"loading weights: {step} of 8" for step in (2, 4, 6, 8)]


def test_a_quick_start_says_nothing_and_every_part_begins_anew():
    now, said = 0.0, []
    progress = StartProgress(said.append, lambda: now)
    for part in ("weights", "kernels", "graphs"):
        for done in range(20):
            now += SAY_EVERY_S / 21
            progress(part, done, 20)
    assert said == []
    now += SAY_EVERY_S
    progress("graphs", 20, 20)
    assert said == ["recording decode steps: 20 of 20"]
