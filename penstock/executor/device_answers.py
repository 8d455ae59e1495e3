"""What a step on a device answers, copied to the host behind it. Knows no plan."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from penstock.executor.device_logprobs import DescribedPlace
from penstock.executor.forward import Computed
from penstock.executor.seats import Ints

Bools = npt.NDArray[np.bool_]


class Answers:
    """Token ids and whether their rows' logits were finite, copied behind a step. ``described``: log-probabilities."""

    def __init__(
        self,
        token_ids: torch.Tensor,
        largest: torch.Tensor,
        event: torch.cuda.Event | None,
        described: DescribedPlace | None,
    ) -> None:
        self._token_ids, self._largest, self._event = token_ids, largest, event
        self.described = described

    def done(self) -> bool:
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> tuple[Ints, Bools]:
        if self._event is not None:
            self._event.synchronize()
        return self._token_ids.numpy().copy(), np.isfinite(self._largest.numpy())


class AnswerRing:
    """Host memory that results are copied to; one place per step in flight."""

    def __init__(self, size: int, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._places = [
            (
                torch.zeros(max_rows, dtype=torch.int64, pin_memory=self._pinned),
                torch.zeros(max_rows, dtype=torch.float32, pin_memory=self._pinned),
                torch.cuda.Event() if self._pinned else None,  # type: ignore[no-untyped-call]
                DescribedPlace(max_rows, vocab_size, pinned=self._pinned),
            )
            for _ in range(size)
        ]
        self._last = 0

    def copy(self, computed: Computed, count: int) -> Answers:
        self._last = (self._last + 1) % len(self._places)
        token_ids, largest, event, described = self._places[self._last]
        token_ids, largest = token_ids[:count], largest[:count]
        if count:
            token_ids.copy_(computed[0][:count], non_blocking=True)
            if computed[1].dtype is torch.bool:  # finite or not
                largest.copy_(torch.where(computed[1][:count], 0.0, torch.inf), non_blocking=True)
            else:
                largest.copy_(computed[1][:count], non_blocking=True)
        has_logprobs = count > 0 and len(computed) > 2
        if has_logprobs:
            described.copy(computed[2:], count)
        if event is not None:
            event.record()
        return Answers(token_ids, largest, event, described if has_logprobs else None)
