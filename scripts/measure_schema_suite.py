"""The share of the JSON Schema Test Suite that backends of constrained output get right.

    python scripts/measure_schema_suite.py /path/to/JSON-Schema-Test-Suite [--draft draft2020-12] [--backend llguidance]

The suite is a checkout of github.com/json-schema-org/JSON-Schema-Test-Suite. Every instance is written as JSON and fed
to the grammar of its schema, byte by byte; it is accepted when every byte is and the answer may end there. A refused
schema counts for none of its instances. ``--list KIND`` prints the cases of one kind.

Kinds: right; too strict (valid, but not accepted: property order, mostly); too lenient (invalid, but accepted);
refused, with a keyword by name; refused otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penstock.structured.contract import ConstraintError, GrammarCompiler, Vocabulary
from penstock.structured.select import BACKENDS
from penstock.types.structured import StructuredSpec

END = 256
BYTES = Vocabulary(
    tokens=(*(bytes([value]) for value in range(256)), b""),
    special=frozenset({END}),
    names={END: "</s>"},
    end_ids=(END,),
    num_ids=257,
)
KINDS = ("right", "too strict", "too lenient", "refused by keyword", "refused")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--draft", default="draft2020-12")
    parser.add_argument("--backend", action="append", choices=tuple(BACKENDS))
    parser.add_argument("--list", choices=KINDS, help="print the cases of this kind")
    arguments = parser.parse_args()
    for name in arguments.backend or BACKENDS:
        found = list(judge(BACKENDS[name].prepare(BYTES), arguments.suite / "tests" / arguments.draft))
        counts = Counter(kind for kind, _ in found)
        shares = ", ".join(f"{kind} {counts[kind]} ({counts[kind] / len(found):.1%})" for kind in KINDS)
        print(f"{name}, {arguments.draft}, {len(found)} cases: {shares}", flush=True)
        for kind, case in found:
            if kind == arguments.list:
                print(f"  {case}")
    return 0


def judge(compiler: GrammarCompiler, folder: Path) -> Iterator[tuple[str, str]]:
    """The kind and the name of every case: those of the draft itself, and of its formats."""
    for path in [*sorted(folder.glob("*.json")), *sorted((folder / "optional" / "format").glob("*.json"))]:
        for group in json.loads(path.read_text("utf-8")):
            name = f"{path.relative_to(folder)}: {group['description']}"
            try:
                grammar = compiler.compile(StructuredSpec.json_schema(group["schema"]))
            except ConstraintError as error:
                kind = "refused by keyword" if "keyword" in str(error) else "refused"
                for test in group["tests"]:
                    yield kind, f"{name}: {test['description']} ({error})"
                continue
            for test in group["tests"]:
                accepted = accepts(grammar.open(), test["data"])
                kind = "right" if accepted == test["valid"] else "too lenient" if accepted else "too strict"
                yield kind, f"{name}: {test['description']}"


def accepts(session: Any, instance: Any) -> bool:
    """Whether the grammar lets a model write ``instance`` and end."""
    try:
        text = json.dumps(instance, ensure_ascii=False).encode("utf-8", "surrogatepass")
        return all(session.accept(byte) for byte in text) and bool(session.fill()[END // 8] >> END % 8 & 1)
    except ConstraintError:
        return False


if __name__ == "__main__":
    sys.exit(main())
