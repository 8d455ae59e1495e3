"""``penstock pull``: fetch a model into the local cache, so that later calls need no network."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from penstock.cli.options import ModelArgument, verb
from penstock.cli.progress import transfer_progress


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
    """
    from penstock.loader.sources import resolve_source

    with transfer_progress() as progress:
        source = resolve_source(model, revision=revision, progress=progress)
    print(source.path)
