"""All dialects, in the order in which they are asked. A more specific one stands before one that it resembles."""

from __future__ import annotations

from penstock.frontend.dialects import hermes, llama3_json, qwen3_coder, think
from penstock.frontend.dialects.contract import Dialect

DIALECTS: tuple[Dialect, ...] = (
    qwen3_coder.DIALECT,
    hermes.DIALECT,
    llama3_json.DIALECT,
    think.DIALECT,  # the last: it takes what thinks and calls nothing
)
