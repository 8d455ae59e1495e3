"""Errors about a chat request in the words of the request that it was made from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from penstock.errors import InvalidRequestError


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Inside, fields of a chat request that an InvalidRequestError names get the names that the caller wrote.

    ``names`` maps whole names, such as "messages", and pieces of paths, such as ".function".
    """
    try:
        yield
    except InvalidRequestError as error:
        param = error.param and _translate(error.param, names)
        raise InvalidRequestError(_translate(str(error), names), param=param, code=error.code) from None


def _translate(text: str, names: Mapping[str, str]) -> str:
    """Names that stand alone or behind an index, but not "these messages", which is a word."""
    name = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<![\w'\"])(?<!these )(?:{name})(?!\w)", lambda found: names[found[0]], text)
