"""The command line: ``penstock VERB``. Only the verb that was asked for is imported, and imports what it needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from penstock.cli.parse import Parser, ends_quietly, group, load
from penstock.cli.sentences import sentences
from penstock.config import env
from penstock.config.version import __version__

HELP = """Run large language models: serve them over HTTP, or use them from the terminal.

  penstock run smollm2 "What is the capital of France?"     one answer, printed
  penstock chat smollm2                                     talk in the terminal
  penstock serve smollm2                                    OpenAI-compatible server on port 8000
  penstock explain smollm2                                  memory plan and every decision, without loading weights

MODEL is a bundle name (smollm2), a directory in hub layout, a .gguf file, or a hub id such as owner/name.
Every verb has examples: penstock run --help.

options before the verb:
  --version                                Print the version and exit.
  --debug                                  Show stack traces of errors. Default: $PENSTOCK_DEBUG.
  --log-level debug|info|warning|error     Default: $PENSTOCK_LOG_LEVEL, else info."""

VERBS = {
    "serve": ("penstock.cli.serve:serve", "Start an OpenAI-compatible HTTP server."),
    "run": ("penstock.cli.run:run", "Answer one prompt and print the answer alone."),
    "chat": ("penstock.cli.chat:chat", "Talk with a model in the terminal."),
    "pull": ("penstock.cli.pull:pull", "Fetch a model into the local cache."),
    "explain": ("penstock.cli.explain:explain", "Memory plan and every decision for a model."),
    "check": ("penstock.cli.check:check", "What this machine is; what would be chosen."),
    "bench": ("penstock.cli.bench:bench", "Measure speed."),
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; always ends in SystemExit."""
    ends_quietly(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> None:
    with sentences():
        rest = _root_options(arguments)
    group(HELP, VERBS, load)("penstock", rest)


def _root_options(arguments: list[str]) -> list[str]:
    """Obey the options before the verb; answers what follows them."""
    while arguments and arguments[0].partition("=")[0] in ("--version", "--debug", "--log-level"):
        parser = Parser("penstock", "VERB", "")
        parser.add_argument("--version", action="store_true")
        parser.add_argument("--debug", action="store_true")
        parser.add_argument("--log-level")
        length = 2 if arguments[0] == "--log-level" else 1
        given = parser.read(arguments[:length])
        arguments = arguments[length:]
        if given["version"]:
            print(f"penstock {__version__}")
            raise SystemExit(0)
        if given["debug"]:
            env.set_for_children("PENSTOCK_DEBUG", "1")
        if given["log_level"] is not None:
            env.set_for_children("PENSTOCK_LOG_LEVEL", given["log_level"])
    return arguments
