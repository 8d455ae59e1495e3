"""POST /v1/chat/completions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.errors import InvalidRequestError
from penstock.frontend.chat.effort import effort_variables, knows_effort
from penstock.frontend.chat.messages import normalize_messages
from penstock.frontend.chat.tools import NO_TOOLS, ToolUse, read_tool_use
from penstock.frontend.dialects.constrain import call_constraint, content_begins_behind
from penstock.frontend.dialects.contract import Dialect, Reading
from penstock.frontend.dialects.reading import make_reading
from penstock.frontend.exchange import Exchange
from penstock.frontend.openai.format import ChatFormat
from penstock.frontend.openai.requests import ChatRequest
from penstock.frontend.openai.sampling import chat_sampling
from penstock.frontend.routes.generate import make_head, make_shown, prepare, warn, warn_of_ignored, write_generation
from penstock.frontend.service import Service
from penstock.frontend.text.requests import PreparedRequest
from penstock.types.request import SamplingParams

_RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "self", "chat_template"}
)


async def post_chat(exchange: Exchange, service: Service, request: ChatRequest) -> None:
    arrival = time.monotonic()
    model = service.model_name(request.model)
    prepared = await prepare_chat(exchange, service, request, arrival=arrival)
    last_role = request.messages[-1].get("role") if request.continue_final_message else None
    form = ChatFormat(
        head=make_head(exchange, "chatcmpl-", model),
        shown=make_shown(request, logprobs=bool(request.logprobs), max_top=request.top_logprobs or 0),
        role=last_role if isinstance(last_role, str) else "assistant",
        prompts=(prepared.prompt_token_ids,),
        include_reasoning=request.include_reasoning is not False,
    )
    await write_generation(exchange, service, [prepared], form, stream=bool(request.stream))


async def prepare_chat(
    exchange: Exchange, service: Service, request: ChatRequest, *, arrival: float, fit_context: bool = False
) -> PreparedRequest:
    """From a conversation to what the engine gets; what all chat protocols share. Raises InvalidRequestError.

    ``fit_context``: where the context has no room for the asked tokens, ask for as many as it has room for.
    """
    warn_of_ignored(exchange, service, request)
    sampling = chat_sampling(request, service.assets.sampling_defaults, service.server.max_n)
    use = read_tool_use(request.tools, request.tool_choice, request.parallel_tool_calls)
    check_tools(service, use)
    text = render_request(exchange, service, request, use)
    reading = plan_reading(service, text, use, request)
    sampling = constrain_calls(service, sampling, use, reading)
    ids = await service.encode(text, add_special_tokens=bool(request.add_special_tokens))
    room = service.client.info.max_model_len - len(ids)
    if fit_context and sampling.max_tokens is not None and 0 < room < sampling.max_tokens:
        sampling = dataclasses.replace(sampling, max_tokens=room)
    return prepare(service, request, ids, sampling, arrival=arrival, param="messages", reading=reading)


def render_request(exchange: Exchange, service: Service, request: ChatRequest, use: ToolUse) -> str:
    """The prompt text of a request, with the tools that it shows and the effort that it asks for."""
    template = service.assets.chat_template
    if request.reasoning_effort is not None and template is not None and not knows_effort(template.sources.values()):
        warn(exchange, "reasoning_effort ignored: the model's chat template does not look at it")
    return render_chat(
        service,
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        chat_template_kwargs=effort_variables(request.reasoning_effort, request.chat_template_kwargs or {}),
        tools=use.shown,
    )


def check_tools(service: Service, use: ToolUse) -> None:
    """Raises InvalidRequestError where the model could not see tools, or nobody could read its calls."""
    if use is NO_TOOLS:
        return
    dialect = served_dialect(service)
    template = service.assets.chat_template
    if dialect is None or not dialect.reads_calls:
        selected = service.assets.dialect
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


def served_dialect(service: Service) -> Dialect | None:
    return service.assets.dialect.dialect if service.assets.dialect is not None else None


def plan_reading(service: Service, prompt: str, use: ToolUse, request: ChatRequest) -> Reading | None:
    """How the answers are to be read; None when they can only be content."""
    prefill = _last_content(request.messages) if request.continue_final_message else None
    max_calls = 1 if use.single else None
    return make_reading(served_dialect(service), prompt, tools=use.schemas, max_calls=max_calls, prefill=prefill)


def constrain_calls(
    service: Service, sampling: SamplingParams, use: ToolUse, reading: Reading | None
) -> SamplingParams:
    """Sampling that can only give the calls that the request asks for; raises where that cannot be promised.

    Another constraint of the request holds for what follows the reasoning, not for the reasoning.
    """
    dialect = served_dialect(service)
    if not use.is_constrained:
        after = content_begins_behind(dialect, reading)
        if sampling.structured is None or not after:
            return sampling
        return dataclasses.replace(sampling, structured=dataclasses.replace(sampling.structured, after=after))
    param = "tool_choice" if use.required else "tools"
    asked = "tool_choice" if use.required else "strict of a function"
    if not service.constrains_output:
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


def render_chat(
    service: Service,
    messages: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool | None,
    continue_final_message: bool | None,
    chat_template_kwargs: dict[str, Any] | None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The prompt text of a conversation. Raises InvalidRequestError, also for a model without a template."""
    template = service.assets.chat_template
    if template is None:
        raise InvalidRequestError(
            "The served model has no chat template. Use /v1/completions, or start the server with --chat-template.",
            param="messages",
        )
    continues = bool(continue_final_message)
    if continues and add_generation_prompt:
        raise InvalidRequestError(
            "continue_final_message and add_generation_prompt exclude each other.", param="continue_final_message"
        )
    kwargs = chat_template_kwargs or {}
    for name in kwargs:
        if name in _RESERVED:
            raise InvalidRequestError(
                f"chat_template_kwargs must not contain {name}; it is a field of the request.",
                param="chat_template_kwargs",
            )
    return template.render(
        normalize_messages(messages),
        tools=tools,
        add_generation_prompt=not continues if add_generation_prompt is None else add_generation_prompt,
        continue_final_message=continues,
        **kwargs,
    )


def _last_content(messages: Sequence[Mapping[str, Any]]) -> str:
    content = normalize_messages(messages[-1:])[0]["content"]
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(part["text"] for part in content)
