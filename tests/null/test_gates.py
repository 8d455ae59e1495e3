"""The gates of scripts/: what they let pass, what they refuse, and the closing line that sums tiers up."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load(name):
    spec = importlib.util.spec_from_file_location(f"gate_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


sizes = load("sizes")
run_tests = load("run_tests")
install = load("install_environment")
native_tests = load("run_native_tests")


def test_percentile_is_the_nearest_rank():
    assert sizes.percentile([5, 1, 3], 50) == 3
    assert sizes.percentile(list(range(1, 101)), 95) == 95
    assert sizes.percentile([], 95) == 0


def test_caps_and_allowances():
    found = [sizes.Size("a.py", 700, 600), sizes.Size("b.py:f", 90, 100), sizes.Size("c.py", 610, 600)]
    assert sizes.over_caps(found, {"a.py": 700, "c.py": 610}) == []
    assert sizes.over_caps(found, {"a.py": 700}) == ["c.py has 610 lines, more than 600."]
    (problem,) = sizes.over_caps(found, {"a.py": 800, "c.py": 610})
    assert "lower its allowance" in problem
    (problem,) = sizes.over_caps(found, {"a.py": 700, "c.py": 610, "b.py:f": 120})
    assert "needs no allowance" in problem
    (problem,) = sizes.over_caps(found, {"a.py": 700, "c.py": 610, "gone.py": 700})
    assert "needs no allowance" in problem


def test_measuring_counts_methods_and_inner_functions(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "ROOT", tmp_path)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "x.py").write_text(
        "class A:\n    def m(self):\n        def inner():\n            pass\n        return inner\n"
    )
    files, functions = sizes.measure(tmp_path)
    assert [(size.where, size.lines, size.cap) for size in files] == [("x.py", 5, 600)]
    assert {(size.where, size.lines) for size in functions} == {("x.py:m", 4), ("x.py:inner", 2)}


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("======= 12 passed in 0.31s =======", {"passed": 12}),
        ("12 passed, 3 skipped in 0.31s", {"passed": 12, "skipped": 3}),
        ("= 1 failed, 2 passed, 1 error in 61.2s (0:01:01) =", {"failed": 1, "passed": 2, "error": 1}),
        ("======= no tests ran in 0.01s =======", {}),
    ],
)
def test_closing_lines_are_read(line, counts):
    closing = run_tests._CLOSING.match(line)
    assert {what: int(count) for count, what in run_tests._COUNT.findall(closing["counts"])} == counts


@pytest.mark.parametrize("line", ["12 passed", "tests/null/test_x.py ....", "took 3 steps in 5s", "--- tier null"])
def test_other_lines_are_passed_on(line):
    assert run_tests._CLOSING.match(line) is None


def test_tiers_are_summed_up_in_one_line(monkeypatch, capsys):
    statuses = {"null": 0, "cpu": 1, "conformance": 5}

    def run_tier(tier, extra, counts):
        counts.update(Counter(passed=10, failed=1) if tier == "cpu" else Counter(passed=5) if tier == "null" else {})
        return statuses[tier]

    monkeypatch.setattr(run_tests, "run_tier", run_tier)
    assert run_tests.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].strip("= ").startswith("1 failed, 15 passed in ")
    assert "cpu" in lines[-2]
    assert run_tests.main(["null"]) == 0
    assert run_tests.main(["conformance"]) == 1, "a run without a single test is no success"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A source tree whose environment seems to be there; nothing is installed and nothing compiled."""
    python = tmp_path / ".venv" / "bin" / "python"
    files = [python, *(tmp_path / name for name in install.INPUTS), tmp_path / "native" / "norm" / "avx2.cpp"]
    for path in [*files, tmp_path / "native" / "tests" / "check.cpp", tmp_path / "penstock" / "_native.x.so"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "PYTHON", python)
    monkeypatch.setattr(install, "_compiler", lambda: "/usr/bin/c++")
    return tmp_path


def test_a_fresh_installation_is_left_alone(checkout, monkeypatch):
    calls = []
    monkeypatch.setattr(install, "_install", lambda extras: calls.append(extras) or 0)
    monkeypatch.setattr(install, "_native_is_fresh", lambda: True)
    assert install.main(["runtime"]) == 0
    install._stamp("runtime").write_text(install._digest())
    assert install.main(["runtime"]) == 0
    assert calls == [["runtime"]]
    (checkout / "constraints.txt").write_text("2")
    assert install.main(["runtime", "test"]) == 0
    assert calls == [["runtime"], ["runtime", "test"]]
    assert install.main(["nonsense"]) == 1


def test_native_code_is_built_again_when_its_sources_change(checkout, monkeypatch):
    commands = []
    monkeypatch.setattr(install, "_run", lambda command: commands.append(command[-1]) or 0)
    install._stamp("runtime").write_text(install._digest())

    def builds():
        commands.clear()
        assert install.main(["runtime"]) == 0
        return len(commands)

    assert builds() == 1
    assert commands == ["scripts/build_native.py"]
    assert builds() == 0
    (checkout / "native" / "norm" / "avx2.cpp").write_text("2")
    assert [builds(), builds()] == [1, 0]
    (checkout / "native" / "tests" / "check.cpp").write_text("2")
    assert builds() == 0
    (checkout / "penstock" / "_native.x.so").unlink()
    assert builds() == 1


def test_without_a_compiler_there_is_no_extension_until_there_is_one(checkout, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(install, "_run", lambda command: commands.append(command) or 0)
    monkeypatch.setattr(install, "_compiler", lambda: "")
    install._stamp("runtime").write_text(install._digest())
    assert install.main(["runtime"]) == 0
    assert not list((checkout / "penstock").glob("*.so")), "it was built from other sources"
    assert "No C++ compiler" in capsys.readouterr().err
    assert install.main(["runtime"]) == 0
    assert capsys.readouterr().err == ""
    assert commands == []
    monkeypatch.setattr(install, "_compiler", lambda: "/usr/bin/c++")
    assert install.main(["runtime"]) == 0
    assert len(commands) == 1


def test_a_compiler_that_fails_is_no_end_and_is_tried_again(checkout, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(install, "_run", lambda command: commands.append(command) or 1)
    install._stamp("runtime").write_text(install._digest())
    assert [install.main(["runtime"]), install.main(["runtime"])] == [0, 0]
    assert len(commands) == 2
    assert "could not be built" in capsys.readouterr().err


def test_missing_tools_of_native_tests_are_named(monkeypatch, tmp_path, capsys):
    for name in ("cmake", "make", "g++"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    assert native_tests.missing_packages("host", str(tmp_path)) == []
    assert native_tests.missing_packages("aarch64", str(tmp_path)) == ["g++-aarch64-linux-gnu", "qemu-user-static"]
    monkeypatch.setattr(native_tests, "PATH", str(tmp_path))
    monkeypatch.setattr(native_tests, "missing_packages", lambda target: ["qemu-user-static"])
    assert native_tests.main(["aarch64"]) == 1, "a target that cannot run is no success"
    assert "apt-get install qemu-user-static" in capsys.readouterr().out


def test_an_old_python_gets_a_sentence(tmp_path):
    """PATH holds nothing but an interpreter that calls itself too old."""
    for name in ("python3", "python3.12", "python3.11", "python"):
        fake = tmp_path / name
        fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
        fake.chmod(0o755)
    (tmp_path / "dirname").symlink_to("/usr/bin/dirname")
    done = subprocess.run(
        ["/bin/sh", str(SCRIPTS / "install")], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "needs Python 3.11 or 3.12, but this machine has Python 3.9.2" in done.stderr


def test_a_named_python_that_does_not_run_gets_a_sentence():
    environment = {**os.environ, "PYTHON": "/nonexistent/python"}
    done = subprocess.run(
        ["/bin/sh", str(SCRIPTS / "install")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "PYTHON=/nonexistent/python is not a working Python" in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("arguments", "host"), [([], "127.0.0.1"), (["HOST=0.0.0.0"], "0.0.0.0")])
def test_the_name_of_the_machine_is_not_the_address_to_listen_on(arguments, host):
    """Shells export HOST; only the command line of make may change the address."""
    done = subprocess.run(
        ["make", "--print-data-base", "--dry-run", "help", *arguments],
        cwd=SCRIPTS.parent, env={**os.environ, "HOST": "build-machine-7"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if re.match(r"HOST\b", line)] == [f"HOST = {host}"]
