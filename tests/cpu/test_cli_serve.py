"""``penstock serve --mock`` as a user meets it: what it prints works when pasted, and it ends when asked to."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys

import httpx
import pytest

COMMAND = [sys.executable, "-m", "penstock.cli", "serve", "--mock", "--port"]


@pytest.fixture
def serving():
    """Starts servers; answers the process and all it printed until it was ready. Ends what is still running."""
    started = []

    def start(*arguments):
        process = subprocess.Popen([*COMMAND, "0", *arguments], stderr=subprocess.PIPE, text=True)
        started.append(process)
        printed = ""
        for line in process.stderr:
            printed += line
            if line.startswith("Any OpenAI client"):
                return process, printed
        raise AssertionError(f"the server ended before it was ready:\n{printed}")

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def snippet(printed):
    return printed.partition("In Python:\n\n")[2].partition("\n\n")[0]


def test_what_it_prints_works_and_it_drains(serving):
    process, printed = serving("--max-num-seqs", "4")
    url = re.search(r"http://127\.0\.0\.1:\d+", printed).group()
    # Isolated and without site packages: what a Python has that nothing was installed into.
    bare = [sys.executable, "-I", "-S", "-c", snippet(printed)]
    done = subprocess.run(bare, capture_output=True, text=True, check=True)
    assert done.stdout.strip()
    pasted = subprocess.run(
        [sys.executable, "-i", "-q"], input=snippet(printed) + "\n\n", capture_output=True, text=True
    )
    assert pasted.stdout.strip()
    assert "Error" not in pasted.stderr
    if shutil.which("curl"):
        (line,) = [line for line in printed.splitlines() if line.strip().startswith("curl ")]
        answer = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True)
        assert json.loads(answer.stdout)["choices"][0]["message"]["role"] == "assistant"
    assert f'base_url="{url}/v1", api_key="none"' in printed
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def test_a_taken_port_is_a_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run([*COMMAND, str(port)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_is_never_printed(serving):
    process, printed = serving("--api-key", "very-secret")
    assert "very-secret" not in printed
    assert "$PENSTOCK_API_KEY" in printed
    without = subprocess.run(
        [sys.executable, "-c", snippet(printed)], capture_output=True, text=True, env={"PENSTOCK_API_KEY": "wrong"}
    )
    assert "401" in without.stderr
    answer = subprocess.run(
        [sys.executable, "-c", snippet(printed)],
        capture_output=True,
        text=True,
        env={"PENSTOCK_API_KEY": "very-secret"},
        check=True,
    )
    assert answer.stdout.strip()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0


SERVE = """
from penstock.config.sections import MockConfig, ServerConfig
from penstock.engine.serve import run_server
from penstock.config.flags import engine_config_from
run_server(engine_config_from(), ServerConfig(port=0, drain_timeout=20), mock=MockConfig(),
           announce=lambda url, name: print(url, flush=True))
print("ended", flush=True)
"""


def test_a_signal_drains_and_the_process_ends_in_order():
    with subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            body = {"prompt": "abc", "max_tokens": 1000, "stream": True, "ignore_eos": True}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
                lines = response.iter_lines()
                assert next(lines).startswith("data: ")
                process.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert process.stdout.readline().strip() == "ended"
            assert process.wait(30) == 0
        finally:
            if process.poll() is None:
                process.kill()
