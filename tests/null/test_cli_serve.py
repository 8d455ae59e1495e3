"""``penstock serve --mock`` as a user meets it: what it prints works when pasted, and it ends when asked to."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from penstock.cli.serve import ready_text

SERVE = [sys.executable, "-m", "penstock.cli", "serve", "--mock", "--port"]


@pytest.fixture
def serving():
    """Starts servers; answers the process and all it printed until it was ready. Ends what is still running."""
    started = []

    def start(*arguments):
        process = subprocess.Popen([*SERVE, "0", *arguments], stderr=subprocess.PIPE, text=True)
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
        done = subprocess.run([*SERVE, str(port)], capture_output=True, text=True, check=False)
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


@pytest.mark.parametrize("name", ["assistant", 'it\'s "quoted" $HOME'])
def test_the_texts_survive_any_name(name):
    text = ready_text("http://127.0.0.1:8000", name, needs_key=False)
    (line,) = [line for line in text.splitlines() if line.strip().startswith("curl ")]
    assert json.loads(shlex.split(line)[-1])["model"] == name
    compile(snippet(text), "snippet", "exec")
    assert json.dumps(name) in text
