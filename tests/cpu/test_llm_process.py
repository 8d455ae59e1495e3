"""Programs that use LLM: interrupted, ended without closing, left by their reader. On the mock engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

INTERRUPTED = """
import signal, sys, time
from penstock import LLM, SamplingParams

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs tests in the background ignores it
llm = LLM(mock=True)
try:
    print("ready", flush=True)  # inside: on a busy machine the signal may come before the next line
    llm.generate(["a", "b", "c"], SamplingParams(max_tokens=100_000))
except KeyboardInterrupt:
    while llm.stats().num_running or llm.stats().num_waiting:
        time.sleep(0.001)
    print(len(llm.generate("d", SamplingParams(max_tokens=3))[0].outputs[0].token_ids), flush=True)
    llm.close()
    sys.exit(7)
"""


def test_ctrl_c_aborts_the_batch_and_leaves_the_engine_usable():
    script = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    with script:
        assert script.stdout.readline() == "ready\n"
        time.sleep(0.3)
        os.kill(script.pid, signal.SIGINT)
        assert script.stdout.readline() == "3\n"
    assert script.returncode == 7


def test_a_program_may_end_without_closing():
    code = "from penstock import LLM, SamplingParams; llm = LLM(mock=True); print(len(llm.generate('a')))"
    code = code.replace("generate('a')", "generate('a', SamplingParams(max_tokens=2))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "penstock.cli", "run", "m", "hello", "--raw", "--mock", "--max-tokens", "4000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()
