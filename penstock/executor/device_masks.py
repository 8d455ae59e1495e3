"""Token masks on the device: packed on the host, sent in one copy, applied to logits there. Knows no plan.

Masks come late, while the forward runs. A row's mask is applied behind its other edits: what it forbids is minus
infinity whatever they did, and what it allows they have changed as they would behind it. So the host's order, in which
the mask is first, gives the same logits; and the edits, which also look for what is not finite, need not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from penstock.executor.device_inputs import HostRing

WORD_BITS = 32
PAIR = 2  # 64-bit words; the masks behind the row numbers begin at a multiple of 16 bytes

MaskOp = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def mask_bytes(max_num_seqs: int, vocab_size: int) -> int:
    """The most that the masks of one step and their row numbers take on the device, and the logits that wait there."""
    return 4 * max_num_seqs * (_num_words(vocab_size) + vocab_size) + 8 * (max_num_seqs + PAIR)


class DeviceMasks:
    """Owns the memory that masks are copied from, and where logits wait for them. ``op`` is the op "mask_logits",
    ``depth`` how many steps may be in flight."""

    def __init__(self, max_num_seqs: int, vocab_size: int, op: MaskOp, depth: int, device: torch.device) -> None:
        self._shape = (max_num_seqs, vocab_size)
        self._num_words = _num_words(vocab_size)
        self._kept: torch.Tensor | None = None
        self._op, self._device = op, device
        self._host = HostRing(depth + 1, self._num_words, pinned=device.type == "cuda")  # grows with the rows

    def keep(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits float32 [n, vocab] in the memory of the one step that waits: a recorded step that answered its own
        would keep them for as long as it can be repeated, and each of its kind others. Called once before a recording,
        which may not allocate what outlives it."""
        if self._kept is None:
            self._kept = torch.empty(self._shape, dtype=torch.float32, device=self._device)
        return self._kept[: len(logits)].copy_(logits)

    def apply(self, logits: torch.Tensor, masks: Mapping[int, bytes]) -> None:
        """Forbid in logits float32 [n, vocab], row r, the tokens whose bit of ``masks[r]`` is 0, and those past its
        end. One asynchronous copy, one launch; nothing is waited for."""
        if not masks:
            return
        count, width = len(masks), 4 * self._num_words
        begin = count + count % PAIR
        total = begin + -(-count * self._num_words // 2)
        host = self._host.next(total)[:total]
        host.numpy()[:count] = list(masks)
        packed = host.numpy()[begin:].view(np.uint8)[: count * width].reshape(count, width)
        for line, mask in zip(packed, masks.values(), strict=True):
            given = min(len(mask), width)
            line[:given] = np.frombuffer(mask, dtype=np.uint8, count=given)
            line[given:] = 0
        sent = host.to(self._device, non_blocking=True)
        words = sent[begin:].view(torch.int32)[: count * self._num_words].view(count, self._num_words)
        self._op(logits, sent[:count], words)


def allowed_by(mask: bytes, vocab_size: int) -> torch.Tensor:
    """The tokens that a mask allows, bool [vocab]."""
    # Filled up here: of no bytes at all numpy answers bits that it has not written.
    packed = np.frombuffer(mask.ljust(-(-vocab_size // 8), b"\0"), dtype=np.uint8)
    bits = np.unpackbits(packed, count=vocab_size, bitorder="little")
    return torch.from_numpy(bits.astype(np.bool_))


def _num_words(vocab_size: int) -> int:
    return -(-vocab_size // WORD_BITS)
