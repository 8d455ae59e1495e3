"""Whether constrained answers of a real model fit, how many end by themselves, and what a token costs.

    python scripts/measure_structured.py [--model smollm2] [--prompts 500] [--concurrency 32] [--backend llguidance]

Every prompt asks for JSON of one of a dozen schemas. Answers that end by themselves are checked with the package
jsonschema, which shares nothing with the grammars; those cut by max_tokens must be prefixes that a grammar over bytes
accepts. Exit code 1 when an answer is neither.

What a constrained token costs is measured by answering the prompts again in parts of ``--concurrency``: each part
constrained and free, with as many tokens per answer, one right after the other and each of the two first in turn, so
that both see the same machine. Prompts are in the prefix cache for both. The overhead is the median over the parts,
with the quartiles beside it; its processor time is that of the whole process, all threads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema

from penstock import LLM, SamplingParams, StructuredSpec
from penstock.structured.contract import ConstraintError, Vocabulary
from penstock.structured.select import BACKENDS

# What a prompt asks for -> the properties of its schema, all of them required.
SCHEMAS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("structured_schemas.json").read_text("utf-8"))
PROMPTS = (
    "Describe {} as JSON.",
    "Give me an example of {} in JSON.",
    "Invent {} and answer with JSON alone.",
    "I need {} as a JSON object, please.",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--backend", choices=tuple(BACKENDS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    names = list(SCHEMAS)
    asked = [names[i % len(names)] for i in range(arguments.prompts)]
    messages = [
        [{"role": "user", "content": PROMPTS[i // len(names) % len(PROMPTS)].format(name)}]
        for i, name in enumerate(asked)
    ]
    schemas = {name: schema_of(name) for name in names}
    specs = {name: StructuredSpec.json_schema(schema) for name, schema in schemas.items()}
    with LLM(
        arguments.model,
        max_num_seqs=arguments.concurrency,
        max_model_len=2048,
        seed=arguments.seed,
        structured_backend=arguments.backend,
    ) as llm:
        base = llm.default_sampling(max_tokens=arguments.max_tokens)
        llm.chat(messages[: len(names)], [replace(base, max_tokens=1, structured=specs[name]) for name in asked[:12]])
        sampling = [replace(base, structured=specs[name], seed=i) for i, name in enumerate(asked)]
        before = llm.stats()
        answers = llm.chat(messages, sampling, progress=sys.stderr.isatty())
        after = llm.stats()
        fit = report(answers, asked, schemas, arguments.backend or llm.info.settings["structured_backend"])
        lengths = [len(answer.outputs[0].token_ids) for answer in answers]
        num_masks = after.constraints.num_masks - before.constraints.num_masks
        mask_s, accept_s = after.constraints.masks_s - before.constraints.masks_s, after.accept_s - before.accept_s
        print(
            f"tokens: {sum(lengths)}; a mask took {mask_s / num_masks * 1e6:.0f} us on threads beside the forward "
            f"pass, following a token {accept_s / sum(lengths) * 1e6:.0f} us on the engine's thread"
        )
        report_overhead(list(parts(llm, messages, sampling, lengths, arguments.concurrency)))
    return 0 if fit else 1


@dataclass(frozen=True)
class Part:
    """Seconds on the clock and of processor time for the same number of tokens, constrained and free."""

    tokens: int
    constrained: tuple[float, float]
    free: tuple[float, float]


def parts(
    llm: LLM, messages: list[Any], sampling: list[SamplingParams], lengths: list[int], size: int
) -> Iterator[Part]:
    """Answer parts of ``size`` prompts again, each both ways."""
    for number, begin in enumerate(range(0, len(messages), size)):
        taken = slice(begin, begin + size)
        tokens = sum(lengths[taken])
        if not tokens:
            continue
        free = [
            replace(one, structured=None, ignore_eos=True, max_tokens=length)
            for one, length in zip(sampling[taken], lengths[taken], strict=True)
        ]
        seconds = {}
        for which in ("constrained", "free") if number % 2 else ("free", "constrained"):
            wall, process = time.perf_counter(), time.process_time()
            found = llm.chat(messages[taken], sampling[taken] if which == "constrained" else free)
            seconds[which] = time.perf_counter() - wall, time.process_time() - process
            if sum(len(answer.outputs[0].token_ids) for answer in found) != tokens:
                print(f"part {number}, {which}: another number of tokens than before; left out")
                break
        else:
            yield Part(tokens, seconds["constrained"], seconds["free"])


def report_overhead(measured: list[Part]) -> None:
    for position, what in enumerate(("on the clock", "of processor time")):
        rates = [
            sum(part.tokens for part in measured) / sum(getattr(part, which)[position] for part in measured)
            for which in ("constrained", "free")
        ]
        more = sorted((part.constrained[position] - part.free[position]) / part.tokens * 1e6 for part in measured)
        low, middle, high = (more[int(share * (len(more) - 1))] for share in (0.25, 0.5, 0.75))
        print(
            f"{what}: {rates[0]:.1f} tokens/s constrained, {rates[1]:.1f} free ({rates[0] / rates[1] - 1:+.1%}); "
            f"a constrained token costs {middle:+.0f} us more (median of {len(more)} parts, quartiles {low:+.0f} to "
            f"{high:+.0f})"
        )


def schema_of(name: str) -> dict[str, Any]:
    properties = SCHEMAS[name]
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def report(answers: Any, asked: list[str], schemas: dict[str, dict[str, Any]], backend: str) -> bool:
    """Say how the answers ended. True when each of them fits, or is a prefix of what fits."""
    ended = valid = cut = prefixes = 0
    for answer, name in zip(answers, asked, strict=True):
        output = answer.outputs[0]
        if output.finish_reason == "stop":
            ended += 1
            fits = is_valid(output.text, schemas[name])
            valid += fits
            if not fits:
                print(f"DOES NOT FIT: {name}: {output.text!r}")
        else:
            cut += 1
            is_prefix = could_go_on(output.text, schemas[name], backend)
            prefixes += is_prefix
            print(f"cut: {name}: {output.text!r}{'' if is_prefix else ' IS NO PREFIX'}")
    share = ended / len(answers)
    print(f"{backend}: {len(answers)} answers, {ended} ended by themselves ({share:.1%}), {valid} of them valid;")
    print(f"{cut} cut by max_tokens, {prefixes} of them valid prefixes")
    return valid == ended and prefixes == cut


def is_valid(text: str, schema: dict[str, Any]) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def could_go_on(text: str, schema: dict[str, Any], backend: str) -> bool:
    """Whether a grammar over bytes accepts the text so far; a character that was cut in its midst is left out."""
    end = 256
    tokens = (*(bytes([value]) for value in range(256)), b"")
    vocabulary = Vocabulary(tokens=tokens, special=frozenset({end}), names={end: "</s>"}, end_ids=(end,), num_ids=257)
    session = BACKENDS[backend].prepare(vocabulary).compile(StructuredSpec.json_schema(schema)).open()
    try:
        return all(session.accept(byte) for byte in text.rstrip("\ufffd").encode())
    except ConstraintError:
        return False


if __name__ == "__main__":
    sys.exit(main())
