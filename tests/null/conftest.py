"""The null tier runs without torch: an import hook refuses it, so that nothing can come to need it unnoticed.

Run by itself (as scripts/test does) the hook is in place before the first test module is imported, in xdist workers
too. In a session that also runs other tiers it is in place while a null test runs, and steps aside afterwards.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest

BLOCKED = frozenset({"torch", "triton", "transformers"})
HERE = Path(__file__).parent


class BlockedImports(importlib.abc.MetaPathFinder):
    """Refuses the blocked packages with a sentence; knows nothing about any other module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{fullname} is blocked: the null tier runs without it", name=fullname)
        return None


_HOOK = BlockedImports()
_alone = False


def pytest_configure(config: pytest.Config) -> None:
    global _alone
    paths = [Path(config.invocation_params.dir, str(argument).partition("::")[0]).resolve() for argument in config.args]
    _alone = bool(paths) and all(path.is_relative_to(HERE) for path in paths) and not BLOCKED & set(sys.modules)
    if _alone:
        sys.meta_path.insert(0, _HOOK)


@pytest.fixture(autouse=True)
def _torch_is_blocked() -> Iterator[None]:
    if _alone:
        yield
        return
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in BLOCKED}
    for name in hidden:
        del sys.modules[name]
    sys.meta_path.insert(0, _HOOK)
    try:
        yield
    finally:
        sys.meta_path.remove(_HOOK)
        sys.modules.update(hidden)
