"""``penstock explain``: what would happen with a model on this machine, and why. Loads no weights."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

from penstock.cli.check import machine_lines
from penstock.cli.decisions import decision_lines
from penstock.cli.options import engine_config, fetch_model
from penstock.cli.parse import ModelArgument, Option, verb
from penstock.config.flags import engine_flags
from penstock.config.sections import PLATFORMS
from penstock.config.sizes import size_text

if TYPE_CHECKING:
    from penstock.engine.build import Explanation
    from penstock.types.facts import ModelFacts


@verb(engine_flags)
def explain(
    model: ModelArgument,
    platform: Annotated[
        str | None,
        Option(
            "--platform",
            metavar="NAME",
            help="cpu or cuda of this machine, or a recorded machine, e.g. h200, laptop-avx2.",
        ),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print everything as JSON.")] = False,
    **options: Any,
) -> None:
    """Show model facts, the memory plan with its sum, and every decision with the reasons against the others.

    penstock explain smollm2
    penstock explain smollm2 --platform laptop-avx2 --max-model-len 1024
    penstock explain ./my-model --platform h200
    penstock explain ./my-model --json | jq '.decisions[] | {subject, chosen}'
    """
    from penstock.engine.build import explain as explain_engine
    from penstock.platforms.recorded import recorded_platform

    recorded = recorded_platform(platform) if platform and platform not in PLATFORMS else None
    config = engine_config(model, options | {"platform": None if recorded else platform})
    fetch_model(model, config.model.revision)
    found = explain_engine(config, platform=recorded)
    print(json.dumps(as_record(found), indent=2) if as_json else "\n".join(text_lines(found)))


def as_record(found: Explanation) -> dict[str, Any]:
    """Everything as JSON values."""
    return {
        "model": dataclasses.asdict(found.model),
        "platform": dataclasses.asdict(found.platform),
        "memory": list(found.memory_lines),
        "settings": found.resolved.settings(),
        "decisions": [dataclasses.asdict(decision) for decision in found.decisions],
    }


def text_lines(found: Explanation) -> list[str]:
    """The same for people."""
    settings = [f"  {name:24}{value}" for name, value in found.resolved.settings().items()]
    return [
        *model_lines(found.model),
        "",
        *machine_lines(found.platform),
        "",
        "Memory plan:",
        *(f"  {line}" for line in found.memory_lines),
        "",
        "Decisions:",
        *decision_lines(found.decisions),
        "",
        "Settings:",
        *settings,
    ]


def model_lines(facts: ModelFacts) -> list[str]:
    """Model facts as a table of two columns."""
    schemes = ", ".join(f"{scheme} {size_text(size)}" for scheme, size in facts.weight_schemes.items())
    heads = f"{facts.num_heads} heads of {facts.head_dim}, {facts.num_kv_heads} for keys and values"
    rows = [
        ("model", facts.name),
        ("source", f"{facts.source} ({facts.format})"),
        ("architecture", f"{facts.architecture}, family {facts.family}"),
        ("parameters", f"{facts.num_parameters:,}"),
        ("weights", f"{size_text(facts.weight_bytes)}: {schemes}" if schemes else size_text(facts.weight_bytes)),
        ("layers", f"{facts.num_layers} of width {facts.hidden_size}, {heads}"),
        ("vocabulary", f"{facts.vocab_size:,} tokens"),
        ("context", f"{facts.max_position:,} tokens"),
    ]
    return [f"{name:18}{value}" for name, value in rows]
