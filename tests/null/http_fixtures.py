"""A whole server in this process: real socket, real HTTP server, real core; mock executor and byte tokenizer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
from client_fixtures import on_event_loop

from penstock.config.resolve import ResolvedConfig
from penstock.config.sections import ServerConfig
from penstock.engine.constraining import decide_structured, make_constraints
from penstock.engine.engine import Engine
from penstock.engine.inproc import InProcessClient
from penstock.engine.mock_text import mock_assets
from penstock.frontend.app import App
from penstock.frontend.chat.template import ChatTemplate
from penstock.frontend.dialects.select import select_dialect
from penstock.frontend.server import make_server, run
from penstock.frontend.text.load import TextAssets
from penstock.mock.executor import MockExecutor
from penstock.mock.faults import NO_FAULTS, MockFaults
from penstock.mock.performance import FixedDelay
from penstock.mock.rig import full_group
from penstock.mock.tokenizer import ByteTokenizer
from penstock.structured.grammar_cache import CompileLimits
from penstock.types.decision import Decision, Rejection
from penstock.types.facts import EngineInfo, ModelFacts, PlatformFacts

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCE = "Grüße aus Köln! The quick brown fox 🦊 jumps over the lazy dog; "


def spoken(text: str = SENTENCE, ends_at: int | None = None, start: int = 0):
    """A token function that says ``text`` for ever, whoever asks, so that two requests can be compared.

    ``ends_at``: the position, counted with the prompt, at which it says end of sequence.
    """
    data = text.encode()

    def token_of(seed: int, request_id: int, position: int) -> int:
        if ends_at is not None and position >= ends_at:
            return ByteTokenizer.eos_token_id
        return data[(position - start) % len(data)]

    return token_of


@dataclass(kw_only=True)
class MockServer:
    """Use as a context manager. ``step_s`` is the time of one engine step."""

    server: ServerConfig = field(default_factory=lambda: ServerConfig(port=0))
    step_s: float = 0.0
    token_of: Any = field(default_factory=spoken)
    faults: MockFaults = NO_FAULTS
    num_blocks: int = 256
    max_model_len: int = 2048
    max_num_seqs: int = 16
    scheduling_policy: str = "fcfs"
    check_integrity: bool = True
    sampling_defaults: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ("mock", "alias")
    template: bool = True
    # Without a trial process: it costs its start in every server, and has tests of its own.
    compile_limits: CompileLimits = field(default_factory=lambda: CompileLimits(trials=False))
    chat_template: str = CHATML
    tool_dialect: str = "auto"
    structured: Decision = field(default_factory=lambda: decide_structured(None))

    def __enter__(self) -> MockServer:
        self._clients: list[openai.OpenAI] = []
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        assert self._ready.wait(20), "the server did not start"
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self._http.request_stop()
        self._http.request_stop()
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"

    def _main(self) -> None:
        try:
            run(self._serve())
        except BaseException as error:
            self._failure = error
            self._ready.set()
            raise

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        self.client = InProcessClient(self.build_engine, on_event_loop(loop))
        tokenizer = ByteTokenizer()
        template = ChatTemplate(self.chat_template, {"eos_token": "</s>"})
        assets = TextAssets(
            tokenizer=tokenizer,
            chat_template=template if self.template else None,
            dialect=select_dialect(template.sources, template.render, tokenizer, self.tool_dialect),
            stop_token_ids=frozenset({tokenizer.eos_token_id}),
            sampling_defaults=self.sampling_defaults,
        )
        self.app = App(self.server)
        self.app.attach(self.client, assets, self.names)
        self._http = make_server(self.app, self.server, on_ready=self._on_ready)
        try:
            await self._http.serve_bound()
        finally:
            await self.client.close()

    def _on_ready(self, host: str, port: int) -> None:
        self.port = port
        self.url = f"http://{host}:{port}"
        self._ready.set()

    def build_engine(self, channel: InProcessClient) -> Engine:
        executor = MockExecutor(
            (full_group(),),
            (self.num_blocks,),
            performance=FixedDelay(self.step_s),
            faults=self.faults,
            token_of=self.token_of,
            verify=self.check_integrity,
        )
        capacity = executor.start()
        info = self._info()
        constraints = make_constraints(
            self.structured, mock_assets, info.model.vocab_size, info.platform, self.compile_limits
        )
        return Engine(executor, capacity, self._resolved(), channel, info, constraints)

    def _resolved(self) -> ResolvedConfig:
        return ResolvedConfig(
            dtype="float32",
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=512,
            block_size=16,
            kv_cache_dtype="auto",
            kv_cache_memory=None,
            enable_prefix_caching=True,
            scheduling_policy=self.scheduling_policy,
            async_depth=2,
            graphs=True,
            check_integrity=self.check_integrity,
            attention_backend=None,
            linear_backend=None,
            structured_backend=None,
            threads=1,
            platform="cpu",
            deterministic=False,
            load_format="auto",
            seed=0,
        )

    def _info(self) -> EngineInfo:
        return EngineInfo(
            model=ModelFacts(
                name="mock",
                source="",
                format="mock",
                architecture="Mock",
                family="",
                identity="mock",
                num_parameters=0,
                weight_bytes=0,
                vocab_size=ByteTokenizer().vocab_size,
            ),
            platform=PlatformFacts(name="cpu", machine="x86_64"),
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            num_blocks=(self.num_blocks,),
            block_tokens=(16,),
            decisions=(
                Decision("executor", "mock", "asked for", (Rejection("local", ("no weights",)),)),
                self.structured,
            ),
            settings={
                "dtype": "float32",
                "enable_prefix_caching": "True",
                "scheduling_policy": self.scheduling_policy,
            },
        )

    # -- what tests call ----------------------------------------------------------------------------------------

    def openai(self, key: str = "none") -> openai.OpenAI:
        plain = httpx.Client(verify=False)  # no TLS here, and loading certificates takes longer than a test
        client = openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0, timeout=60, http_client=plain)
        self._clients.append(client)
        return client

    def http(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, verify=False)

    def request_stop(self) -> None:
        self._http.request_stop()

    def stopped(self, seconds: float = 20) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def wait_for(self, condition: Any, seconds: float = 20) -> None:
        """Poll until ``condition()`` holds; fail when it never does."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the condition never became true"
            time.sleep(0.005)

    def wait_idle(self) -> None:
        """Until nothing is open, running or waiting, and no block is in use."""
        self.wait_for(lambda: self.app.admission.num_open == 0)
        self.wait_for(self._engine_idle)

    def _engine_idle(self) -> bool:
        stats = self.client.stats()
        return stats.num_running == 0 and stats.num_waiting == 0 and stats.kv_usage == 0


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object; fails when the body is anything else."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    return body["error"]


@contextlib.contextmanager
def mock_server(**fields: Any):
    with MockServer(**fields) as server:
        yield server
