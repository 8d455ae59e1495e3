"""Writes constraints.txt from what is installed: the versions of every direct and transitive dependency.

Run it in an environment that passes all tests: .venv/bin/python scripts/pin_versions.py
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SETS = ("runtime", "reports", "test", "dev")
BUILD = ("hatchling", "editables")
HEADER = """\
# Versions of every direct and transitive dependency that the tests passed with. Written by scripts/pin_versions.py.
# Local build labels are left out, so that a CPU build and a CUDA build of the same version both satisfy a pin.
"""


def main() -> None:
    pending = [("penstock", extra) for extra in SETS] + [(name, "") for name in BUILD]
    seen = set(pending)
    pins: dict[str, str] = {}
    while pending:
        name, extra = pending.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        pins[canonicalize_name(name)] = distribution.version.partition("+")[0]
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            wanted = {(canonicalize_name(requirement.name), each) for each in ("", *requirement.extras)} - seen
            seen |= wanted
            pending.extend(wanted)
    del pins["penstock"]
    text = HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))
    (ROOT / "constraints.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
