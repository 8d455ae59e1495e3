"""Writes constraints.txt from what is installed: the versions of every direct and transitive dependency.

Run it in an environment that passes all tests: .venv/bin/python scripts/pin_versions.py
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
BUILD = ("scikit-build-core", "nanobind")
FETCHED_WHERE_MISSING = ("cmake", "ninja")  # keep their pins when this machine has its own
FOR_CARDS = ("flashinfer",)  # extras that no machine without a card has
HEADER = """\
# Versions of every direct and transitive dependency that the tests passed with. Written by scripts/pin_versions.py.
# Local build labels are left out, so that a CPU build and a CUDA build of the same version both satisfy a pin.
"""


def main() -> None:
    """From pyproject.toml rather than from the installed metadata of Penstock, which may be older."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name not in FOR_CARDS]
    lines = [*project["dependencies"], *(line for extra in extras for line in extra), *BUILD]
    pending = applicable(lines, "")
    seen: set[tuple[str, str]] = set()
    pins: dict[str, str] = {}
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        distribution = importlib.metadata.distribution(name)
        pins[name] = distribution.version.partition("+")[0]
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                pending += applicable(distribution.requires or (), extra)
    kept = [line.split("==") for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if "==" in line]
    pins |= {name: version for name, version in kept if name in FETCHED_WHERE_MISSING and name not in pins}
    text = HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))
    CONSTRAINTS.write_text(text, encoding="utf-8")


def applicable(lines: Iterable[str], extra: str) -> list[Requirement]:
    """The requirements among ``lines`` that hold on this machine when ``extra`` is asked for."""
    requirements = [Requirement(line) for line in lines]
    return [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": extra})]


if __name__ == "__main__":
    main()
