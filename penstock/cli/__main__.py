"""``python -m penstock.cli``: the same as the ``penstock`` script."""

from __future__ import annotations

from penstock.cli.main import main

main()
