"""Whether constrained answers of a real model fit, how many end by themselves, and what a token costs.

    python scripts/measure_structured.py [--model smollm2] [--prompts 500] [--concurrency 32] [--backend llguidance]

Every prompt asks for JSON of one of a dozen schemas, and is answered twice in runs of their own: constrained, and free
with as many tokens, for the cost. Answers that end by themselves are checked with the package jsonschema, which shares
nothing with the grammars; those cut by max_tokens must be prefixes that a grammar over bytes accepts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema

from penstock import LLM, SamplingParams, StructuredSpec
from penstock.structured.contract import ConstraintError, Vocabulary
from penstock.structured.select import BACKENDS
from penstock.types.output import EngineStats

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
        answers, seconds, stats = timed(llm, messages, sampling)
        lengths = [len(answer.outputs[0].token_ids) for answer in answers]
        free = [SamplingParams(max_tokens=n, ignore_eos=True, seed=i) for i, n in enumerate(lengths)]
        _, free_seconds, _ = timed(llm, messages, free)
        report(answers, asked, schemas, arguments.backend or llm.info.settings["structured_backend"])
        tokens = sum(lengths)
        print(f"tokens: {tokens}; {tokens / seconds:.1f}/s constrained, {tokens / free_seconds:.1f}/s free")
        print(
            f"per token: mask {stats.masks_s / stats.num_masks * 1e6:.1f} us on threads beside the forward pass, "
            f"accepting {stats.accept_s / tokens * 1e6:.1f} us on the engine's thread, "
            f"in all {(seconds - free_seconds) / tokens * 1e6:.1f} us"
        )
    return 0


def schema_of(name: str) -> dict[str, Any]:
    properties = SCHEMAS[name]
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def timed(llm: LLM, messages: Any, sampling: list[SamplingParams]) -> tuple[Any, float, EngineStats]:
    """Answers, seconds, and what the engine's counters grew by."""
    before, began = llm.stats(), time.perf_counter()
    answers = llm.chat(messages, sampling, progress=sys.stderr.isatty())
    seconds, after = time.perf_counter() - began, llm.stats()
    grown = replace(
        after,
        num_masks=after.num_masks - before.num_masks,
        masks_s=after.masks_s - before.masks_s,
        accept_s=after.accept_s - before.accept_s,
    )
    return answers, seconds, grown


def report(answers: Any, asked: list[str], schemas: dict[str, dict[str, Any]], backend: str) -> None:
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
