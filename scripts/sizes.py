"""The size gate: measures functions and files, and refuses what is larger than the house allows.

Limits: functions p95 45 lines, none over 100; files p90 300 lines, none over 600 (kernels 900). The caps hold for every
file and function of the package, the tests and the scripts; the percentiles for the package alone and for all of them
together, since a contract's tests stand in one file. Exceptions stand in size_allowances.txt with their present size;
the list may shrink, never grow: an entry that is larger than needed, or not needed, fails too.
"""

from __future__ import annotations

import ast
import math
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("penstock", "tests", "scripts")
ALLOWANCES = ROOT / "scripts" / "size_allowances.txt"
FUNCTION_P95, FUNCTION_CAP = 45, 100
FILE_P90, FILE_CAP, KERNEL_CAP = 300, 600, 900


@dataclass(frozen=True)
class Size:
    where: str  # "path" or "path:function"
    lines: int
    cap: int


def main() -> int:
    parts = {name: measure(ROOT / name) for name in PARTS}
    everything = [size for files, functions in parts.values() for size in (*files, *functions)]
    problems = over_caps(everything, read_allowances())
    package, whole = parts["penstock"], _together(list(parts.values()))
    for what, (files, functions) in {"the package": package, "the repository": whole}.items():
        p95, p90 = percentile(lines_of(functions), 95), percentile(lines_of(files), 90)
        if p95 > FUNCTION_P95:
            problems.append(f"95% of {what}'s functions should have at most {FUNCTION_P95} lines; p95 is {p95}.")
        if p90 > FILE_P90:
            problems.append(f"90% of {what}'s files should have at most {FILE_P90} lines; p90 is {p90}.")
    for name, (files, functions) in parts.items():
        print(_summary(name, files, functions))
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def measure(folder: Path) -> tuple[list[Size], list[Size]]:
    """Sizes of all Python files and functions below ``folder``; docstrings count."""
    files, functions = [], []
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        files.append(Size(name, len(text.splitlines()), KERNEL_CAP if "/kernels/" in name else FILE_CAP))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                functions.append(Size(f"{name}:{node.name}", lines, FUNCTION_CAP))
    return files, functions


def over_caps(sizes: list[Size], allowed: dict[str, int]) -> list[str]:
    problems = []
    largest: dict[str, int] = {}
    for size in sizes:
        largest[size.where] = max(size.lines, largest.get(size.where, 0))
        if size.lines > max(size.cap, allowed.get(size.where, 0)):
            problems.append(f"{size.where} has {size.lines} lines, more than {size.cap}.")
    caps = {size.where: size.cap for size in sizes}
    for where, lines in allowed.items():
        now = largest.get(where, 0)
        if now <= caps.get(where, 0):
            problems.append(f"{where} needs no allowance any more: remove its line from {ALLOWANCES.name}.")
        elif now < lines:
            problems.append(f"{where} has shrunk to {now} lines: lower its allowance in {ALLOWANCES.name}.")
    return problems


def read_allowances() -> dict[str, int]:
    entries = {}
    for line in ALLOWANCES.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            where, lines = line.split()
            entries[where] = int(lines)
    return entries


def percentile(values: list[int], percent: int) -> int:
    """Nearest rank."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else 0


def lines_of(sizes: list[Size]) -> list[int]:
    return [size.lines for size in sizes]


def _together(parts: list[tuple[list[Size], list[Size]]]) -> tuple[list[Size], list[Size]]:
    return [file for files, _ in parts for file in files], [one for _, functions in parts for one in functions]


def _summary(name: str, files: list[Size], functions: list[Size]) -> str:
    file_lines, function_lines = lines_of(files), lines_of(functions)
    return (
        f"{name}: {len(functions)} functions, p95 {percentile(function_lines, 95)}, longest {max(function_lines)} | "
        f"{len(files)} files, median {percentile(file_lines, 50)}, p90 {percentile(file_lines, 90)}, "
        f"longest {max(file_lines)} | {sum(file_lines)} lines"
    )


if __name__ == "__main__":
    sys.exit(main())
