"""Sampling options that ``run`` and ``chat`` share, and the model that answers in this process."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from penstock.cli.options import engine_config, fetch_model
from penstock.cli.parse import Option
from penstock.config.flags import flat_values
from penstock.errors import ConfigError, InvalidRequestError
from penstock.types.structured import StructuredSpec

if TYPE_CHECKING:
    from penstock.engine.llm import LLM
    from penstock.frontend.text.stream import TextDelta

DEFAULT_MAX_TOKENS = 1024
_OPTIONS = ("max_tokens", "temperature", "top_p", "top_k", "seed")

MaxTokens = Annotated[
    int | None,
    Option(
        "--max-tokens",
        minimum=1,
        help=f"Longest answer, in tokens. Default: {DEFAULT_MAX_TOKENS}, or what the context has room for.",
    ),
]
Temperature = Annotated[
    float | None,
    Option("--temperature", help="0 always takes the most likely token. Default: the model's own, else 1."),
]
TopP = Annotated[
    float | None,
    Option("--top-p", help="Keep the most likely tokens that add up to this share. Default: the model's own."),
]
TopK = Annotated[
    int | None,
    Option("--top-k", help="Keep this many most likely tokens. Default: the model's own."),
]
JsonSchema = Annotated[
    str | None,
    Option(
        "--json-schema",
        metavar="FILE|JSON",
        help="Answers are JSON that this schema accepts: a file, or the schema itself.",
    ),
]
Mock = Annotated[bool, Option("--mock", help="Answer from the mock engine: no model, no torch.")]


def load_llm(model: str, options: dict[str, Any], *, mock: bool) -> LLM:
    """The engine in this process, with the verb's engine flags. Values are checked before anything is loaded."""
    values = flat_values(engine_config(model, options))
    if not mock:
        fetch_model(model, values["revision"])
    from penstock.engine.llm import LLM

    return LLM(values.pop("model"), mock=mock, default_max_tokens=DEFAULT_MAX_TOKENS, **values)


def constraint(json_schema: str | None) -> StructuredSpec | None:
    """The constraint of ``--json-schema``. Raises ConfigError for a file that cannot be read."""
    if json_schema is None:
        return None
    text = json_schema
    if not json_schema.lstrip().startswith(("{", "true", "false")):
        try:
            text = Path(json_schema).read_text("utf-8")
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"--json-schema must be a file or a JSON schema; {json_schema}: {error}.") from error
    return StructuredSpec.json_schema(text)


def show_reasoning(delta: TextDelta) -> None:
    """What the model wrote for itself, on stderr when somebody watches: the answer stands alone on stdout."""
    if delta.reasoning and sys.stderr.isatty():
        print(f"\033[2m{delta.reasoning}\033[0m", end="", file=sys.stderr, flush=True)


def in_options(error: InvalidRequestError) -> str:
    """The error's sentence with its field as it is written on the command line."""
    if error.param not in _OPTIONS:
        return str(error)
    option = "--" + error.param.replace("_", "-")
    return re.sub(rf"\b{error.param}\b", option, str(error))


@contextlib.contextmanager
def naming_options() -> Iterator[None]:
    """Errors of requests speak of options. For verbs that make one request."""
    try:
        yield
    except InvalidRequestError as error:
        raise InvalidRequestError(in_options(error), param=error.param, code=error.code) from error


def request_seed(options: dict[str, Any]) -> int | None:
    """``--seed`` is the engine's flag; given for one request it is this request's seed as well."""
    given = options.get("seed")
    return None if given is None else int(given)
