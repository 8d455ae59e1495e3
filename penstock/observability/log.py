"""Logging of Penstock's processes: one line per event on stderr. Does not know who writes or reads.

Modules take ``logging.getLogger(__name__)`` as usual; only process entry points call ``configure_logging``.
"""

from __future__ import annotations

import logging
import sys

LEVELS = ("debug", "info", "warning", "error")
_ROOT = "penstock"
_seen: set[str] = set()


def configure_logging(level: str = "info", *, process: str = "") -> None:
    """Send Penstock's records to stderr. ``process`` names this process in each line. Calling again replaces."""
    if level not in LEVELS:
        raise ValueError(f"log level must be one of {', '.join(LEVELS)}, got {level!r}")
    name = f" {process}" if process else ""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname).1s{name} %(message)s", "%H:%M:%S"))
    root = logging.getLogger(_ROOT)
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False


def warn_once(logger: logging.Logger, message: str) -> None:
    """Log a warning the first time that exactly this text appears in this process."""
    if message not in _seen and len(_seen) < 10_000:
        _seen.add(message)
        logger.warning("%s", message)
