"""What an accelerator's memory was seen to do, kept from one process to the next.

Measured by ``kernels.device_rate`` once per device and driver; here it is only looked up and written down, in one file
of the cache directory. A file that cannot be read or written costs another measurement, never a start. Imports no
torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from penstock.config.env import cache_dir
from penstock.types.facts import AcceleratorFacts

_in_this_process: dict[str, int] = {}  # for those whose file cannot be written


def with_known_rates(accelerators: Sequence[AcceleratorFacts]) -> tuple[AcceleratorFacts, ...]:
    """The same, with ``copied_bytes_per_s`` where it has been measured."""
    known = {**_read(), **_in_this_process} if accelerators else {}
    return tuple(
        dataclasses.replace(each, copied_bytes_per_s=known.get(_key(each), each.copied_bytes_per_s))
        for each in accelerators
    )


def keep_rate(accelerator: AcceleratorFacts, copied_bytes_per_s: int) -> None:
    """Write down what was measured. Never raises."""
    _in_this_process[_key(accelerator)] = copied_bytes_per_s
    file = _file()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(f".{os.getpid()}")  # others may be reading
        fresh.write_text(json.dumps({**_read(), _key(accelerator): copied_bytes_per_s}, indent=2), encoding="utf-8")
        fresh.replace(file)


def _key(accelerator: AcceleratorFacts) -> str:
    return f"{accelerator.uuid or accelerator.name}, driver {accelerator.driver}"


def _file() -> Path:
    return cache_dir() / "device-rates.json"


def _read() -> dict[str, int]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if type(value) is int and value > 0}
