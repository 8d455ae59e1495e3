"""The name gate: refuses module names that say nothing, and text that belongs to one machine.

A folder called like a drawer names a missing concept. An absolute path, a package index or a registry host in a
committed file works for one person only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DRAWERS = {"util", "utils", "helper", "helpers", "common", "misc"}
_PARTS = (
    "py" + r"pi\.org",
    "python" + "hosted",
    "--" + "index-url",
    "--" + "extra-index",
    "/" + "root/",
    "/" + "work/",
)
_FORBIDDEN = re.compile("|".join(_PARTS))
_SOURCES = (".py", ".cpp", ".hpp", ".inl")
_TEXT = (
    ".py", ".md", ".toml", ".txt", ".html", ".js", ".css", ".json", ".yaml", ".yml", ".cpp", ".hpp", ".inl", ".jinja",
    ".cmake", "",
)  # fmt: skip


def main() -> int:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    problems = []
    for name in listing.splitlines():
        path = Path(name)
        if path.suffix in _SOURCES and DRAWERS & {path.stem, *path.parent.parts}:
            problems.append(f"{name}: this name says nothing; name the concept.")
        if path.suffix in _TEXT and (ROOT / path).is_file():
            problems += _forbidden_text(name)
    print("\n".join(problems) or "names are fine")
    return 1 if problems else 0


def _forbidden_text(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8", errors="replace").splitlines()
    return [
        f"{name}:{number}: {match.group(0)!r} belongs to one machine or one index; write it so that it works anywhere."
        for number, line in enumerate(lines, 1)
        if (match := _FORBIDDEN.search(line))
    ]


if __name__ == "__main__":
    sys.exit(main())
