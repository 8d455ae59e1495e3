"""What text costs the frontend, without a socket or an engine: tokens to chunks, and every dialect's reading of a call.

The same text at several sizes: what is linear costs the same per KiB at each of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from penstock.bench.report import Report
from penstock.errors import ConfigError
from penstock.frontend.dialects.contract import Dialect, Reading
from penstock.frontend.dialects.machine import Machine
from penstock.frontend.dialects.table import DIALECTS
from penstock.frontend.text.answer_stream import AnswerStream
from penstock.frontend.text.stream import TextStream
from penstock.frontend.text.tokenizer import Tokenizer
from penstock.types.output import TokenUpdate
from penstock.types.request import SamplingParams

PIECE_CHARACTERS = 7
"""Of what a machine is fed with at a time: no length that markers have."""
_PROSE = "A penstock leads water from where it is kept to the wheel; what it carries must neither leak nor wait. "
_TOOL = "weather"
_VALUE = "Köln"  # of the sample calls of every dialect: made long here
_TOOLS = {
    _TOOL: {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "hours": {"type": "array"}},
    }
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextWorkload:
    """``sizes`` in KiB of text, ``dialects`` by name; none means all."""

    sizes: Sequence[int] = (4, 64, 1024)
    dialects: Sequence[str] = ()
    repeats: int = 3


def measure_text(
    tokenizer: Tokenizer, workload: TextWorkload, command: str = "", say: Callable[[str], None] = lambda text: None
) -> Report:
    """Microseconds per KiB of text. Raises ConfigError for a dialect that is not there."""
    known = {dialect.name: dialect for dialect in DIALECTS if long_call(dialect, "") is not None}
    unknown = [name for name in workload.dialects if name not in known]
    if unknown:
        raise ConfigError(f"There is no dialect {unknown[0]!r} with calls; there are {', '.join(known)}.")
    paths: list[tuple[str, Callable[[str], float]]] = []
    if not workload.dialects:
        paths += [
            ("tokens to escaped text", partial(_plain_seconds, tokenizer)),
            ("tokens to deltas, stop strings", partial(_delta_seconds, tokenizer)),
            ("tokens to deltas, hermes", partial(_answer_seconds, tokenizer, known["hermes"])),
        ]
    for name in workload.dialects or known:
        paths.append((f"dialect {name}", partial(_machine_seconds, known[name])))
    rows = []
    for name, seconds_of in paths:
        say(name)
        rows.append(
            {"path": name} | {f"us_per_kib_{kib}k": _cost(seconds_of, kib, workload.repeats) for kib in workload.sizes}
        )
    return Report(
        name="text",
        command=command,
        workload={"kib": list(workload.sizes), "repeats": workload.repeats, "piece_characters": PIECE_CHARACTERS},
        rows=tuple(rows),
        notes=(
            "Microseconds per KiB of text, medians. Tokens come one at a time; a dialect reads one call with one long "
            f"string argument in pieces of {PIECE_CHARACTERS} characters.",
        ),
    )


def long_call(dialect: Dialect, value: str) -> tuple[str, Reading] | None:
    """An answer in this dialect with a call whose argument is ``value``, and how to read it; None without calls."""
    for sample in dialect.samples:
        if sample.calls and _VALUE in sample.text:
            return sample.text.replace(_VALUE, value), Reading(tools=_TOOLS, in_reasoning=sample.in_reasoning)
    return None


def _cost(seconds_of: Callable[[str], float], kib: int, repeats: int) -> float:
    text = (_PROSE * (kib * 1024 // len(_PROSE) + 1))[: kib * 1024]
    seconds_of(text[:4096])  # tables of pieces are filled when they are first used
    return round(statistics.median(seconds_of(text) for _ in range(repeats)) / kib * 1e6, 2)


def _machine_seconds(dialect: Dialect, value: str) -> float:
    made = long_call(dialect, value)
    assert made is not None
    text, reading = made
    pieces = [text[at : at + PIECE_CHARACTERS] for at in range(0, len(text), PIECE_CHARACTERS)]
    begin = time.perf_counter()
    machine = Machine(dialect, reading)
    for piece in pieces:
        machine.push(piece)
    machine.finish()
    return time.perf_counter() - begin


def _plain_seconds(tokenizer: Tokenizer, text: str) -> float:
    stream = TextStream(tokenizer, SamplingParams())
    return _seconds(stream.push_plain, [(token_id,) for token_id in tokenizer.encode(text, add_special_tokens=False)])


def _delta_seconds(tokenizer: Tokenizer, text: str) -> float:
    stream = TextStream(tokenizer, SamplingParams(stop=("\n\nUser:", "</answer>")))
    return _seconds(stream.on_update, _updates(tokenizer, text))


def _answer_seconds(tokenizer: Tokenizer, dialect: Dialect, value: str) -> float:
    made = long_call(dialect, value)
    assert made is not None
    text, reading = made
    stream = AnswerStream(TextStream(tokenizer, SamplingParams()), dialect, reading)
    return _seconds(stream.on_update, _updates(tokenizer, text))


def _updates(tokenizer: Tokenizer, text: str) -> list[TokenUpdate]:
    return [TokenUpdate(1, (token_id,)) for token_id in tokenizer.encode(text, add_special_tokens=False)]


def _seconds(take: Callable[[Any], object], news: Sequence[Any]) -> float:
    begin = time.perf_counter()
    for one in news:
        take(one)
    return time.perf_counter() - begin
