"""ChatTemplate: a model's Jinja templates, compiled once, rendered in a sandbox.

Knows messages as plain dictionaries (``messages`` checks and normalises them) and no tokenizer. Templates come from
model files and are foreign code: the sandbox keeps them from Python's internals, and request data is only ever data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock.errors import InvalidRequestError
from penstock.frontend.chat.limits import MAX_CHARACTERS, RENDER_TIMEOUT_S, ExcessError, bounded_rendering
from penstock.frontend.chat.sandbox import compile_template
from penstock.frontend.chat.traits import TemplateTraits, probe_traits, shape_messages

if TYPE_CHECKING:
    from jinja2 import Template

_PROBE_TIMEOUT_S = 1.0
_END_TAG = "\ue000penstock-end-of-message\ue000 "  # ends with a space, to see whether the template trims content
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"})
_RENDER_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


class ChatTemplate:
    """Renders conversations. Safe to use from several threads.

    ``source`` is one template or several by name: "tool_use" is taken for requests with tools, "default" else.
    ``special_tokens`` are variables of the template: bos_token, eos_token, ... Raises UnsupportedModelError when a
    template is not valid Jinja.
    """

    def __init__(self, source: str | Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self.sources: dict[str, str] = {"default": source} if isinstance(source, str) else dict(source)
        self._special_tokens = dict(special_tokens)
        self._templates = {name: compile_template(text, name) for name, text in self.sources.items()}
        self._traits = {
            name: probe_traits(self.sources[name], partial(self._probe, template))
            for name, template in self._templates.items()
        }

    def traits(self, *, with_tools: bool = False) -> TemplateTraits:
        """What shape of messages the template takes."""
        return self._traits[self._select(with_tools)]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt text of a conversation.

        ``continue_final_message`` ends the text with the last message's content, so that the model goes on with it;
        it excludes ``add_generation_prompt``. Other keywords become variables of the template. Raises
        InvalidRequestError when the template refuses the messages, or when they cannot be continued.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other.", param="continue_final_message"
            )
        if taken := sorted(_RESERVED & kwargs.keys()):
            raise InvalidRequestError(
                f"chat_template_kwargs must not contain {taken[0]!r}.", param="chat_template_kwargs"
            )
        name = self._select(bool(tools))
        try:
            shaped = shape_messages(messages, self._traits[name])
        except RecursionError as error:
            raise InvalidRequestError("messages are nested too deeply.", param="messages") from error
        if continue_final_message:
            _mark_end(shaped)
        variables = {
            **self._special_tokens,
            **kwargs,
            "messages": shaped,
            "tools": list(tools) if tools else None,
            "documents": list(documents) if documents else None,
            "add_generation_prompt": add_generation_prompt,
        }
        rendered = _render(self._templates[name], variables)
        return _cut_at_end(rendered) if continue_final_message else rendered

    def _select(self, with_tools: bool) -> str:
        name = "tool_use" if with_tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise InvalidRequestError(
                f"The model has chat templates named {', '.join(sorted(self._templates))}, but no default one."
            )
        return name

    def _probe(
        self, template: Template, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> str:
        """A rendering for traits: empty when the template refuses."""
        variables = {**self._special_tokens, "messages": messages, "add_generation_prompt": False, "tools": tools}
        try:
            return _render(template, variables, _PROBE_TIMEOUT_S)
        except InvalidRequestError:
            return ""


def _render(template: Template, variables: dict[str, Any], seconds: float = RENDER_TIMEOUT_S) -> str:
    from jinja2 import TemplateError

    parts: list[str] = []
    length = 0
    try:
        # As ``generate`` does it, without its second generator and its search for lines in the template.
        with bounded_rendering(seconds):
            for part in template.root_render_func(template.new_context(variables)):
                parts.append(part)
                length += len(part)
                if length > MAX_CHARACTERS:
                    raise ExcessError(f"the prompt is longer than {MAX_CHARACTERS} characters")
    except ExcessError as error:
        raise InvalidRequestError(
            f"The model's chat template does too much with these messages: {error}. Send fewer or shorter messages.",
            param="messages",
        ) from error
    except TemplateError as error:
        raise InvalidRequestError(f"The model's chat template refuses: {error}.", param="messages") from error
    except _RENDER_ERRORS as error:
        raise InvalidRequestError(
            f"The model's chat template cannot render these messages: {error}.", param="messages"
        ) from error
    return "".join(parts)


def _mark_end(messages: list[dict[str, Any]]) -> None:
    """Put the end tag behind the last text of the last message."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, str):
        messages[-1]["content"] = content + _END_TAG
        return
    for part in reversed(content or ()):
        if "text" in part:
            part["text"] += _END_TAG
            return
    raise InvalidRequestError(
        "continue_final_message needs a last message with text to continue.", param="continue_final_message"
    )


def _cut_at_end(rendered: str) -> str:
    """The text up to the end tag. A template that trims content takes trailing space away from the text, too."""
    cut = rendered.rfind(_END_TAG.strip())
    if cut < 0:
        raise InvalidRequestError(
            "continue_final_message cannot be honoured: the model's chat template does not print the last message.",
            param="continue_final_message",
        )
    text = rendered[:cut]
    return text if rendered.startswith(_END_TAG, cut) else text.rstrip()
