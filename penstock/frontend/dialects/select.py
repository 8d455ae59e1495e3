"""Which dialect a model speaks: asked of every row of the table, with the reasons of those that refuse.

Knows templates and tokenizers as facts. A dialect that the user names is taken without being asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from penstock.errors import ConfigError, InvalidRequestError, NoBackendError
from penstock.frontend.dialects.contract import (
    PROBE_KEY,
    PROBE_TOOL,
    PROBE_VALUE,
    Dialect,
    Evidence,
)
from penstock.frontend.dialects.table import DIALECTS
from penstock.oracle import choose
from penstock.types.decision import Decision, Rejection

AUTO, NONE = "auto", "none"
FORCED_BY = "--tool-dialect"
_SUBJECT = "dialect"


class TokenizerFacts(Protocol):
    """The part of a tokenizer that selection needs."""

    @property
    def special_token_ids(self) -> frozenset[int]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def token_text(self, token_id: int) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedDialect:
    """What was chosen for one model. ``dialect`` None means that output is text and nothing else.

    ``visible_token_ids`` are special tokens that must stay in the text, because the dialect's texts are among them.
    """

    dialect: Dialect | None
    decision: Decision
    visible_token_ids: frozenset[int] = frozenset()


def select_dialect(
    templates: Mapping[str, str],
    render: Callable[..., str] | None,
    tokenizer: TokenizerFacts,
    asked: str = AUTO,
) -> SelectedDialect:
    """The dialect of a model. ``render`` renders messages with its chat template; ``asked`` is the user's word.

    Raises ConfigError for a name that no dialect has.
    """
    evidence = collect_evidence(templates, render, tokenizer)
    if asked == NONE:
        return SelectedDialect(dialect=None, decision=Decision(_SUBJECT, None, f"{FORCED_BY} {NONE}"))
    if asked != AUTO:
        dialect, decision = _named(asked, evidence)
    else:
        try:
            chosen, decision = choose(_SUBJECT, evidence, DIALECTS)
        except NoBackendError as error:
            decision = dataclasses.replace(error.decision, why="no dialect is recognised: output is text only")
            return SelectedDialect(dialect=None, decision=decision)
        dialect = next(one for one in DIALECTS if one is chosen)
    dialect, decision = _settle_reasoning(dialect, decision, evidence)
    return SelectedDialect(
        dialect=dialect, decision=decision, visible_token_ids=_visible_tokens(dialect, tokenizer, evidence)
    )


def collect_evidence(
    templates: Mapping[str, str], render: Callable[..., str] | None, tokenizer: TokenizerFacts
) -> Evidence:
    """Facts from the template's source, a rendered call and the tokenizer. ``render`` may refuse."""

    def has_token(text: str) -> bool:
        ids = tokenizer.encode(text, add_special_tokens=False)
        return len(ids) == 1 and tokenizer.token_text(ids[0]).strip() == text  # one id may be "unknown", too

    return Evidence(
        templates="\n".join(templates.values()),
        call_text=_rendered_call(render) if render is not None else "",
        has_token=has_token,
    )


def _named(asked: str, evidence: Evidence) -> tuple[Dialect, Decision]:
    dialect = next((one for one in DIALECTS if one.name == asked), None)
    if dialect is None:
        names = ", ".join((AUTO, NONE, *(one.name for one in DIALECTS)))
        raise ConfigError(f"{FORCED_BY} is {asked!r}, but it must be one of {names}.")
    verdict = dialect.detect(evidence)
    rejected = tuple(
        Rejection(one.name, reasons)
        for one in DIALECTS
        if one is not dialect and (reasons := one.detect(evidence).reasons)
    )
    doubt = "" if verdict.ok else f", although {'; '.join(verdict.reasons)}"
    return dialect, Decision(_SUBJECT, dialect.name, f"named by {FORCED_BY}{doubt}", rejected)


def _settle_reasoning(dialect: Dialect, decision: Decision, evidence: Evidence) -> tuple[Dialect, Decision]:
    """Without reasoning tags in its template and its vocabulary a model does not think, whatever its dialect can."""
    reasoning = dialect.reasoning
    if reasoning is None:
        return dialect, decision
    is_shown = evidence.mentions(reasoning.begin) or evidence.mentions(reasoning.end)
    if is_shown or reasoning.is_undeclared or evidence.has_token(reasoning.begin):
        why = f"{decision.why}; reasoning in {reasoning.begin}"
        return dialect, dataclasses.replace(decision, why=why)
    why = f"{decision.why}; no reasoning: neither the template nor the tokenizer has {reasoning.begin}"
    return dataclasses.replace(dialect, reasoning=None), dataclasses.replace(decision, why=why)


def _visible_tokens(dialect: Dialect, tokenizer: TokenizerFacts, evidence: Evidence) -> frozenset[int]:
    special = tokenizer.special_token_ids
    texts = dialect.visible_texts()
    return frozenset(token_id for token_id in special if _is_part(tokenizer.token_text(token_id), texts))


def _is_part(token: str, texts: frozenset[str]) -> bool:
    return bool(token) and any(token in text for text in texts)


def _rendered_call(render: Callable[..., str]) -> str:
    """A conversation that ends with a call, in the first shape that the template takes."""
    function = {"name": PROBE_TOOL, "arguments": {PROBE_KEY: PROBE_VALUE}}
    parameters = {"type": "object", "properties": {PROBE_KEY: {"type": "string"}}}
    tool = {"type": "function", "function": {"name": PROBE_TOOL, "description": "", "parameters": parameters}}
    call = {"id": "call00001", "type": "function", "function": function}
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    for tools in ([tool], None):
        try:
            text = render(messages, tools=tools, add_generation_prompt=False)
        except InvalidRequestError:
            continue
        if PROBE_VALUE in text:
            return text
    return ""
