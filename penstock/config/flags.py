"""Flags derived from the configuration sections: one description for command line, ``LLM`` keywords and reference.

It knows the fields and how a value is written; it does not know the command line, nor what a value leads to.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from penstock.config import env
from penstock.config.sections import (
    BackendConfig,
    CacheConfig,
    EngineConfig,
    MockConfig,
    ModelConfig,
    SchedulerConfig,
    ServerConfig,
)
from penstock.config.sizes import parse_size
from penstock.errors import ConfigError

ENGINE_SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "backend": BackendConfig,
}
_METAVARS = {"str": "TEXT", "int": "N", "float": "X", "size": "SIZE", "list": "TEXT"}


@dataclass(frozen=True, slots=True)
class Flag:
    """One field of one section. ``kind`` is "str", "int", "float", "bool", "size" or "list" (repeatable text)."""

    section: str
    name: str
    kind: str
    default: Any
    text: str
    choices: tuple[str, ...] = ()
    env: str = ""
    minimum: float | None = None
    maximum: float | None = None

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        return "|".join(self.choices) if self.choices else _METAVARS.get(self.kind, "")

    def value_of(self, given: Any, spelling: str | None = None) -> Any:
        """The field's value for what was given: text as on a command line, or a Python value of the right type.

        ``spelling`` is how the caller wrote the name. Raises ConfigError saying what the value must be.
        """
        name = spelling or self.name
        match self.kind:
            case "bool":
                value: Any = _as_bool(given, name)
            case "int":
                value = _as_int(given, name)
            case "float":
                value = _as_float(given, name)
            case "size":
                value = parse_size(given, name)
            case "list":
                value = _as_texts(given, name)
            case _:
                value = _as_text(given, name)
        self._check(value, name)
        return value

    def _check(self, value: Any, name: str) -> None:
        if self.choices and value not in self.choices:
            raise ConfigError(f"{name} is {value!r}, but it must be one of {', '.join(self.choices)}.")
        if self.minimum is not None and value < self.minimum:
            raise ConfigError(f"{name} is {value}, but it must be at least {self.minimum:g}.")
        if self.maximum is not None and value > self.maximum:
            raise ConfigError(f"{name} is {value}, but it must be at most {self.maximum:g}.")


@functools.cache
def engine_flags() -> tuple[Flag, ...]:
    """All fields of the engine's sections, in the order of their declaration."""
    return tuple(flag for name, section in ENGINE_SECTIONS.items() for flag in _flags_of(name, section))


@functools.cache
def server_flags() -> tuple[Flag, ...]:
    return tuple(_flags_of("server", ServerConfig))


@functools.cache
def mock_flags() -> tuple[Flag, ...]:
    return tuple(_flags_of("mock", MockConfig))


def engine_config_from(spelling: str = "keyword", /, **flat: Any) -> EngineConfig:
    """An EngineConfig from flat field names; None means not given.

    ``spelling`` "option" writes names in errors as on the command line. Raises ConfigError for a wrong value, and
    for an unknown name with the nearest known ones.
    """
    values = _values(engine_flags(), flat, spelling)
    sections = {name: section(**values.get(name, {})) for name, section in ENGINE_SECTIONS.items()}
    return EngineConfig(**sections)


def server_config_from(spelling: str = "keyword", /, **flat: Any) -> ServerConfig:
    """A ServerConfig from its field names; see :func:`engine_config_from`."""
    return ServerConfig(**_values(server_flags(), flat, spelling).get("server", {}))


def mock_config_from(spelling: str = "keyword", /, **flat: Any) -> MockConfig:
    """A MockConfig from its field names; see :func:`engine_config_from`."""
    return MockConfig(**_values(mock_flags(), flat, spelling).get("mock", {}))


def flat_values(config: EngineConfig | ServerConfig) -> dict[str, Any]:
    """The reverse: every field of every section by its flat name. Keys are left out where they are secrets."""
    if isinstance(config, ServerConfig):
        return {flag.name: getattr(config, flag.name) for flag in server_flags() if flag.name != "api_key"}
    return {flag.name: getattr(getattr(config, flag.section), flag.name) for flag in engine_flags()}


def _flags_of(section: str, cls: type) -> list[Flag]:
    hints = typing.get_type_hints(cls)
    return [
        Flag(
            section=section,
            name=field.name,
            kind="size" if field.metadata["size"] else _kind(hints[field.name]),
            default=field.default if field.default is not MISSING else None,
            text=field.metadata["help"],
            choices=field.metadata["choices"],
            env=field.metadata["env"],
            minimum=field.metadata["minimum"],
            maximum=field.metadata["maximum"],
        )
        for field in fields(cls)
    ]


def _kind(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        (hint,) = [arm for arm in typing.get_args(hint) if arm is not type(None)]
    kinds = {str: "str", int: "int", float: "float", bool: "bool", tuple[str, ...]: "list"}
    return kinds[hint]


def _values(flags: Sequence[Flag], flat: Mapping[str, Any], spelling: str) -> dict[str, dict[str, Any]]:
    """Checked values by section and field, with the environment's defaults filled in."""
    known = {flag.name: flag for flag in flags}
    for name in flat:
        if name not in known:
            raise ConfigError(_unknown(name, list(known)))
    values: dict[str, dict[str, Any]] = {}
    for flag in flags:
        given = flat.get(flag.name)
        if given is None or (flag.kind == "list" and not given):
            if not (flag.env and env.is_set(flag.env)):
                continue
            value = env.read(flag.env)
        else:
            value = flag.value_of(given, flag.option if spelling == "option" else flag.name)
        values.setdefault(flag.section, {})[flag.name] = value
    return values


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    meant = f" Did you mean {' or '.join(close)}?" if close else f" Known are {', '.join(known)}."
    return f"There is no engine option {name!r}.{meant}"


def _as_bool(given: Any, name: str) -> bool:
    if isinstance(given, bool):
        return given
    raise ConfigError(f"{name} is {given!r}, but it must be true or false.")


def _as_int(given: Any, name: str) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if isinstance(given, str) and re.fullmatch(r"\s*[+-]?\d+\s*", given):
        return int(given)
    raise ConfigError(f"{name} is {given!r}, but it must be a whole number.")


def _as_float(given: Any, name: str) -> float:
    if isinstance(given, (int, float, str)) and not isinstance(given, bool):
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if math.isfinite(value):
            return value
    raise ConfigError(f"{name} is {given!r}, but it must be a number.")


def _as_text(given: Any, name: str) -> str:
    if isinstance(given, str):
        if given:
            return given
        raise ConfigError(f"{name} is empty.")
    if hasattr(given, "__fspath__"):
        return str(given)
    raise ConfigError(f"{name} is {given!r}, but it must be text.")


def _as_texts(given: Any, name: str) -> tuple[str, ...]:
    parts = (given,) if isinstance(given, str) else given
    if not isinstance(parts, Sequence):
        raise ConfigError(f"{name} is {given!r}, but it must be text or a list of texts.")
    return tuple(_as_text(part, name) for part in parts)
