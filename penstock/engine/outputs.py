"""What the offline API answers: plain frozen records. Knows no engine."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.frontend.text.stream import PositionScores


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One choice. ``finish_reason`` is "stop" or "length"; ``stop_reason`` the stop string or extra stop token id.

    ``logprobs`` has one entry per token when they were asked for: the token, its rank, the most likely ones.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: str | int | None = None
    logprobs: tuple[PositionScores, ...] | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        return None if self.logprobs is None else sum(entry.chosen.logprob for entry in self.logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """The answer to one prompt: one output per choice (``n`` of them).

    ``prompt`` is the text that was encoded (for chats: as the template rendered it), None for token-id prompts.
    ``prompt_logprobs`` describe the prompt's tokens from the second on. ``num_cached_tokens`` is how many prompt
    tokens the prefix cache served.
    """

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    prompt_logprobs: tuple[PositionScores, ...] | None = None
    num_cached_tokens: int = 0

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.outputs[0].text
