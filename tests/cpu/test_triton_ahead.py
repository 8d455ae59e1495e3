"""What is compiled ahead is what launches ask for, each kernel once; nothing is launched or lost meanwhile."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    scene = Path(__file__).with_name("ahead_scene.py")
    result = subprocess.run(
        [sys.executable, str(scene)], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def test_every_kernel_is_compiled_and_loaded_once_and_none_is_launched(said: dict[str, Any]) -> None:
    ahead = said["ahead"]
    assert ahead["launched"] == {}
    assert ahead["found"] == {}
    assert said["told"] == [[done, said["asked"]] for done in range(1, said["asked"] + 1)]
    assert sum(ahead["compiled"].values()) == sum(ahead["loaded"].values()) == said["asked"]
    assert ahead["compiled"] == {
        "_rms_norm_kernel": 1,
        "_add_rms_norm_kernel": 1,
        "_gated_kernel": 1,
        "_dot_kernel": 2,  # launched early and not
        "_vector_kernel": 1,
        "_argmax_kernel": 1,
        "_rotate_and_write": 1,
        "_decode": 1,
    }


def test_launches_find_what_was_compiled_ahead(said: dict[str, Any]) -> None:
    launch = said["launch"]
    assert launch["compiled"] == launch["found"] == launch["loaded"] == {}
    assert launch["launched"] == {
        **dict.fromkeys(("_rms_norm_kernel", "_add_rms_norm_kernel", "_gated_kernel", "_vector_kernel"), 2),
        "_dot_kernel": 4,
        **dict.fromkeys(("_argmax_kernel", "_rotate_and_write", "_decode"), 1),
    }


def test_launches_of_another_process_find_it_on_disk_by_the_same_key(said: dict[str, Any]) -> None:
    launch = said["launch of a new process"]
    assert launch["compiled"] == {}
    assert launch["found"] == said["ahead"]["compiled"]
    assert said["new files"] == 0


def test_other_threads_launch_as_ever(said: dict[str, Any]) -> None:
    assert said["asked with a thread beside"] == 1
    assert said["thread beside"]["launched"] == {"_rms_norm_kernel": 1}
    assert said["thread beside"]["loaded"] == {"_rms_norm_kernel": 1, "_add_rms_norm_kernel": 1}


def test_what_has_been_compiled_is_not_launched_either(said: dict[str, Any]) -> None:
    assert said["asked again"] == 0
    assert said["again"]["launched"] == {"_rms_norm_kernel": 1}  # of the thread beside
    assert said["again"]["loaded"] == {}


def test_what_cannot_be_compiled_ahead_is_compiled_by_its_launch(said: dict[str, Any]) -> None:
    assert said["without preload"]["loaded"] == {}
    assert said["in its place"]["loaded"] == said["in its place"]["launched"] == {"_rms_norm_kernel": 1}


def test_an_error_passes_and_leaves_nothing_behind(said: dict[str, Any]) -> None:
    assert said["raised"] == "'compute'"
    assert said["restored"] is True
