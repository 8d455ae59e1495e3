"""Graphs of CUDA kernels. Knows no step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

from penstock.executor.graphs import GraphRefusedError, Recorded

T = TypeVar("T")


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph

    def __len__(self) -> int:
        return 1  # a launch; what is in it only a profiler can tell

    def run(self) -> None:
        self._graph.replay()

    def run_timed(self) -> list[tuple[str, int]]:
        torch.cuda.synchronize()
        began = time.perf_counter_ns()
        self._graph.replay()
        torch.cuda.synchronize()
        return [("CUDA graph", time.perf_counter_ns() - began)]


class CudaRecorder:
    """Implements ``graphs.Recorder``. All graphs share one pool of torch's allocator: one runs at a time, and what it
    answers is copied before the next. The largest should be recorded first, so that others fit in its memory."""

    name = "CUDA graph"

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._broken: list[torch.cuda.CUDAGraph] = []

    def record(self, compute: Callable[[], T], /) -> tuple[Recorded, T]:
        """Computes once before it records: kernels are compiled and loaded, and libraries take their workspaces, in
        ways that a recording does not allow."""
        compute()
        torch.cuda.synchronize()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                answer = compute()
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # a recording that cannot be ended leaves its own behind
            # torch's allocators go on asking such a graph what it records, and take its pool for one that is in use.
            self._broken.append(graph)
            self._pool = torch.cuda.graph_pool_handle()
            raise GraphRefusedError(f"a step waits for the device or does what a graph cannot: {error}") from error
        return _CudaGraph(graph), answer
