"""The command line: ``penstock VERB``. Puts the verbs together; each verb imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

import penstock
from penstock.cli import bench, chat, check, explain, pull, run, serve
from penstock.cli.options import sentences
from penstock.config import env

HELP = """Run large language models: serve them over HTTP, or use them from the terminal.

\b
  penstock run smollm2 "What is the capital of France?"     one answer, printed
  penstock chat smollm2                                     talk in the terminal
  penstock serve smollm2                                    OpenAI-compatible server on port 8000
  penstock explain smollm2                                  memory plan and every decision, without loading weights

MODEL is a bundle name (smollm2), a directory in hub layout, a .gguf file, or a hub id such as owner/name.
Every verb has examples: penstock run --help."""

app = typer.Typer(
    help=HELP,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: loading rich takes longer than everything else that --help does
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"penstock {penstock.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show stack traces of errors. Default: $PENSTOCK_DEBUG.")
    ] = False,
    log_level: Annotated[
        Optional[str],  # noqa: UP045  typer reads it at run time
        typer.Option(
            "--log-level", metavar="debug|info|warning|error", help="Default: $PENSTOCK_LOG_LEVEL, else info."
        ),
    ] = None,
) -> None:
    with sentences():
        if debug:
            env.set_for_children("PENSTOCK_DEBUG", "1")
        if log_level is not None:
            env.set_for_children("PENSTOCK_LOG_LEVEL", log_level)


app.command("serve", short_help="Start an OpenAI-compatible HTTP server.")(serve.serve)
app.command("run", short_help="Answer one prompt and print the answer alone.")(run.run)
app.command("chat", short_help="Talk with a model in the terminal.")(chat.chat)
app.command("pull", short_help="Fetch a model into the local cache.")(pull.pull)
app.command("explain", short_help="Memory plan and every decision for a model.")(explain.explain)
app.command("check", short_help="What this machine is; what would be chosen.")(check.check)
app.add_typer(bench.app, name="bench", short_help="Measure speed.")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; always ends in SystemExit."""
    app(args=arguments, prog_name="penstock")
