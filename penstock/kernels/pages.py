"""Memory straight from the system, in huge pages where it gives them. Knows nothing of what lies in it."""

from __future__ import annotations

import mmap
import threading

import torch

HUGE_PAGE = 2 << 20
LINE = 64
_REGION_BYTES = 64 << 20


def zeroed(nbytes: int) -> torch.Tensor:
    """Zero bytes, uint8, that cost neither time nor memory before they are written.

    Filling 4 GiB takes longer than loading a small model (2.7 s of 3.9 s when this was measured).
    """
    if nbytes == 0:
        return torch.zeros(0, dtype=torch.uint8)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # results and keys are touched in rows many small pages apart
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


class Regions:
    """Gives out pieces of large regions, one after another: for weights, most of which are smaller than a huge page.

    Whoever reads weights from one end to the other crosses a small page every 4 KiB, where the processor's own
    prefetching stops and an address has to be translated. A region goes back to the system when no piece is in use.
    """

    def __init__(self, region_bytes: int = _REGION_BYTES) -> None:
        self._region_bytes = region_bytes
        self._region = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> torch.Tensor:
        """Zero bytes, uint8, that begin with a line of the cache."""
        with self._lock:
            if self._used + nbytes > self._region.numel():
                region = zeroed(max(self._region_bytes, nbytes) + HUGE_PAGE)
                self._region = region[-region.data_ptr() % HUGE_PAGE :]
                self._used = 0
            piece = self._region[self._used : self._used + nbytes]
            self._used += -(-nbytes // LINE) * LINE
            return piece


WEIGHTS = Regions()
