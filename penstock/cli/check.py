"""``penstock check``: what this machine is, and what would be chosen on it."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

from penstock.cli.decisions import decision_lines
from penstock.cli.parse import Option, verb
from penstock.config.sections import PLATFORMS
from penstock.config.sizes import size_text
from penstock.types.decision import Decision
from penstock.types.facts import AcceleratorFacts, PlatformFacts


@verb()
def check(
    platform: Annotated[
        str | None,
        Option(
            "--platform",
            metavar="NAME",
            help="cpu or cuda of this machine, or a recorded machine, e.g. h200, laptop-avx2.",
        ),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print facts and decisions as JSON.")] = False,
) -> None:
    """Show what this machine is (cores, instruction sets, memory, accelerators, libraries) and what would be chosen.

    penstock check
    penstock check --platform laptop-avx2
    penstock check --json | jq .facts.instruction_sets
    """
    from penstock.platforms.probe import choose_platform, probe_platform
    from penstock.platforms.recorded import recorded_platform

    recorded = recorded_platform(platform) if platform and platform not in PLATFORMS else None
    facts, placed = choose_platform(recorded or probe_platform(), "auto" if recorded else platform or "auto")
    decisions = [placed, *usual_decisions(facts)]
    if as_json:
        content = {"facts": dataclasses.asdict(facts), "decisions": [dataclasses.asdict(each) for each in decisions]}
        print(json.dumps(content, indent=2))
        return
    built = [] if recorded or facts.extension_missing else [extension_line()]
    print(
        "\n".join(
            [*machine_lines(facts), *built, "", "What would be chosen for a usual model:", *decision_lines(decisions)]
        )
    )


def extension_line() -> str:
    """What the extension of this installation was built for, in the form of ``machine_lines``."""
    from penstock.kernels.native.extension import built_sets, extension

    try:
        return f"{'extension':18}built for {', '.join(built_sets())}: {extension().__file__}"
    except ImportError as error:
        return f"{'extension':18}is there but cannot be loaded, build it again (pip install .): {error}"


def machine_lines(facts: PlatformFacts) -> list[str]:
    """The facts as a table of two columns."""
    from penstock.kernels.native import usable_sets

    sets = usable_sets(facts)
    threads = f"{facts.num_cores} thread{'s' if facts.num_cores > 1 else ''} unless --threads says otherwise"
    native = f"{', '.join(sets)}; best first, {threads}" if sets else f"none: {facts.extension_missing}"
    rows = [
        ("platform", f"{facts.name}, {facts.machine}, Python {facts.python}"),
        ("processor", facts.cpu_model or "unknown"),
        ("cores", f"{facts.num_cores} that this process may use"),
        ("instruction sets", ", ".join(facts.instruction_sets) or "none known"),
        ("native kernels", native),
        ("memory", f"{size_text(facts.memory_bytes)}, {size_text(facts.memory_available_bytes)} available"),
        ("accelerators", "; ".join(accelerator_text(each) for each in facts.accelerators) or "none"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in facts.libraries.items())),
    ]
    if any(each.kind == "cuda" for each in facts.accelerators):
        rows.append(("CUDA compiler", facts.cuda_compiler or "none"))
    return [f"{name:18}{value}" for name, value in rows]


def accelerator_text(facts: AcceleratorFacts) -> str:
    """One device in a line; what is not known is left out."""
    known = [
        f"{facts.name}, capability {facts.capability}",
        size_text(facts.memory_bytes)
        + (f" ({size_text(facts.memory_free_bytes)} free)" * bool(facts.memory_free_bytes)),
        f"{facts.memory_bytes_per_s / 1e9:,.0f} GB/s nominal" * bool(facts.memory_bytes_per_s),
        f"{facts.copied_bytes_per_s / 1e9:,.0f} GB/s copied" * bool(facts.copied_bytes_per_s),
        f"{facts.num_sms} multiprocessors" * bool(facts.num_sms),
        f"L2 {size_text(facts.l2_bytes)}" * bool(facts.l2_bytes),
        f"driver {facts.driver}" * bool(facts.driver),
    ]
    return ", ".join(text for text in known if text)


def usual_decisions(facts: PlatformFacts) -> list[Decision]:
    """Selections for a bfloat16 model with heads of 64 and 128 and for every weight scheme that can be loaded."""
    from penstock.attention.contract import AttentionSpec
    from penstock.attention.select import choose_attention
    from penstock.config.resolve import resolve_dtype
    from penstock.config.sections import EngineConfig
    from penstock.quantization.linear import LinearSpec
    from penstock.quantization.schemes import SCHEMES
    from penstock.quantization.select import choose_linear
    from penstock.types.facts import ModelFacts

    model = ModelFacts(
        name="a usual model",
        source="",
        format="",
        architecture="",
        family="",
        identity="",
        num_parameters=0,
        weight_bytes=0,
        dtype="bfloat16",
    )
    dtype, decision = resolve_dtype(EngineConfig(), model, facts)
    decisions = [decision]
    for head_dim in (64, 128):
        spec = AttentionSpec(
            num_heads=32, num_kv_heads=8, head_dim=head_dim, dtype=dtype, window=None, soft_cap=None, platform=facts
        )
        decisions.append(choose_attention(spec)[1])
    for scheme in SCHEMES.values():
        linear = LinearSpec(scheme=scheme, out_features=4096, in_features=4096, dtype=dtype, platform=facts)
        decisions.append(choose_linear(linear)[1])
    return decisions
