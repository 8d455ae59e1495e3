"""``penstock serve`` with the embedded default model, as a user meets it: over HTTP, with the official client."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import openai
import pytest

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served():
    """The server's URL and the Python snippet that it printed."""
    command = [sys.executable, "-m", "penstock.cli", "serve", "smollm2", "--port", "0", "--max-model-len", "2048"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    printed = ""
    for line in process.stderr:
        printed += line
        if line.startswith("Any OpenAI client"):
            break
    found = re.search(r"http://127\.0\.0\.1:\d+", printed)
    assert found, printed
    code = printed.partition("In Python:\n\n")[2].partition("\n\n")[0]
    yield found.group(), code
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=served[0] + "/v1", api_key="none") as client:
        yield client


def test_the_printed_snippet_answers_paris(served):
    done = subprocess.run([sys.executable, "-c", served[1]], capture_output=True, text=True, check=True)
    assert "Paris" in done.stdout


def test_streamed_and_whole_answers_are_the_same(client):
    model = client.models.list().data[0].id
    ask = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 32}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert whole.choices[0].finish_reason == "stop"


def test_requests_at_once_answer_as_one_alone(client):
    model = client.models.list().data[0].id
    prompts = ["The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at"]
    ask = {"model": model, "temperature": 0, "max_tokens": 12}
    alone = [client.completions.create(prompt=prompt, **ask).choices[0].text for prompt in prompts]
    together = client.completions.create(prompt=prompts, **ask)
    assert [choice.text for choice in together.choices] == alone
