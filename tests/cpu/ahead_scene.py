"""Kernels of a device that is not there, compiled ahead of their launches: prints what became of them as JSON.

A process of its own, because other tests of theirs interpret kernels. The device is a driver that launches nothing and
counts; everything else, down to the code that a compute capability 9.0 would run, is Triton's own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from penstock.kernels.triton.activation import silu_and_mul
from penstock.kernels.triton.ahead import compile_ahead
from penstock.kernels.triton.argmax import argmax
from penstock.kernels.triton.attention import PagedRows, Scoring, rotate_and_write
from penstock.kernels.triton.attention_decode import decode, make_workspace
from penstock.kernels.triton.linear import linear_skinny, linear_vector
from penstock.kernels.triton.norm import add_rms_norm, rms_norm

launched: Counter[str] = Counter()
loaded: Counter[str] = Counter()
compiled: Counter[tuple[str, bool]] = Counter()  # (kernel, found on disk)


class _Utils:
    def get_device_properties(self, _device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}

    def load_binary(self, name: str, *_: Any) -> tuple[int, int, int, int, int]:
        loaded[name] += 1
        return 1, 1, 32, 0, 1024


class _NoDevice:
    utils = _Utils()

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, _source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *_: launched.update([metadata.name])


def compute() -> None:
    """Pointers that are None, constants of every type, early launches and such that are not."""
    x, wide = torch.zeros(3, 256, dtype=torch.bfloat16), torch.zeros(512, 256, dtype=torch.bfloat16)
    weight = torch.ones(256)
    for _ in range(2):  # as layers do
        rms_norm(x, weight, 1e-5)
        add_rms_norm(x, x, weight, 1e-5)
        silu_and_mul(linear_skinny(x, wide))
        linear_skinny(x, wide, pdl=True)
        linear_vector(x[:1], wide)
    argmax(torch.zeros(3, 5000))
    kv = torch.zeros(4, 2, 2, 16, 64, dtype=torch.bfloat16)
    qk, v = torch.zeros(3, 6, 64, dtype=torch.bfloat16), torch.zeros(3, 2, 64, dtype=torch.bfloat16)
    rotate_and_write(qk, v, None, kv, torch.arange(3))
    rows = PagedRows(torch.arange(4), torch.full((3,), 5), torch.zeros(3, 1, dtype=torch.int64), torch.arange(3))
    workspace = make_workspace(3, 4, 2, 64, queries=1, num_splits=2, device=x.device)
    decode(qk, v, None, kv, rows, torch.zeros(3, 4, 64, dtype=torch.bfloat16), Scoring(0.1), workspace)


def forget() -> None:
    """As a new process would: what is left lies on disk."""
    for module in list(sys.modules.values()):
        if module.__name__.startswith("penstock.kernels.triton."):
            for value in vars(module).values():
                if isinstance(value, JITFunction):
                    value.device_caches.clear()


def files() -> list[str]:
    return sorted(str(path) for path in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*"))


def taken() -> dict[str, Any]:
    """What happened since the last call."""
    fresh = {name: count for (name, hit), count in compiled.items() if not hit}
    found = {name: count for (name, hit), count in compiled.items() if hit}
    result = {"launched": dict(launched), "loaded": dict(loaded), "compiled": fresh, "found": found}
    for counter in (launched, loaded, compiled):
        counter.clear()
    return result


def main() -> None:
    driver.set_active(_NoDevice())  # type: ignore[arg-type]
    knobs.compilation.listener = lambda *, src, cache_hit, **_: compiled.update([(src.name, cache_hit)])
    run = JITFunction.run
    told: list[tuple[int, int]] = []
    asked = compile_ahead(compute, 4, lambda done, total: told.append((done, total)))
    said: dict[str, Any] = {"asked": asked, "told": told, "ahead": taken()}
    before = files()
    compute()
    said["launch"] = taken()
    forget()
    compute()
    said["launch of a new process"] = taken()
    said["new files"] = len(files()) - len(before)

    forget()
    x, weight = torch.zeros(3, 256, dtype=torch.bfloat16), torch.ones(256)

    def beside() -> None:
        other = threading.Thread(target=rms_norm, args=(x, weight, 1e-5))
        other.start()
        other.join()
        add_rms_norm(x, x, weight, 1e-5)

    said["asked with a thread beside"] = compile_ahead(beside, 1)
    said["thread beside"] = taken()
    said["asked again"] = compile_ahead(beside, 1)
    said["again"] = taken()

    forget()
    logging.disable(logging.WARNING)
    preload, JITFunction.preload = JITFunction.preload, None  # type: ignore[method-assign, assignment]
    compile_ahead(lambda: rms_norm(x, weight, 1e-5), 1)
    JITFunction.preload = preload  # type: ignore[method-assign]
    said["without preload"] = taken()
    rms_norm(x, weight, 1e-5)
    said["in its place"] = taken()

    def fails() -> None:
        raise KeyError("compute")

    try:
        compile_ahead(fails, 1)
    except KeyError as error:
        said["raised"] = str(error)
    said["restored"] = JITFunction.run is run and knobs.runtime.jit_cache_hook is None
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
