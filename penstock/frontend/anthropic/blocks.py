"""What a dialect has read -> content blocks of a message, and the events that tell of them. A message is its blocks at
the end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from msgspec import Raw

from penstock.frontend.anthropic.answers import Block, TextBlock, ThinkingBlock, ToolUseBlock
from penstock.frontend.anthropic.partial_json import partial_object
from penstock.frontend.dialects.events import (
    ArgumentText,
    CallBegun,
    CallEnded,
    ContentText,
    Event,
    ReasoningText,
)


@dataclass(slots=True, kw_only=True)
class BlockWriter:
    """Feed it the events of one answer in order, then ``close``."""

    include_thinking: bool = True
    blocks: list[Block] = field(default_factory=list)
    _news: list[dict[str, Any]] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)
    _open: Block | None = None

    def take_news(self) -> list[dict[str, Any]]:
        news, self._news = self._news, []
        return news

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case ContentText(text):
                    self.add_text(text)
                case ReasoningText(text):
                    if self.include_thinking:
                        self._add_thinking(text)
                case CallBegun(_, call_id, name):
                    self._begin(ToolUseBlock(id=call_id, name=name, input={}))
                case ArgumentText(_, text):
                    self._add({"type": "input_json_delta", "partial_json": text}, text)
                case CallEnded(_, complete):
                    self._end(complete)

    def add_text(self, text: str) -> None:
        if not isinstance(self._open, TextBlock):
            self._begin(TextBlock(text=""))
        self._add({"type": "text_delta", "text": text}, text)

    def close(self) -> None:
        """The end of the answer. A message without any block is an empty text."""
        if not self.blocks:
            self._begin(TextBlock(text=""))
        self._end(complete=False)

    def _add_thinking(self, text: str) -> None:
        if not isinstance(self._open, ThinkingBlock):
            self._begin(ThinkingBlock(thinking=""))
        self._add({"type": "thinking_delta", "thinking": text}, text)

    def _begin(self, block: Block) -> None:
        self._end(complete=True)
        self._open = block
        self.blocks.append(block)
        # A block grows before the event is written: the event has it as it begins.
        started = type(block)(**{name: getattr(block, name) for name in block.__struct_fields__})
        self._news.append({"type": "content_block_start", "index": len(self.blocks) - 1, "content_block": started})

    def _add(self, delta: dict[str, Any], text: str) -> None:
        self._texts.append(text)
        self._news.append({"type": "content_block_delta", "index": len(self.blocks) - 1, "delta": delta})

    def _end(self, complete: bool) -> None:
        block = self._open
        if block is None:
            return
        text = "".join(self._texts)
        match block:
            case TextBlock():
                block.text = text
            case ThinkingBlock():
                block.thinking = text
                block.signature = _signature(text)
                self._add({"type": "signature_delta", "signature": block.signature}, "")
            case ToolUseBlock():
                block.input = Raw(text.encode()) if complete else partial_object(text)
        self._news.append({"type": "content_block_stop", "index": len(self.blocks) - 1})
        self._texts.clear()
        self._open = None


def _signature(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=24).hexdigest()
