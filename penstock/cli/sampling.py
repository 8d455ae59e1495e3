"""Sampling options that ``run`` and ``chat`` share, and the model that answers in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from penstock.cli.options import engine_config, fetch_model
from penstock.config.flags import flat_values

if TYPE_CHECKING:
    from penstock.engine.llm import LLM

DEFAULT_MAX_TOKENS = 1024

MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[
    Optional[float],  # noqa: UP045  typer reads it at run time
    typer.Option("--temperature", help="0 always takes the most likely token. Default: the model's own, else 1."),
]
TopP = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--top-p", help="Keep the most likely tokens that add up to this share. Default: the model's own."),
]
TopK = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--top-k", help="Keep this many most likely tokens. Default: the model's own."),
]
Mock = Annotated[bool, typer.Option("--mock", help="Answer from the mock engine: no model, no torch.")]


def load_llm(model: str, options: dict[str, Any], *, mock: bool) -> LLM:
    """The engine in this process, with the verb's engine flags. Values are checked before anything is loaded."""
    values = flat_values(engine_config(model, options))
    if not mock:
        fetch_model(model, values["revision"])
    from penstock.engine.llm import LLM

    return LLM(values.pop("model"), mock=mock, **values)


def request_seed(options: dict[str, Any]) -> int | None:
    """``--seed`` is the engine's flag; given for one request it is this request's seed as well."""
    given = options.get("seed")
    return None if given is None else int(given)
