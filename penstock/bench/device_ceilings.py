"""What a CUDA device gives at most: bytes copied and products done per second, by calls that do nothing else.

Knows no op. Measured inside CUDA graphs, so that launches from Python are not in the figures.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

MATRIX_SIZE = 8192  # of the square bfloat16 product: large enough for every multiprocessor, several times over
FLOAT32_SIZE = 4096
COPY_BYTES = 1 << 30  # no cache holds a part of it that counts
CACHED_BYTES = 8 << 20  # read and written again and again, which every second-level cache since Ampere holds
_LEAST_S = 0.02  # a repeat takes about so long


def copy_gb_s(num_bytes: int, device: torch.device, repeats: int = 9) -> float:
    """Bytes read plus bytes written, of a copy of ``num_bytes`` on the device."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _rate(lambda: target.copy_(source), 2 * num_bytes, repeats)


def product_gop_s(size: int, dtype: torch.dtype, device: torch.device, repeats: int = 9) -> float:
    """Products and sums of a square matrix product. On random values: with zeros a device draws less power and runs at
    clocks that it does not hold with others."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    target = torch.empty_like(left)
    return _rate(lambda: torch.mm(left, right, out=target), 2 * size**3, repeats)


def device_seconds(run: Callable[[], object]) -> float:
    """From the moment that the device begins what ``run`` launches to its end."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def capture(run: Callable[[], object]) -> Callable[[], None]:
    """What ``run`` launches as one CUDA graph. ``run`` is called before, for the costs of its first use."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _rate(call: Callable[[], object], amount: int, repeats: int) -> float:
    """The most of ``amount`` per call that is done in a nanosecond."""
    once = device_seconds(capture(call))
    together = max(1, min(1000, int(_LEAST_S / once)))

    def calls() -> None:
        for _ in range(together):
            call()

    replay = capture(calls)
    replay()  # clocks rise
    best = min(device_seconds(replay) for _ in range(repeats))
    return round(amount * together / best / 1e9, 1)
