"""``penstock pull``: fetch a model into the local cache, so that later calls need no network."""

from __future__ import annotations

from typing import Annotated

from penstock.cli.options import fetch_model
from penstock.cli.parse import ModelArgument, Option, verb


@verb()
def pull(
    model: ModelArgument,
    revision: Annotated[
        str | None,
        Option("--revision", metavar="TEXT", help="Branch, tag or commit of a hub id."),
    ] = None,
) -> None:
    """Fetch MODEL if it is not here yet, and print where it is.

    penstock pull smollm2
    penstock pull owner/name --revision main
    penstock pull owner/name/model-q4_k_m.gguf

    Progress goes to stderr: with a bar on a terminal, else as one sentence per fetch.
    """
    print(fetch_model(model, revision).path)
