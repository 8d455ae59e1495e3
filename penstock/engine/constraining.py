"""Constrained output of an engine: the backend that the oracle chose, over the tokens of the served model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock.errors import NoBackendError
from penstock.structured.constraints import Constraints
from penstock.structured.contract import Vocabulary
from penstock.structured.grammar_cache import CompileLimits
from penstock.structured.select import BACKENDS, choose_structured
from penstock.types.decision import Decision
from penstock.types.facts import PlatformFacts

if TYPE_CHECKING:
    from penstock.frontend.text.load import TextAssets

_MAX_MASK_THREADS = 8


def decide_structured(forced: str | None) -> Decision:
    """Which backend constrains answers. Without any, requests that ask for one are refused; a named one must run.

    Raises NoBackendError.
    """
    try:
        return choose_structured(forced)[1]
    except NoBackendError as error:
        if forced is not None:
            raise
        decision: Decision = error.decision
        return decision


def make_constraints(
    decision: Decision,
    assets: Callable[[], TextAssets],
    num_ids: int,
    platform: PlatformFacts,
    limits: CompileLimits | None = None,
) -> Constraints | None:
    """``assets`` is asked, on another thread, when the first constrained request comes. ``num_ids`` is the width of the
    model's logits."""
    if decision.chosen is None:
        return None
    # On a CPU the cores belong to the forward pass, which the masks are filled beside.
    num_threads = 1 if platform.name == "cpu" else max(1, min(_MAX_MASK_THREADS, platform.num_cores // 2))
    return Constraints(
        BACKENDS[decision.chosen],
        lambda: vocabulary_of(assets(), num_ids),
        num_threads=num_threads,
        limits=limits,
    )


def vocabulary_of(assets: TextAssets, num_ids: int) -> Vocabulary:
    """The tokens of a model as grammars see them."""
    tokenizer = assets.tokenizer
    count = min(tokenizer.vocab_size, num_ids)
    special = frozenset(token_id for token_id in tokenizer.special_token_ids if token_id < count)
    ends = sorted(token_id for token_id in assets.stop_token_ids if token_id < count)
    return Vocabulary(
        tokens=tuple(tokenizer.token_bytes(token_id) for token_id in range(count)),
        special=special | frozenset(ends),
        names={token_id: tokenizer.token_text(token_id) for token_id in special | frozenset(ends)},
        end_ids=tuple(ends),
        num_ids=num_ids,
    )
