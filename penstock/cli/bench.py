"""``penstock bench``: measure this machine. Each subcommand belongs to a module of the bench package."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Measure: core (scheduler without a model), and with a model latency, throughput, serve.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
