"""Runs tiers of tests, each in its own pytest, so that what one tier loads cannot help or harm another.

Ends with one closing line in pytest's form that sums the tiers up.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIERS = ("null", "cpu", "conformance", "gpu", "multigpu")
DEFAULT = ("null", "cpu", "conformance")
HANG_SECONDS = "900"  # a test that waits forever should not hold a machine; no test relies on this limit
NO_TESTS = 5  # pytest's exit status
# Plugins that packages bring along: each would load in every worker of every tier, for seconds.
PLUGINS = ("schemathesis", "anyio")
NEEDED = {"cpu": {"schemathesis"}}  # by the fuzzer of the HTTP routes
_CLOSING = re.compile(
    r"^(?:=+ )?(?P<counts>\d+ (?:passed|failed|error|skipped|deselected|x).*|no tests ran) in [\d.]+s\b.*$"
)
_COUNT = re.compile(r"(\d+) (\w+)")


def main(arguments: list[str]) -> int:
    tiers = [argument for argument in arguments if argument in TIERS] or list(DEFAULT)
    extra = [argument for argument in arguments if argument not in TIERS]
    started = time.monotonic()
    counts: Counter[str] = Counter()
    broken = []
    for tier in tiers:
        status = run_tier(tier, extra, counts)
        if status not in (0, NO_TESTS):
            broken.append(tier)
    words = ", ".join(f"{count} {what}" for what, count in sorted(counts.items(), key=_order)) or "no tests ran"
    if broken:
        print(f"Tiers that did not pass: {', '.join(broken)}.")
    print(f" {words} in {time.monotonic() - started:.2f}s ".center(80, "="), flush=True)
    return 1 if broken or not counts["passed"] else 0


def run_tier(tier: str, extra: list[str], counts: Counter[str]) -> int:
    """Run one tier, pass its output on, and add its counts instead of printing its closing line."""
    print(f"--- tier {tier}", flush=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, 8)
    command = [sys.executable, "-m", "pytest", f"tests/{tier}", "--timeout", HANG_SECONDS]
    command += ["--no-header", "-o", "console_output_style=classic", "--color=no"]
    command += [part for plugin in PLUGINS if plugin not in NEEDED.get(tier, ()) for part in ("-p", f"no:{plugin}")]
    if workers > 1 and tier not in ("gpu", "multigpu"):
        command += ["-n", str(workers), "--dist", "worksteal"]
    environment = {"OMP_NUM_THREADS": str(max(1, cores // workers)), "TOKENIZERS_PARALLELISM": "false", **os.environ}
    # Many tests start processes: each would compile the package, and each worker the tests, where nothing is kept.
    # Kept beside the sources: with a folder elsewhere Python would not see what pip compiled of torch and all others.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.Popen([*command, *extra], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        closing = _CLOSING.match(line.strip())
        if closing is None:
            print(line, end="", flush=True)
            continue
        found = {what: int(count) for count, what in _COUNT.findall(closing["counts"])}
        counts.update(found)
        print(f"tier {tier}: {', '.join(f'{what} {count}' for what, count in found.items())}", flush=True)
    return process.wait()


def _order(item: tuple[str, int]) -> int:
    order = ("failed", "error", "errors", "passed", "skipped", "deselected", "xfailed", "xpassed", "warnings")
    return order.index(item[0]) if item[0] in order else len(order)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
