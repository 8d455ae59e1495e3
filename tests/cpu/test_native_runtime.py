"""The extension's threads under Python: sizes, several callers, forks, exit, idleness; and that it was built at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from penstock.kernels import reference
from penstock.kernels.native import ISAS, norm
from penstock.kernels.native.extension import built_sets, extension, set_num_threads
from penstock.platforms.probe import extension_missing

ROOT = Path(__file__).resolve().parents[2]
needs_extension = pytest.mark.skipif(bool(extension_missing()), reason=extension_missing() or "-")
BASELINE = ISAS["baseline"]


@pytest.fixture
def threads():
    """Sets the number of threads; the number before the test comes back after it."""
    before = extension().num_threads()
    yield set_num_threads
    set_num_threads(before)


def _normed(seed: int, rows: int = 64) -> bool:
    """One op that is worth several threads, against the reference."""
    x = torch.randn(rows, 576, generator=torch.Generator().manual_seed(seed))
    weight = torch.ones(576)
    found = norm.rms_norm(BASELINE, x, weight, 1e-5)
    return torch.allclose(found, reference.rms_norm(x, weight, 1e-5), rtol=1e-5, atol=1e-5)


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    prelude = "import torch\nfrom penstock.kernels.native import ISAS, norm\n"
    prelude += "from penstock.kernels.native.extension import extension, set_num_threads\n"
    prelude += "x, w = torch.ones(64, 576), torch.ones(576)\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + code],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("c++") is None, reason="without a C++ compiler there is nothing to build")
def test_where_there_is_a_compiler_there_is_an_extension():
    assert extension_missing() == "", "scripts/build_native.py builds it"


@needs_extension
def test_names_and_numbers_of_instruction_sets_are_those_of_the_extension():
    assert tuple(sorted(ISAS, key=ISAS.__getitem__)) == extension().ISAS
    assert set(built_sets()) <= set(ISAS)
    assert built_sets()[0] == "baseline"
    with pytest.raises(ValueError, match="no kernel for the instruction set"):
        norm.rms_norm(99, torch.ones(1, 4), torch.ones(4), 1e-5)


@needs_extension
def test_results_do_not_depend_on_the_number_of_threads(threads):
    x, weight = torch.randn(100, 576), torch.randn(576)
    found = []
    for num_threads in (1, 2, 3, 7):
        threads(num_threads)
        assert extension().num_threads() == num_threads
        found.append(norm.rms_norm(BASELINE, x, weight, 1e-5))
    assert all(torch.equal(each, found[0]) for each in found)
    threads(0)
    assert extension().num_threads() == 1


@needs_extension
def test_callers_on_several_threads_take_turns(threads):
    threads(3)
    wrong = []

    def call(seed: int) -> None:
        wrong.extend(step for step in range(50) if not _normed(seed + step))

    callers = [threading.Thread(target=call, args=(1000 * i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for size in (1, 4, 2, 3):
        threads(size)
    for caller in callers:
        caller.join()
    assert wrong == []


@needs_extension
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_computes():
    """In a process of its own: this one has threads of torch, which do not survive a fork."""
    done = _run(
        """
import os, signal
set_num_threads(3)
norm.rms_norm(ISAS["baseline"], x, w, 1e-5)
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    out = norm.rms_norm(ISAS["baseline"], x, w, 1e-5)
    os._exit(0 if extension().num_threads() == 3 and abs(float(out[0, 0]) - 1) < 1e-4 else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""",
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr


@needs_extension
def test_the_interpreter_ends_with_workers_awake_and_a_program_alive():
    done = _run(
        """
set_num_threads(3)
keep = extension().Program()
keep.record()
out = norm.rms_norm(ISAS["baseline"], x, w, 1e-5)
extension().Program.stop_recording()
keep.run()
import sys
sys.keep = keep, x, w, out
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _worker_states() -> dict[str, str]:
    """Name and state of the pool's threads, from the system."""
    states = {}
    for task in Path("/proc/self/task").iterdir():
        name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        if name.startswith("penstock-") and name[9:].isdigit():
            states[name] = rest.split()[0]
    return states


@needs_extension
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_workers_without_work_sleep_and_leave_signals_alone(threads):
    threads(4)
    assert _normed(1)
    while set(_worker_states().values()) != {"S"}:  # a worker stays awake for microseconds
        time.sleep(0.01)
    assert sorted(_worker_states()) == ["penstock-1", "penstock-2", "penstock-3"]
    for task in Path("/proc/self/task").iterdir():
        status = dict(line.split(":\t") for line in (task / "status").read_text().splitlines() if ":\t" in line)
        if status["Name"] in _worker_states():
            assert int(status["SigBlk"], 16) >> (signal.SIGINT - 1) & 1
    threads(1)
    assert _worker_states() == {}
