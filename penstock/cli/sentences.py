"""Errors as sentences and exit codes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from penstock.config import env
from penstock.errors import PenstockError, UserError

EXIT_USER_ERROR = 2
EXIT_FAILURE = 1


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Errors that Penstock raises on purpose end the process with their sentence: 2 when the user can fix it, else 1.

    With PENSTOCK_DEBUG (or --debug) the stack trace comes as well.
    """
    try:
        for remark in env.check_environment():
            print(remark, file=sys.stderr)
        yield
    except PenstockError as error:
        if _debug():
            raise
        print(f"penstock: {error}", file=sys.stderr)
        raise SystemExit(EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILURE) from error


def _debug() -> bool:
    try:
        return env.debug()
    except UserError:  # a malformed PENSTOCK_DEBUG is the very error to report
        return False
