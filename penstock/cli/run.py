"""``penstock run``: one prompt, one answer. Only the answer goes to stdout, so that it can be piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from penstock.cli.parse import Argument, ModelArgument, Option, verb
from penstock.cli.sampling import (
    JsonSchema,
    MaxTokens,
    Mock,
    Temperature,
    TopK,
    TopP,
    constraint,
    load_llm,
    naming_options,
    request_seed,
    show_reasoning,
)
from penstock.config import env
from penstock.config.flags import engine_flags
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.engine.llm import LLM
    from penstock.frontend.text.stream import TextDelta
    from penstock.types.request import SamplingParams


@verb(engine_flags)
def run(
    model: ModelArgument,
    prompt: Annotated[str, Argument("PROMPT", "The prompt; - reads it from standard input.")],
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    json_schema: JsonSchema = None,
    raw: Annotated[bool, Option("--raw", help="Complete the prompt as it is, without chat template.")] = False,
    chat: Annotated[bool, Option("--chat", help="Insist on the chat template.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object with text, tokens and usage.")] = False,
    mock: Mock = False,
    **options: Any,
) -> None:
    """Answer PROMPT once and print the answer alone; everything else goes to stderr.

    The prompt is a chat message if the model has a chat template, else it is completed as it is.

    penstock run smollm2 "What is the capital of France?" --temperature 0
    penstock run smollm2 "Once upon a time" --raw --max-tokens 50 --seed 7
    git diff | penstock run smollm2 - > summary.txt
    penstock run smollm2 "Name three rivers" --json | jq .usage
    penstock run smollm2 "Who wrote Faust? Answer in JSON." --json-schema person.json | jq .name
    """
    from penstock.observability.log import configure_logging

    if raw and chat:
        raise ConfigError("--raw and --chat exclude each other; give one of them, or none.")
    configure_logging("warning" if not env.is_set("PENSTOCK_LOG_LEVEL") else env.log_level())
    text = sys.stdin.read() if prompt == "-" else prompt
    with load_llm(model, options, mock=mock) as llm, naming_options():
        sampling = llm.default_sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=request_seed(options),
            structured=constraint(json_schema),
        )
        messages = None if raw else _as_chat(llm, text, insist=chat)
        if as_json:
            _print_json(llm, text, messages, sampling)
            return
        deltas = llm.stream(text, sampling) if messages is None else llm.stream_chat(messages, sampling)
        reason, num_tokens = _print_stream(deltas)
        if reason == "length":
            print(
                f"The answer was cut after {num_tokens} tokens (--max-tokens; the context holds "
                f"{llm.info.max_model_len}, --max-model-len).",
                file=sys.stderr,
            )


def _as_chat(llm: LLM, text: str, *, insist: bool) -> list[dict[str, Any]] | None:
    """The conversation to answer, or None when the model has no chat template and none is insisted on."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
    try:
        llm.render_chat(messages)
    except ConfigError:
        if insist:
            raise
        return None
    return messages


def _print_stream(deltas: Iterable[TextDelta]) -> tuple[str, int]:
    """Write the text as it comes when somebody watches, else through the usual buffer. Returns the finish reason and
    the number of tokens."""
    reason, last, num_tokens = "", "", 0
    live = sys.stdout.isatty()
    for delta in deltas:
        reason = delta.finish_reason or reason
        num_tokens += len(delta.token_ids)
        show_reasoning(delta)
        if delta.text:
            last = delta.text
            print(delta.text, end="", flush=live)
    if not last.endswith("\n"):
        print()
    sys.stdout.flush()
    return reason, num_tokens


def _print_json(llm: LLM, text: str, messages: list[dict[str, Any]] | None, sampling: SamplingParams) -> None:
    (answer,) = llm.generate(text, sampling) if messages is None else llm.chat(messages, sampling)
    choice = answer.outputs[0]
    num_prompt, num_output = len(answer.prompt_token_ids), len(choice.token_ids)
    content = {
        "model": llm.info.model.name,
        "text": choice.text,
        **({"reasoning": choice.reasoning} if choice.reasoning else {}),
        "finish_reason": choice.finish_reason,
        "prompt": answer.prompt,
        "token_ids": list(choice.token_ids),
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_output,
            "total_tokens": num_prompt + num_output,
            "cached_tokens": answer.num_cached_tokens,
        },
    }
    print(json.dumps(content, indent=2, ensure_ascii=False))
