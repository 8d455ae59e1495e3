"""Typed, asserting reads of a checkpoint's configuration. No torch.

It does not know any key: families ask for what they need, and a value of the wrong type or an option that a family
does not implement becomes an UnsupportedModelError that names the key, the value and the file.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Mapping
from typing import Any, Final

from penstock.errors import UnsupportedModelError


class _Required:
    """Marks a read without a default."""


REQUIRED: Final = _Required()


class ConfigReader:
    """Reads from one JSON-like object. ``origin`` says in messages where it came from.

    A key whose value is null counts as absent. Every read takes ``default``; without one an absent key is an error.
    """

    def __init__(self, data: Mapping[str, Any], origin: builtins.str) -> None:
        self.data = data
        self.origin = origin

    def has(self, key: builtins.str) -> builtins.bool:
        return self.data.get(key) is not None

    def int(self, key: builtins.str, *, default: builtins.int | _Required = REQUIRED) -> builtins.int:
        value = self._value(key, default)
        if isinstance(value, builtins.float) and value.is_integer():
            value = builtins.int(value)
        if isinstance(value, builtins.bool) or not isinstance(value, builtins.int):
            raise self._mismatch(key, value, "a whole number")
        return value

    def float(self, key: builtins.str, *, default: builtins.float | _Required = REQUIRED) -> builtins.float:
        value = self._value(key, default)
        if (
            isinstance(value, builtins.bool)
            or not isinstance(value, (builtins.int, builtins.float))
            or not math.isfinite(value)
        ):
            raise self._mismatch(key, value, "a finite number")
        return builtins.float(value)

    def str(self, key: builtins.str, *, default: builtins.str | _Required = REQUIRED) -> builtins.str:
        value = self._value(key, default)
        if not isinstance(value, builtins.str):
            raise self._mismatch(key, value, "a string")
        return value

    def bool(self, key: builtins.str, *, default: builtins.bool | _Required = REQUIRED) -> builtins.bool:
        value = self._value(key, default)
        if not isinstance(value, builtins.bool):
            raise self._mismatch(key, value, "true or false")
        return value

    def list(self, key: builtins.str, *, default: builtins.list[Any] | _Required = REQUIRED) -> builtins.list[Any]:
        value = self._value(key, default)
        if not isinstance(value, builtins.list):
            raise self._mismatch(key, value, "a list")
        return value

    def section(self, key: builtins.str) -> ConfigReader | None:
        """The object under ``key`` as a reader of its own; None when absent."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._mismatch(key, value, "an object")
        return ConfigReader(value, f"{self.origin}, {key}")

    def expect(self, key: builtins.str, *allowed: Any) -> None:
        """Refuse the model unless ``key`` is absent or one of ``allowed``: what the code assumes, stated."""
        value = self.data.get(key)
        if value is not None and value not in allowed:
            choices = " or ".join(repr(choice) for choice in allowed)
            raise UnsupportedModelError(
                f"{self.origin} sets {key} to {value!r}, which is not supported; Penstock implements {choices}."
            )

    def refuse(self, key: builtins.str, why: builtins.str) -> UnsupportedModelError:
        """The error for a combination of values that only the caller can judge."""
        return UnsupportedModelError(f"{self.origin} sets {key} to {self.data.get(key)!r}: {why}.")

    def _value(self, key: builtins.str, default: Any) -> Any:
        value = self.data.get(key)
        if value is not None:
            return value
        if default is REQUIRED:
            raise UnsupportedModelError(f"{self.origin} has no {key}, which this model needs.")
        return default

    def _mismatch(self, key: builtins.str, value: Any, wanted: builtins.str) -> UnsupportedModelError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return UnsupportedModelError(f"{self.origin} sets {key} to {shown}, but it must be {wanted}.")
