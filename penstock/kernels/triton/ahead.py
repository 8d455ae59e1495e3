"""Compiles the kernels that a computation would launch, without launching them: each once, all at the same time.

A step meets its kernels one after the other, and waits for the compiler each time; steps in threads meet the same ones
at the same time, and each thread compiles them for itself. Here a computation goes on without its kernels, and threads
take up what it asked for meanwhile: most of a compiler's time passes without Python's lock, and the longest kernel
takes as long as the whole does on enough cores.

For an 8B model's first start that is 33 kernels, 25 s of one core (3 s of them Python's), of which prefill attention
takes 3.5 s. The chain of kernels of one sampled prefill takes 9 s. Releases of Triton that also compile a launcher of
each signature in C add 8 s to all and 5 s to the chain.

Knows no kernel.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

from triton import knobs
from triton.runtime.jit import JITFunction

log = logging.getLogger(__name__)

_alone = threading.Lock()  # two that restore what the other has set would leave it behind


def compile_ahead(
    compute: Callable[[], object], num_threads: int, progress: Callable[[int, int], None] | None = None
) -> int:
    """Call ``compute`` with nothing launched by this thread, while ``num_threads`` others compile what would have been
    and load it to the device. Returns how many there were, when all are there.

    What kernels would have written is as it was allocated: ``compute`` must not let libraries index by it. What cannot
    be compiled is left to its launch, which says why. Launches of other threads are not touched.
    ``progress(done, total)`` is told of the kernels by this thread, from when it knows of all.
    """
    asked: dict[tuple[JITFunction[Any], str], Future[None]] = {}
    with _alone, ThreadPoolExecutor(num_threads, "penstock-compile") as threads:

        def ask(function: JITFunction[Any], specialization: str) -> None:
            if (function, specialization) not in asked:
                asked[function, specialization] = threads.submit(_compile, function, specialization)

        with _unlaunched(ask):
            compute()
        for done, _ in enumerate(as_completed(asked.values()), 1):
            if progress is not None:
                progress(done, len(asked))
    return len(asked)


def _compile(function: JITFunction[Any], specialization: str) -> None:
    try:
        compiled = function.preload(specialization)
        _ = compiled.run  # makes the launcher and loads the code
    except Exception:
        log.warning("the kernel %s was not compiled ahead of its launch", function, exc_info=True)


@contextlib.contextmanager
def _unlaunched(ask: Callable[[JITFunction[Any], str], None]) -> Iterator[None]:
    """Kernels of this thread are not launched; ``ask`` hears of the function and the specialization of those that have
    not been compiled, each time."""
    here = threading.get_ident()
    launch, hook = JITFunction.run, knobs.runtime.jit_cache_hook

    def run(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return launch(self, *args, grid=grid, warmup=warmup or threading.get_ident() == here, **kwargs)

    def on_miss(*, fn: Any, compile: dict[str, Any], **others: Any) -> bool | None:
        if threading.get_ident() == here:
            ask(fn.jit_function, compile["specialization_data"])
            return True  # as if it had been compiled
        return hook(fn=fn, compile=compile, **others) if hook is not None else None

    JITFunction.run, knobs.runtime.jit_cache_hook = run, on_miss
    try:
        yield
    finally:
        JITFunction.run, knobs.runtime.jit_cache_hook = launch, hook
