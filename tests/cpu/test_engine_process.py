"""The whole server with a real model: the same text as LLM, and starts that fail in one sentence."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from engine_fixtures import save_model

from penstock import LLM, SamplingParams

FLAGS = ("--dtype", "float32", "--kv-cache-dtype", "float32", "--kv-cache-memory", "4MiB", "--threads", "1")
OPTIONS = {"dtype": "float32", "kv_cache_dtype": "float32", "kv_cache_memory": 4 << 20, "threads": 1}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    made = tmp_path_factory.mktemp("tiny")
    save_model(made)
    return made


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", "serve", *arguments, "--port", "0"], stderr=subprocess.PIPE, text=True
    )


def url_of(process):
    """Wait until it is ready; the address it serves."""
    printed = ""
    for line in process.stderr:
        printed += line
        found = re.match(r"Serving .* at (http://\S+)", line)
        if found:
            return found.group(1)
    raise AssertionError(f"the server ended before it was ready:\n{printed}")


@pytest.fixture
def served(directory):
    with start(str(directory), "--served-model-name", "tiny", *FLAGS) as process:
        yield process, url_of(process)
        process.kill()


def test_http_and_llm_give_the_same_greedy_text(served, directory):
    _, url = served
    prompts = ["Hello there", "x", "some more text, please"]
    messages = [{"role": "user", "content": "Hi"}]
    with LLM(str(directory), **OPTIONS) as llm:
        expected = [answer.text for answer in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=30))]
        chat = llm.chat(messages, SamplingParams(temperature=0, max_tokens=30))[0].text
    asked = {"model": "tiny", "prompt": prompts, "temperature": 0, "max_tokens": 30}
    answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=60).json()
    assert [choice["text"] for choice in answer["choices"]] == expected
    asked = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 30}
    answer = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == chat


def engine_of(process):
    (engine,) = psutil.Process(process.pid).children()
    return engine


def test_an_engine_killed_under_load_is_told_to_everyone_and_in_the_exit_code(served):
    process, url = served
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 200, "ignore_eos": True, "n": 8, "stream": True}
    lines = [[] for _ in range(4)]

    def stream(number):
        with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=60) as response:
            for line in response.iter_lines():
                lines[number].append(line)
        return response.status_code

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(stream, number) for number in range(4)]
        while not all(lines):
            time.sleep(0.001)
        os.kill(engine_of(process).pid, signal.SIGKILL)
        assert [each.result() for each in running] == [200] * 4
    for number in range(4):  # the status was sent before the death: the stream itself says what happened
        assert "SIGKILL" in "".join(lines[number])
    health = httpx.get(f"{url}/health")
    assert health.status_code == 503
    assert "SIGKILL" in health.text
    refused = httpx.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "a"})
    assert refused.status_code == 503
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait() == 1
    assert "penstock: The engine process was killed by SIGKILL" in rest
    assert "Traceback" not in rest


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_only_the_engine_process_loads_torch(served):
    process, _ = served
    assert "libtorch" in Path(f"/proc/{engine_of(process).pid}/maps").read_text()
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()


def test_a_terminal_that_interrupts_the_whole_group_drains_and_leaves_nobody(served):
    process, _ = served
    engine = engine_of(process)
    for pid in (engine.pid, process.pid):
        os.kill(pid, signal.SIGINT)
    process.stderr.read()
    assert process.wait() == 0
    assert not engine.is_running()


def test_a_start_that_is_interrupted_ends_at_once_and_leaves_nobody(directory):
    with start(str(directory), *FLAGS) as process:
        while not psutil.Process(process.pid).children():
            time.sleep(0.001)
        engine = engine_of(process)
        process.send_signal(signal.SIGTERM)
        printed = process.stderr.read()
    assert process.returncode == 0
    assert "Traceback" not in printed
    assert "Serving" not in printed
    assert not engine.is_running()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--attention-backend", "nonsense"), 2, "there is no candidate named 'nonsense'"),
        (("--max-model-len", "99999"), 2, "made for at most 256 tokens"),
        (("--kv-cache-memory", "100"), 2, "KV cache"),
    ],
)
def test_a_start_that_fails_in_the_engine_process_is_one_sentence(directory, arguments, code, sentence):
    with start(str(directory), *FLAGS, *arguments) as process:
        printed = process.stderr.read()
    assert process.returncode == code
    assert sentence in printed
    assert "Traceback" not in printed


def test_a_damaged_checkpoint_is_a_sentence(tmp_path):
    save_model(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with start(str(tmp_path), *FLAGS) as process:
        printed = process.stderr.read()
    assert process.returncode == 2
    assert "Traceback" not in printed
    assert "penstock: " in printed
