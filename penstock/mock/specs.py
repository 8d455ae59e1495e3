"""What a mock engine is told on the command line: step times and faults as text -> the objects that carry them out.

``--mock-time`` is a number with a unit ("2ms"), a sum ("2ms + 10us*tokens + 5us*rows + 1ns*context"), or ``@FILE``:
JSON with a list of [tokens of a step, seconds] pairs, as measured. ``--mock-fault`` names one fault per use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.config.sections import MockConfig
from penstock.errors import ConfigError
from penstock.mock.faults import MockFaults
from penstock.mock.garbage import GARBAGE
from penstock.mock.performance import FixedDelay, LinearDelay, MeasuredDelay, Performance

MOCK_NAME = "mock"
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_TERM = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>s|ms|us|ns)(?:\s*\*\s*(?P<per>\w+))?")
_PER = {"tokens": "per_token", "rows": "per_row", "context": "per_context_token"}
FAULTS = "fail-step=N, stall=N:SECONDS, die=N, garbage=DIALECT"


@dataclass(frozen=True, slots=True, kw_only=True)
class MockOrder:
    """What a mock engine needs besides an engine's configuration: data, so that it can travel.

    ``vocab_size`` is that of the tokenizer in use, 0 for bytes. ``scripts`` are token ids that requests are answered
    with, one script after the other, and then ``end_id``; without any, tokens are random.
    """

    config: MockConfig = field(default_factory=MockConfig)
    vocab_size: int = 0
    scripts: tuple[tuple[int, ...], ...] = ()
    end_id: int | None = None

    def check(self) -> None:
        """Raises ConfigError for what cannot be carried out."""
        check_mock(self.config)


def check_mock(config: MockConfig) -> None:
    """Raises ConfigError for what cannot be carried out."""
    parse_performance(config.mock_time)
    parse_faults(config.mock_fault)
    if config.mock_ceiling and config.mock_fault:
        raise ConfigError("Leave out --mock-fault or --mock-ceiling: the ceiling mode has no step that could fail.")


def parse_performance(text: str) -> Performance:
    """Seconds of a step by its shape. Raises ConfigError with what a step time looks like."""
    if text.startswith("@"):
        return MeasuredDelay(_read_table(Path(text[1:])))
    totals = dict.fromkeys(("base", *_PER.values()), 0.0)
    for term in text.split("+"):
        match = _TERM.fullmatch(term.strip())
        per = match["per"] if match else None
        if match is None or (per is not None and per not in _PER):
            raise ConfigError(
                f"Write --mock-time as a time (2ms), a sum (2ms + 10us*tokens + 5us*rows + 1ns*context), or @FILE with "
                f"measured times; {term.strip()!r} is none of them."
            )
        totals[_PER[per] if per else "base"] += float(match["number"]) * _UNITS[match["unit"]]
    if not any(totals[name] for name in _PER.values()):
        return FixedDelay(totals["base"])
    return LinearDelay(**totals)


def _read_table(path: Path) -> list[tuple[int, float]]:
    try:
        points: Any = json.loads(path.read_text(encoding="utf-8"))
        table = [(int(tokens), float(seconds)) for tokens, seconds in points]
        if not table or any(tokens < 1 or seconds < 0 for tokens, seconds in table):
            raise ValueError("it is empty, or has a step without tokens or of negative time")
    except OSError as error:
        raise ConfigError(f"The table of step times {str(path)!r} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"The table of step times {str(path)!r} must be JSON like [[1, 0.002], [64, 0.004]], tokens and seconds: "
            f"{error}."
        ) from error
    return table


def parse_faults(texts: Sequence[str]) -> MockFaults:
    """Raises ConfigError with the known faults. ``garbage`` is no fault of the executor: see ``garbage_texts``."""
    failed: set[int] = set()
    stalls: dict[int, float] = {}
    die: int | None = None
    for text in texts:
        kind, _, value = text.partition("=")
        try:
            match kind:
                case "fail-step":
                    failed.add(_step(value))
                case "stall":
                    step, _, seconds = value.partition(":")
                    stalls[_step(step)] = float(seconds)
                case "die":
                    die = _step(value)
                case "garbage":
                    if value not in GARBAGE:
                        raise ConfigError(f"There is no garbage for {value!r}; there is for {', '.join(GARBAGE)}.")
                case _:
                    raise ValueError
        except ValueError:
            raise ConfigError(f"Write --mock-fault as one of {FAULTS}, with steps from 0; got {text!r}.") from None
    return MockFaults(die_at_step=die, failed_steps=frozenset(failed), stalls=stalls)


def garbage_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """What the engine says instead of random text; empty when no fault asks for it."""
    dialects = [text.removeprefix("garbage=") for text in texts if text.startswith("garbage=")]
    return tuple(said for dialect in dialects for said in GARBAGE[dialect])


def _step(text: str) -> int:
    step = int(text)
    if step < 0:
        raise ValueError
    return step
