"""Writes the reference pages in docs/generated from the code; with --check, fails when one of them is stale.

Every page has one source: flags from the configuration sections, environment from config/env, models from the family
table, routes from the HTTP route table.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from penstock.config import env, flags, sections
from penstock.frontend.routes.table import KEYED, ROUTES
from penstock.loader.bundles import BUNDLES
from penstock.models.table import FAMILIES, family_of
from penstock.quantization.formats.gguf import GGUF_TYPES

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "generated"
HEADER = "<!-- Written by scripts/docs; do not edit. -->\n\n"


def main(arguments: list[str]) -> int:
    pages = {
        "flags.md": flags_page(),
        "environment.md": environment_page(),
        "models.md": models_page(),
        "routes.md": routes_page(),
    }
    if arguments == ["--check"]:
        stale = [name for name, text in pages.items() if _present(name) != HEADER + text]
        extra = sorted({path.name for path in TARGET.glob("*")} - set(pages))
        for name in stale:
            print(f"docs/generated/{name} is stale; run scripts/docs and commit the result.")
        for name in extra:
            print(f"docs/generated/{name} is not made by scripts/docs; remove it.")
        return 1 if stale or extra else 0
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (TARGET / name).write_text(HEADER + text, encoding="utf-8")
    return 0


def flags_page() -> str:
    parts = [
        "# Flags\n",
        "Engine flags are shared by `serve`, `run`, `chat`, `explain`, `bench` and, as keywords, by `LLM`. "
        "`model` is the argument MODEL on the command line. A size is a number of bytes or text such as `4GiB`.\n",
    ]
    others = {"server": sections.ServerConfig, "mock": sections.MockConfig}
    for title, cls in {**flags.ENGINE_SECTIONS, **others}.items():
        every = (*flags.engine_flags(), *flags.server_flags(), *flags.mock_flags())
        group = [flag for flag in every if flag.section == title]
        parts.append(f"## {title.capitalize()}\n\n{inspect.getdoc(cls)}\n")
        rows = [(_option(flag), _values(flag), _default(flag), flag.text) for flag in group]
        parts.append(_table(("flag", "value", "default", "meaning"), rows))
    return "\n".join(parts)


def environment_page() -> str:
    rows = [
        (
            f"`{each.name}`",
            "\\|".join(each.choices) or each.kind,
            f"`{each.default}`" if each.default else "",
            each.meaning,
        )
        for each in env.VARIABLES
    ]
    foreign = [(f"`{name}`", meaning) for name, meaning in env.FOREIGN]
    return "\n".join(
        [
            "# Environment variables\n",
            "A flag wins over a variable. An empty variable counts as unset; a malformed one is an error.\n",
            _table(("variable", "type", "default", "meaning"), rows),
            "## Variables of others that matter here\n",
            _table(("variable", "meaning"), foreign),
        ]
    )


def models_page() -> str:
    architectures: dict[str, list[str]] = {}
    for architecture, family in FAMILIES.items():
        architectures.setdefault(family, []).append(architecture)
    rows = []
    for family, names in architectures.items():
        summary = (inspect.getdoc(family_of(names[0])) or "").partition("\n\n")[0].replace("\n", " ")
        rows.append((f"`{family}`", ", ".join(f"`{name}`" for name in names), summary))
    bundles = [
        (
            ", ".join(f"`{name}`" for name in (each.name, *each.aliases)),
            f"`{each.file_name}`",
            f"{each.nbytes / 1e6:.0f} MB",
        )
        for each in BUNDLES
    ]
    return "\n".join(
        [
            "# Supported models\n",
            "A checkpoint is read when its architecture is in this table, whoever published it. Names are those of "
            "`config.json` and of GGUF's `general.architecture`.\n",
            _table(("family", "architectures", "what it is"), rows),
            "## Files\n",
            "- safetensors, sharded or not: F32, F16, BF16, and F8_E4M3 with the scales of fp8 and compressed-tensors\n"
            "- GGUF: " + ", ".join(GGUF_TYPES) + "\n",
            "## Bundles\n",
            "Models that have a name of their own here; fetched on first use and kept in the cache.\n",
            _table(("name", "file", "size"), bundles),
        ]
    )


def routes_page() -> str:
    rows = [
        (
            f"`{route.method}`",
            f"`{route.path}`",
            "yes" if route.access == KEYED else "no",
            f"`{route.body.__name__}`" if route.body else "",
            route.summary,
        )
        for route in ROUTES
        if route.documented
    ]
    return "\n".join(
        [
            "# Routes\n",
            "A key is asked for only when the server has keys (`--api-key`). The same table makes `/openapi.json`, "
            "which describes every body and answer.\n",
            _table(("method", "path", "needs a key", "body", "what it does"), rows),
        ]
    )


def _option(flag: flags.Flag) -> str:
    if flag.name == "model":
        return "`MODEL`"
    return f"`{flag.option}`<br>`--no-{flag.option[2:]}`" if flag.kind == "bool" else f"`{flag.option}`"


def _values(flag: flags.Flag) -> str:
    if flag.choices:
        return ", ".join(f"`{choice}`" for choice in flag.choices)
    limits = []
    if flag.minimum is not None:
        limits.append(f"at least {flag.minimum:g}")
    if flag.maximum is not None:
        limits.append(f"at most {flag.maximum:g}")
    kind = {"str": "text", "list": "text, repeatable", "int": "whole number", "float": "number", "bool": ""}
    return ", ".join([kind.get(flag.kind, flag.kind), *limits])


def _default(flag: flags.Flag) -> str:
    value = f"`{str(flag.default).lower() if flag.kind == 'bool' else flag.default}`"
    if flag.default is None or flag.default == ():
        value = ""
    return f"`${flag.env}`" if flag.env else value


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def _present(name: str) -> str:
    try:
        return (TARGET / name).read_text(encoding="utf-8")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
