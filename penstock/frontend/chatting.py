"""What a conversation becomes before the engine has it: the prompt's text, how its answers are to be read, and
sampling that can only give what was asked for. One way for the server's chat protocols and for ``LLM.chat``; knows no
HTTP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.errors import InvalidRequestError
from penstock.frontend.chat.messages import normalize_messages
from penstock.frontend.chat.tools import NO_TOOLS, ToolUse
from penstock.frontend.dialects.constrain import before_content, call_constraint, call_or_form
from penstock.frontend.dialects.contract import Dialect, Reading
from penstock.frontend.dialects.reading import make_reading
from penstock.frontend.text.load import TextAssets
from penstock.types.decision import Decision
from penstock.types.request import SamplingParams
from penstock.types.structured import StructuredSpec


def constrains_output(decisions: Sequence[Decision]) -> bool:
    """Whether an engine enforces ``SamplingParams.structured``: its decisions say which backend does."""
    return any(one.subject.startswith("structured") and one.chosen is not None for one in decisions)


def dialect_of(assets: TextAssets) -> Dialect | None:
    return assets.dialect.dialect if assets.dialect is not None else None


def check_tools(assets: TextAssets, use: ToolUse) -> None:
    """Raises InvalidRequestError where the model could not see tools, or nobody could read its calls."""
    if use is NO_TOOLS:
        return
    dialect = dialect_of(assets)
    template = assets.chat_template
    if dialect is None or not dialect.reads_calls:
        selected = assets.dialect
        why = selected.decision.why if selected is not None else "no dialect was selected"
        raise InvalidRequestError(
            f"tools cannot be used with this model: nothing reads its calls ({why}). Start the server with "
            "--tool-dialect NAME if you know how it writes them; `penstock explain` shows what was found.",
            param="tools",
        )
    if template is not None and not template.traits(with_tools=True).takes_tools:
        raise InvalidRequestError(
            "tools cannot be used with this model: its chat template does not print them. Start the server with "
            "--chat-template and a template that does.",
            param="tools",
        )


def plan_reading(
    assets: TextAssets, prompt: str, use: ToolUse, messages: Sequence[Mapping[str, Any]], *, continues: bool
) -> Reading | None:
    """How answers to ``prompt`` are to be read; None when they can only be content. ``continues``: the prompt ends with
    the last message, which the answer goes on with."""
    prefill = _last_content(messages) if continues else None
    max_calls = 1 if use.single else None
    return make_reading(dialect_of(assets), prompt, tools=use.schemas, max_calls=max_calls, prefill=prefill)


def constrain_answer(
    assets: TextAssets, sampling: SamplingParams, use: ToolUse, reading: Reading | None, *, enforced: bool
) -> SamplingParams:
    """Sampling that can only give the calls that the request asks for; raises InvalidRequestError where that cannot be
    promised. ``enforced``: the engine has a backend of constrained output.

    Another constraint of the request holds for what follows the reasoning, not for the reasoning. Where the model may
    call tools as well, the answer is calls or has that form.
    """
    dialect = dialect_of(assets)
    if not use.is_constrained:
        form = sampling.structured
        if form is not None and use is not NO_TOOLS:
            return dataclasses.replace(sampling, structured=_call_or_form(dialect, form, use, reading))
        opens, after = before_content(dialect, reading)
        if form is None or form.after or not after:
            return sampling
        return dataclasses.replace(sampling, structured=dataclasses.replace(form, opens=opens, after=after))
    param = "tool_choice" if use.required else "tools"
    asked = "tool_choice" if use.required else "strict of a function"
    if not enforced:
        raise InvalidRequestError(
            f"{asked} needs constrained output, which this server does not have. Use tool_choice auto and functions "
            "without strict.",
            param=param,
        )
    if sampling.structured is not None:
        raise InvalidRequestError(
            f"{asked} and response_format exclude each other: the answer cannot have both forms. Leave one out.",
            param=param,
        )
    assert dialect is not None
    assert reading is not None
    spec = call_constraint(dialect, use.tools, reading, required=use.required, single=use.single)
    if spec is None:
        raise InvalidRequestError(
            f"{asked} needs a grammar of the model's calls, and the dialect {dialect.name} has none. Use tool_choice "
            "auto and functions without strict.",
            param=param,
        )
    return dataclasses.replace(sampling, structured=spec)


def _call_or_form(
    dialect: Dialect | None, form: StructuredSpec, use: ToolUse, reading: Reading | None
) -> StructuredSpec:
    assert dialect is not None
    assert reading is not None
    spec = call_or_form(dialect, use.tools, reading, form, single=use.single)
    if spec is None:
        raise InvalidRequestError(
            "tools and response_format exclude each other here: there is no grammar for calls of this model beside "
            "the form that is asked for. Leave one out, or set tool_choice to none.",
            param="response_format",
        )
    return spec


def _last_content(messages: Sequence[Mapping[str, Any]]) -> str:
    content = normalize_messages(messages[-1:])[0]["content"]
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(part["text"] for part in content)
