"""Every Triton kernel compiles for every target without its hardware: a row per module and target.

Nothing here imports Triton: other tests of this process interpret kernels, which Triton decides once.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
from pathlib import Path

import pytest

import penstock.kernels.triton as kernels
from penstock.kernels.triton import MODULES
from penstock.kernels.triton.aot import TARGETS
from penstock.kernels.triton.compiler import Outcome, compile_all, text_line

SOURCES = Path(kernels.__file__).parent
NOT_KERNELS = ("__init__", "ahead", "aot", "compiler")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@functools.cache
def outcomes() -> tuple[Outcome, ...]:
    """Of everything, once; another process that runs tests waits, and then finds it all in the cache."""
    return tuple(compile_all())


@needs_triton
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("module", MODULES)
def test_kernels_compile(module: str, target: str) -> None:
    cases = [each for each in outcomes() if each.module == f"{kernels.__name__}.{module}"]
    found = [each for each in cases if each.target == target]
    assert found, f"{module} has no AOT case"
    assert {each.kernel for each in found} == {each.kernel for each in cases}, "a kernel has no case for this target"
    assert [text_line(outcome) for outcome in found if outcome.compiled is None] == []


def _sources() -> dict[str, ast.Module]:
    paths = [path for path in sorted(SOURCES.rglob("*.py")) if path.stem not in NOT_KERNELS]
    return {path.relative_to(SOURCES).with_suffix("").as_posix().replace("/", "."): _parse(path) for path in paths}


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _jitted(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {
        node.name: node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(each).partition("(")[0] in ("jit", "triton.jit") for each in node.decorator_list)
    }


def _last_name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def compiled_alone(sources: dict[str, ast.Module]) -> set[tuple[str, str]]:
    """(module, function) of every kernel: a jitted function that is launched, or that no other one calls."""
    called: set[str] = set()
    for tree in sources.values():
        for function in _jitted(tree).values():
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            called |= {_last_name(call.func) for call in calls}
            # Functions that combine the elements of a reduction or a scan are handed over by name.
            called |= {_last_name(each) for call in calls for each in call.args if isinstance(each, ast.Name)}
    found = set()
    for name, tree in sources.items():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        launched = {_last_name(call.func.value) for call in calls if isinstance(call.func, ast.Subscript)}
        found |= {(name, each) for each in _jitted(tree) if each in launched or each not in called}
    return found


def test_every_module_with_kernels_is_listed() -> None:
    """Others hold what kernels share: functions that they call, rules of launches."""
    assert set(MODULES) == {module for module, _ in compiled_alone(_sources())}
    assert len(set(MODULES)) == len(MODULES)


@needs_triton
def test_cases_are_what_launches_ask_for() -> None:
    """Of 16-bit heads of 128 values; early launches where cards have them, of all kernels that can be launched so."""
    cases = [each for each in outcomes() if each.kernel == "_prefill" and "FLOAT8= ALL_MASKED=False" in each.case]
    for target, tile in (
        ("sm_80", "BLOCK_M=64 BLOCK_N=32 4 3"),
        ("sm_89", "BLOCK_M=64 BLOCK_N=32 4 3"),
        ("sm_90", "BLOCK_M=256 BLOCK_N=64 8 3"),
        ("sm_100", "BLOCK_M=256 BLOCK_N=64 8 3"),
        ("gfx942", "BLOCK_M=64 BLOCK_N=32 4 3"),
    ):
        *blocks, warps, stages = tile.split()
        (case,) = [each.case for each in cases if each.target == target]
        assert {*blocks, f"num_warps={warps}", f"num_stages={stages}"} <= {*case.split()}
    decoding = {
        each.case.split("num_warps")[1] for each in outcomes() if (each.kernel, each.target) == ("_decode", "sm_90")
    }
    assert decoding == {"=2 num_stages=4", "=2 num_stages=8", "=2 num_stages=3"}
    can = {each.kernel for each in outcomes() if "PDL=" in each.case}
    for target in TARGETS:
        early = {each.kernel for each in outcomes() if each.target == target and "PDL=True" in each.case}
        assert early == (can if target in ("sm_90", "sm_100") else set()), target
    float8 = {each.target for each in outcomes() if "FLOAT8=cast" in each.case}
    assert float8 == {"sm_89", "sm_90", "sm_100"}


@needs_triton
def test_every_kernel_has_a_case() -> None:
    cased = {(each.module.removeprefix(f"{kernels.__name__}."), each.kernel) for each in outcomes()}
    assert compiled_alone(_sources()) - cased == set()


def test_functions_that_launch_are_typed() -> None:
    """Strict types let kernels off, and with them the whole folder."""
    untyped = []
    for name, tree in _sources().items():
        jitted = {id(inner) for function in _jitted(tree).values() for inner in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and id(node) not in jitted:
                arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                bare = [each for each in arguments if each.annotation is None and each.arg not in ("self", "cls")]
                untyped += [f"{name}.{node.name}"] if bare or node.returns is None else []
    assert untyped == []


def test_kernels_are_told_from_the_functions_that_they_call() -> None:
    text = """
@triton.jit
def device(x): return x
@triton.jit
def never_launched_by_name(x): device(x)
@triton.jit(debug=True)
def launched_and_called(x): device(x)
@triton.jit
def caller(x): tl.reduce(x, 0, combine) + launched_and_called(x)
@triton.jit
def combine(a, b): return a + b
def run(x): launched_and_called[(1,)](x)
"""
    found = compiled_alone({"m": ast.parse(text)})
    assert found == {("m", "never_launched_by_name"), ("m", "launched_and_called"), ("m", "caller")}


@needs_triton
def test_a_kernel_is_compiled_for_every_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # of this process alone
    found = compile_all(("aot_kernels.good",), workers=2, cache=tmp_path)
    assert [outcome.error for outcome in found] == [""] * len(TARGETS)
    assert [(outcome.kernel, outcome.target) for outcome in found] == [("matrix_product", name) for name in TARGETS]
    for outcome in found:
        assert outcome.compiled is not None
        assert outcome.compiled.registers > 0
        assert outcome.compiled.spills == 0
        assert outcome.compiled.shared_bytes > 0
        assert outcome.compiled.code_bytes > 500
        assert f"matrix_product {outcome.target}" in " ".join(text_line(outcome).split())
    files = sorted(tmp_path.rglob("*"))
    (again,) = compile_all(("aot_kernels.good",), ("sm_90",), workers=1, cache=tmp_path)
    assert dataclasses.replace(again.compiled, seconds=0) == dataclasses.replace(
        found[list(TARGETS).index("sm_90")].compiled, seconds=0
    )
    assert sorted(tmp_path.rglob("*")) == files


@needs_triton
def test_what_cannot_be_compiled_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    heard: list[Outcome] = []
    found = compile_all(("aot_kernels.bad",), ("sm_80",), workers=1, cache=tmp_path, say=heard.append)
    assert sorted(map(text_line, heard)) == sorted(map(text_line, found))
    errors = [(outcome.kernel, outcome.error) for outcome in heard]
    assert [kernel for kernel, _ in errors] == ["nothing_of_that_name", "copies_one", "ends_its_process", "copies_one"]
    assert "there_is_no_such_function" in errors[0][1]
    assert errors[1][1] == "ValueError: without a type or value: y; unknown: z"
    assert errors[2][1].startswith("the compiler ended its process with status -6")
    assert errors[3][1] == ""
    assert "FAILED" in text_line(heard[0])
    for_another = compile_all(("aot_kernels.bad",), ("gfx942",), workers=1, cache=tmp_path)
    assert [outcome.kernel for outcome in for_another if not outcome.error] == ["copies_one", "copies_one"]


@needs_triton
def test_a_module_that_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"No module named 'aot_kernels\.none'"):
        compile_all(("aot_kernels.none",), ("sm_80",), workers=1, cache=tmp_path)
