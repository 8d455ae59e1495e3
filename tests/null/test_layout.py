"""The house rules that imports can break: torch is out of reach, the public surface is small, start-up loads little."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import penstock
from penstock.mock import rig
from penstock.platforms import probe

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch", "triton", "transformers", "numpy", "tokenizers", "safetensors", "huggingface_hub", "starlette", "uvicorn",
    "zmq", "jinja2", "prometheus_client", "rich", "httpx", "pygments", "typer", "pydantic",
}  # fmt: skip


def _modules_after(code: str) -> set[str]:
    """Top-level packages in memory after ``code`` ran in a fresh interpreter."""
    script = f"import json, sys\ntry:\n    {code}\nexcept SystemExit: pass\n"
    script += "print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", ["torch", "triton", "transformers", "torch.nn"])
def test_null_tier_cannot_import_torch(name):
    with pytest.raises(ModuleNotFoundError, match="blocked"):
        __import__(name)


def test_public_surface():
    assert set(penstock.__all__) == {"LLM", "SamplingParams", "StructuralTag", "StructuredSpec", "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        penstock.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import penstock",
        "from penstock.cli.main import main; main(['--version'])",
        "from penstock.cli.main import main; main(['--help'])",
        "from penstock.cli.main import main; main(['serve', '--help'])",
    ],
)
def test_start_up_loads_nothing_heavy(code):
    assert _modules_after(code) & HEAVY == set()


def test_a_server_binds_before_it_loads_what_requests_need():
    """What lies between the start of the process and the first answer of /health."""
    loaded = _modules_after("import penstock.cli.serve, penstock.engine.serving")
    assert loaded & (HEAVY - {"zmq"}) == set()


def test_the_mock_engines_process_loads_no_frontend():
    script = "import sys, penstock.engine.process, penstock.engine.mock_engine\n"
    script += "print([name for name in sys.modules if name.startswith('penstock.frontend')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_contracts():
    """In a process of its own: import-linter configures logging, which would silence every logger of this one."""
    lint = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(cache_dir=None, no_cache=True))"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_imported_is_a_declared_dependency():
    """A package that only the test extra brings must not be needed by a user."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = extras["reports"] + extras["xgrammar"] + extras["flashinfer"]
    declared = {re.match(r"[\w.-]+", line).group().lower() for line in project["dependencies"] + optional}
    # No extra can bring what is compiled against the torch that is there: whoever has it may use it. The probe looks
    # for it without an import, so that a backend can be refused, and only functions import it.
    brought_by_users = {"flash-attn"}
    assert brought_by_users <= set(probe.LIBRARIES)
    assert _imported_at_module_level() & {name.replace("-", "_") for name in brought_by_users} == set()
    declared |= brought_by_users
    owners = packages_distributions()
    found = {}
    for path, tree in _modules().items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], path)
    # Builds of torch that can use it bring triton; whoever needs it is refused by the oracle where it is missing.
    own = sys.stdlib_module_names | {"penstock", "triton"}
    foreign = {name: path for name, path in found.items() if name not in own}
    optional_owners = {"flashinfer": "flashinfer-python"}  # known where it is not installed, too
    missing = {
        name: str(path.relative_to(ROOT))
        for name, path in foreign.items()
        if not {owner.lower().replace("_", "-") for owner in owners.get(name, [optional_owners.get(name, name)])}
        & {line.replace("_", "-") for line in declared}
    }
    assert missing == {}


@functools.cache
def _modules() -> dict[Path, ast.Module]:
    """Every module of the package."""
    return {path: ast.parse(path.read_text()) for path in (ROOT / "penstock").rglob("*.py")}


def _imported_at_module_level() -> set[str]:
    """Top-level names that importing some module of the package imports."""
    found: set[str] = set()
    for tree in _modules().values():
        waiting: list[ast.AST] = [tree]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                waiting.extend(ast.iter_child_nodes(node))
    return found


def test_the_mocks_rig_does_not_pass_the_core_on():
    """import-linter sees modules, not names that one hands to the next."""
    assert [name for name in rig.__all__ if getattr(rig, name).__module__.startswith("penstock.core")] == []


def test_the_extension_is_imported_in_one_place():
    """It is a binary, loaded by name where it is needed: import-linter sees neither."""
    mentions = {}
    for path, tree in _modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            elif isinstance(node, ast.Call):
                names = [each.value for each in node.args if isinstance(each, ast.Constant)]
            else:
                continue
            if any(str(name).rpartition(".")[2] == "_native" for name in names):
                what = ast.unparse(node.func) if isinstance(node, ast.Call) else "import"
                mentions[path.relative_to(ROOT / "penstock").as_posix()] = what
    assert mentions == {
        "kernels/native/extension.py": "importlib.import_module",
        "platforms/probe.py": "importlib.util.find_spec",
    }
