"""Arguments as pairs of ``<arg_key>`` and ``<arg_value>``: what GLM and Hunyuan put behind a function's name.

A string is written as it is and ends where its end tag first occurs; everything else is JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.frontend.dialects.contract import Tool
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.value_grammar import parameters_grammar
from penstock.frontend.dialects.values import ArgumentsWriter
from penstock.frontend.dialects.writer import Writer


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTags:
    """The texts around pairs. ``end`` is behind the last pair, ``gap`` what the template puts behind every tag that
    closes; reading permits any white space there."""

    end: str
    gap: str = ""
    suffix: str = ""  # at the end of each tag's name

    @property
    def key(self) -> tuple[str, str]:
        return f"<arg_key{self.suffix}>", f"</arg_key{self.suffix}>"

    @property
    def value(self) -> tuple[str, str]:
        return f"<arg_value{self.suffix}>", f"</arg_value{self.suffix}>"

    def read(self, text: Cursor, out: Writer, schema: Mapping[str, Any], first: str) -> Steps[None]:
        """The rest of an open call, and its end. ``first`` is the tag that was read: a key's, or ``end``."""
        (key_begin, key_end), (value_begin, value_end) = self.key, self.value
        arguments = ArgumentsWriter(out, schema)
        tag = first
        while tag != self.end:
            key, _ = yield from text.read_until(key_end)
            yield from text.skip_space()
            yield from text.expect(value_begin)
            yield from arguments.read_value(text, key.strip(), value_end)
            yield from text.skip_space()
            tag = yield from text.expect(key_begin, self.end)
        arguments.close()
        out.end()

    def grammar(self, tool: Tool) -> str:
        """Lark rules for all pairs, as the template writes them."""
        (key_begin, key_end), (value_begin, value_end) = self.key, self.value
        return parameters_grammar(
            tool, before=f"{key_begin}{{key}}{key_end}{self.gap}{value_begin}", after=f"{value_end}{self.gap}"
        )
