"""What one rendering of a chat template may take: time, and text and lists that it makes on its way.

Jinja's sandbox keeps templates from Python, not from loops in loops or from texts that double. Whatever can take long
or become large passes through here: every turn of a loop, call, filter and operator that makes something. What one of
them makes is bounded, so that none of them alone takes long either.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn

RENDER_TIMEOUT_S = 10.0
MAX_CHARACTERS = 8 << 20
"""Of one text: the prompt, or a part on the way to it."""
MAX_ITEMS = 1 << 20
"""Of one list."""
MAX_MADE = 256 << 20
"""Characters of all texts, and items of all lists, that a rendering makes."""
MAX_WIDTH = 1024
"""Of what a filter or a format fills up with blanks."""
MAX_BITS = 4096
"""Of whole numbers."""

REMOVED_FILTERS = ("urlize", "striptags", "xmlattr", "wordwrap", "pprint")
"""Their time is not bounded by the size of what they read."""
REMOVED_GLOBALS = ("lipsum",)
_WIDTH_NAMES = frozenset({"center", "indent", "batch", "slice", "tojson", "ljust", "rjust", "zfill", "expandtabs"})
_PRINTF_WIDTH = re.compile(r"%[^a-zA-Z%]*(?:\d{4,}|\*)")
_FORMAT_WIDTH = re.compile(r"\d{4,}|\{[^{}]*\{")


class _Run(threading.local):
    """The rendering of this thread."""

    deadline = float("inf")
    made = 0


_run = _Run()


class ExcessError(ValueError):
    """A rendering takes too much."""


@contextmanager
def bounded_rendering(seconds: float = RENDER_TIMEOUT_S) -> Iterator[None]:
    """What is rendered inside may take so long."""
    _run.deadline, _run.made = time.monotonic() + seconds, 0
    try:
        yield
    finally:
        _run.deadline = float("inf")


def tick() -> None:
    """One more step. Raises ExcessError when the rendering's time is over."""
    if time.monotonic() > _run.deadline:
        raise ExcessError("it takes too long")


def paced(items: Iterable[Any]) -> Iterator[Any]:
    """What a loop goes over."""
    for item in items:
        tick()
        yield item


def checked(value: Any) -> Any:
    """What an operation has made."""
    tick()
    if isinstance(value, str):
        _count(len(value), MAX_CHARACTERS)
    elif isinstance(value, list | tuple | dict):
        _count(len(value), MAX_ITEMS)
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
        _refuse("it makes a number that is too large")
    return value


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Before it is computed."""
    if operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | list | tuple) and isinstance(times, int):
                _check_length(many, len(many) * max(times, 0))
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > MAX_BITS:
            _refuse("it makes a number that is too large")
    elif operator == "%":
        if isinstance(left, str):
            _check_printf(left)
    elif isinstance(left, Sized) and isinstance(right, Sized):
        _check_length(left, len(left) + len(right))


def check_call(name: str, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Before the filter or the method ``name`` is applied to ``value``."""
    given = (*args, *kwargs.values())
    if name in _WIDTH_NAMES:
        if any(isinstance(one, int) and abs(one) > MAX_WIDTH for one in given):
            _refuse(f"it asks {name} for more than {MAX_WIDTH}")
        if name == "indent" and any(isinstance(one, str) and len(one) > MAX_WIDTH for one in given):
            _refuse(f"it asks {name} for more than {MAX_WIDTH}")
    elif name == "replace" and isinstance(value, str) and len(args) >= 2:
        old, new = str(args[0]), str(args[1])
        number = value.count(old) if old else len(value) + 1
        _count(len(value) + number * len(new), MAX_CHARACTERS)
    elif name == "join":
        _check_join(value, args, kwargs)
    elif name == "format" and isinstance(value, str):
        _check_printf(value)
    elif name == "translate":
        _refuse("it translates characters")


def check_format(form: str) -> None:
    """Before ``str.format``."""
    if _FORMAT_WIDTH.search(form):
        _refuse("it asks a format for a width that is too large")


def checked_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as a filter, within the limits."""
    takes_context = hasattr(function, "jinja_pass_arg")

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tick()
        value, *rest = args[1:] if takes_context else args
        check_call(name, value, rest, kwargs)
        return checked(function(*args, **kwargs))

    return call


def _check_join(value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """As a method the separator is the value, as a filter the list is. Of what comes item by item, the items are
    counted where they are made."""
    separator, items = (value, args[0]) if isinstance(value, str) and args else (args[0] if args else "", value)
    separator = kwargs.get("d", separator)
    if isinstance(items, str):
        _count(len(items) * (1 + len(str(separator))), MAX_CHARACTERS)
    elif isinstance(items, list | tuple):
        texts = sum(len(item) if isinstance(item, str) else 32 for item in items)
        _count(texts + len(str(separator)) * len(items), MAX_CHARACTERS)


def _check_printf(form: str) -> None:
    if _PRINTF_WIDTH.search(form):
        _refuse("it asks a format for a width that is too large")


def _check_length(value: Any, length: int) -> None:
    if length > (MAX_CHARACTERS if isinstance(value, str) else MAX_ITEMS):
        _refuse("it makes a text or a list that is too long")


def _count(length: int, limit: int) -> None:
    _run.made += length
    if length > limit or _run.made > MAX_MADE:
        _refuse("it makes texts or lists that are too long")


def _refuse(why: str) -> NoReturn:
    raise ExcessError(why)
