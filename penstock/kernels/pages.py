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
    return _piece(_pages(nbytes), 0, nbytes) if nbytes else torch.zeros(0, dtype=torch.uint8)


class Regions:
    """Gives out pieces of large regions, one after another: for weights, most of which are smaller than a huge page.

    Whoever reads weights from one end to the other crosses a small page every 4 KiB, where the processor's own
    prefetching stops and an address has to be translated. A region goes back to the system when no piece is in use.
    """

    def __init__(self, region_bytes: int = _REGION_BYTES) -> None:
        self._region_bytes = region_bytes
        self._pages: mmap.mmap | None = None
        self._used = 0
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> torch.Tensor:
        """Zero bytes, uint8, that begin with a line of the cache. The tensor has a storage of its own: copying it
        copies nothing else."""
        if nbytes == 0:
            return torch.zeros(0, dtype=torch.uint8)
        with self._lock:
            if self._pages is None or self._used + nbytes > len(self._pages):
                self._pages = _pages(max(self._region_bytes, nbytes) + HUGE_PAGE)
                self._used = -_piece(self._pages, 0, 1).data_ptr() % HUGE_PAGE
            piece = _piece(self._pages, self._used, nbytes)
            self._used += -(-nbytes // LINE) * LINE
            return piece


def _pages(nbytes: int) -> mmap.mmap:
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # results and keys are touched in rows many small pages apart
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _piece(pages: mmap.mmap, offset: int, nbytes: int) -> torch.Tensor:
    """Keeps the pages for as long as it lives."""
    return torch.frombuffer(pages, dtype=torch.uint8, offset=offset, count=nbytes)


WEIGHTS = Regions()
