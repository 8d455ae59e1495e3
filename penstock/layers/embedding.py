"""Token embedding and LM head, with or without a shared weight."""

from __future__ import annotations

import torch

from penstock.layers.linear import LinearWeight
from penstock.layers.parameter import Layer
from penstock.layers.parts import LayerParts
from penstock.quantization.linear import InputFormat, LinearInput


class Embedding(Layer):
    """Rows of a matrix [vocab_size, hidden_size], through a LinearMethod, so that the LM head can share it."""

    def __init__(self, vocab_size: int, hidden_size: int, parts: LayerParts) -> None:
        self.weight = LinearWeight(vocab_size, hidden_size, parts)

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.weight.embed(token_ids)


class LmHead(Layer):
    """Hidden states to logits. A tied head has no parameter of its own and multiplies with the embedding's weight."""

    def __init__(
        self, vocab_size: int, hidden_size: int, parts: LayerParts, *, tied_to: Embedding | None = None
    ) -> None:
        if tied_to is None:
            self.weight = LinearWeight(vocab_size, hidden_size, parts)
        self._matrix = (self.weight if tied_to is None else tied_to.weight,)

    @property
    def input_format(self) -> InputFormat:
        return self._matrix[0].input_format

    def __call__(self, hidden: LinearInput) -> torch.Tensor:
        """hidden [rows, hidden_size] -> logits float32 [rows, vocab_size]."""
        return self._matrix[0].apply(hidden).float()

    def argmax(self, hidden: LinearInput) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [rows, hidden_size] -> for each row the token of the largest logit, int64, the first among equals, and
        that logit in float32, NaN when any of the row is. The logits are not kept where the method can do without."""
        return self._matrix[0].argmax(hidden)
