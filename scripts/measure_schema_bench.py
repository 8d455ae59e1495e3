"""How backends of constrained output do on JSONSchemaBench: real schemas, with instances that fit and that do not.

    python scripts/measure_schema_bench.py /path/to/jsonschemabench [--sample 2000] [--backend llguidance]

The data is the folder maskbench/data of a checkout of github.com/guidance-ai/jsonschemabench. A schema is compiled
within the limits of the server (a trial process first), or refused. Every instance is written as JSON, cut into the
tokens of ``--model`` and offered to the grammar, as a model would write it: a mask per token, then the token. A schema
passes when it compiles, all of its valid instances are accepted, and no invalid one is. ``--list KIND`` prints the
schemas of one verdict.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.config.flags import engine_config_from
from penstock.engine.build import find_model, load_assets
from penstock.engine.constraining import vocabulary_of
from penstock.frontend.text.tokenizer import Tokenizer
from penstock.structured.contract import ConstraintError, GrammarCompiler, GrammarSession
from penstock.structured.grammar_cache import CompileLimits
from penstock.structured.select import BACKENDS
from penstock.structured.trial import Trial
from penstock.types.structured import StructuredSpec

KINDS = ("passes", "too strict", "too lenient", "too costly", "refused by keyword", "refused")
_SET = re.compile(r"(_[a-z_]*)?_?\d+$")


@dataclass
class Found:
    """Of one set of schemas. Times are seconds of processor time."""

    counts: Counter[str] = field(default_factory=Counter)
    compile_s: list[float] = field(default_factory=list)
    mask_s: list[float] = field(default_factory=list)
    accept_s: list[float] = field(default_factory=list)

    def add(self, other: Found) -> None:
        self.counts += other.counts
        for name in ("compile_s", "mask_s", "accept_s"):
            getattr(self, name).extend(getattr(other, name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--sample", type=int, help="take this many schemas, at random but always the same")
    parser.add_argument("--model", default="smollm2", help="whose tokens are used")
    parser.add_argument("--backend", action="append", choices=tuple(BACKENDS))
    parser.add_argument("--list", choices=KINDS, help="print the schemas of this verdict, with the reason")
    arguments = parser.parse_args()
    paths = sorted((arguments.bench / "maskbench" / "data").glob("*.json"))
    if arguments.sample is not None:
        paths = sorted(random.Random(0).sample(paths, min(arguments.sample, len(paths))))
    config = engine_config_from(model=arguments.model)
    assets = load_assets(config, find_model(config))
    vocabulary = vocabulary_of(assets, assets.tokenizer.vocab_size)
    limits = CompileLimits()
    for name in arguments.backend or BACKENDS:
        compiler = BACKENDS[name].prepare(vocabulary)
        trial = Trial(name, vocabulary, time_limit_s=limits.time_s, memory_bytes=limits.memory_bytes)
        trial.check(StructuredSpec.regex("a"))
        sets: defaultdict[str, Found] = defaultdict(Found)
        for path in paths:
            one = json.loads(path.read_text("utf-8"))
            found, reason = judge(one, compiler, trial, assets.tokenizer, vocabulary.end_ids)
            sets[set_of(path)].add(found)
            if arguments.list in found.counts:
                print(f"  {path.name}: {reason}")
        trial.close()
        report(name, sets)
    return 0


def set_of(path: Path) -> str:
    name = path.stem.partition("---")[0]
    return name if "---" in path.stem else "BFCL" if name.startswith("BFCL") else _SET.sub("", name)


def judge(
    one: dict[str, Any], compiler: GrammarCompiler, trial: Trial, tokenizer: Tokenizer, end_ids: Sequence[int]
) -> tuple[Found, str]:
    """The verdict of a schema, with its reason."""
    found = Found()
    spec = StructuredSpec.json_schema(one["schema"])
    try:
        trial.check(spec)
        began = time.thread_time()
        grammar = compiler.compile(spec)
        found.compile_s.append(time.thread_time() - began)
    except ConstraintError as error:
        found.counts["refused by keyword" if "keyword" in str(error) else "refused"] += 1
        return found, str(error)
    verdict, reason = "passes", ""
    for test in one.get("tests", ()):
        text = json.dumps(test["data"], ensure_ascii=False)
        try:
            token_ids = tokenizer.encode(text, add_special_tokens=False)
            accepted = follow(grammar.open(), token_ids, end_ids, found)
        except ConstraintError as error:
            verdict, reason = "too costly", str(error)
            break
        if accepted != test["valid"]:
            verdict, reason = "too lenient" if accepted else "too strict", text
            break
    found.counts[verdict] += 1
    return found, reason


def follow(session: GrammarSession, token_ids: Sequence[int], end_ids: Sequence[int], found: Found) -> bool:
    """Whether a model could have written these tokens and ended."""
    for token_id in token_ids:
        began = time.thread_time()
        mask = session.fill()
        filled = time.thread_time()
        found.mask_s.append(filled - began)
        if not mask[token_id // 8] >> token_id % 8 & 1:
            return False
        if not session.accept(token_id):
            raise AssertionError(f"token {token_id} is in the mask and was not accepted")
        found.accept_s.append(time.thread_time() - filled)
    mask = session.fill()
    return any(mask[token_id // 8] >> token_id % 8 & 1 for token_id in end_ids)


def report(name: str, sets: dict[str, Found]) -> None:
    whole = Found()
    for found in sets.values():
        whole.add(found)
    print(f"| {name} | schemas | {' | '.join(KINDS)} | compile ms, mean / p99 | mask us, mean / p99 / max |")
    print("|---" * (len(KINDS) + 4) + "|")
    for title, found in [*sorted(sets.items()), ("all", whole)]:
        total = found.counts.total()
        shares = " | ".join(f"{found.counts[kind] / total:.1%}" for kind in KINDS)
        compiled, masks = sorted(found.compile_s) or [0.0], sorted(found.mask_s) or [0.0]
        print(
            f"| {title} | {total} | {shares} | {mean(compiled) * 1e3:.1f} / {at(compiled, 0.99) * 1e3:.1f} "
            f"| {mean(masks) * 1e6:.0f} / {at(masks, 0.99) * 1e6:.0f} / {masks[-1] * 1e6:.0f} |"
        )
    accepted = sorted(whole.accept_s) or [0.0]
    print(
        f"accepting a token: mean {mean(accepted) * 1e6:.0f} us, p99 {at(accepted, 0.99) * 1e6:.0f}, "
        f"max {accepted[-1] * 1e6:.0f}; {len(whole.mask_s)} masks",
        flush=True,
    )


def mean(times: Sequence[float]) -> float:
    return sum(times) / len(times)


def at(times: Sequence[float], share: float) -> float:
    return times[int(share * (len(times) - 1))]


if __name__ == "__main__":
    sys.exit(main())
