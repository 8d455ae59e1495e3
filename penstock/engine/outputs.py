"""What the offline API answers: plain frozen records. Knows no engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penstock.frontend.text.stream import PositionScores


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionCall:
    """A call of a tool. ``arguments`` are JSON text; cut off when the answer was."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One choice. ``finish_reason`` is "stop", "length" or "tool_calls"; ``stop_reason`` the stop string or extra stop
    token id.

    Of a chat, ``text`` is what the model said to the user; its ``reasoning`` and ``tool_calls`` stand apart.
    ``logprobs`` has one entry per token when they were asked for: the token, its rank, the most likely ones.
    """

    index: int
    text: str
    reasoning: str = ""
    tool_calls: tuple[FunctionCall, ...] = ()
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: str | int | None = None
    logprobs: tuple[PositionScores, ...] | None = None

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message to go on with: append it to the conversation, and the results of its calls."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["content"] = self.text or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return message

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
