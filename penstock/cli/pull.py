"""``penstock pull``: fetch a model into the local cache, so that later calls need no network."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from penstock.cli.options import ModelArgument, fetch_model, verb


@verb()
def pull(
    model: ModelArgument,
    revision: Annotated[
        Optional[str],  # noqa: UP045  typer reads it at run time
        typer.Option("--revision", metavar="TEXT", help="Branch, tag or commit of a hub id."),
    ] = None,
) -> None:
    """Fetch MODEL if it is not here yet, and print where it is.

    \b
    penstock pull smollm2
    penstock pull owner/name --revision main
    penstock pull owner/name/model-q4_k_m.gguf

    Progress goes to stderr: with a bar on a terminal, else as one sentence per fetch.
    """
    print(fetch_model(model, revision).path)
