"""Service: what every route works with, once an engine is attached. Made by ``app``; knows no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

from penstock.config.sections import ServerConfig
from penstock.errors import ModelNotServedError
from penstock.frontend.admission import Admission
from penstock.frontend.chatting import constrains_output
from penstock.frontend.client import EngineClient
from penstock.frontend.metrics import ServerMetrics
from penstock.frontend.openai.errors import HttpError
from penstock.frontend.peers import Peers, Snapshot
from penstock.frontend.responses.store import ResponseStore
from penstock.frontend.text.requests import encode_prompt, one_bos

if TYPE_CHECKING:
    from penstock.frontend.text.load import TextAssets

INLINE_CHARACTERS = 16 << 10
"""Longer texts are tokenized on a thread: about 5 ms of one core, which other requests should not wait for."""
BATCH_CHARACTERS = 64 << 10
"""Texts of one request that are tokenized in one go on a thread; others come in between."""
INLINE_MESSAGES = 64
"""Longer conversations are rendered on a thread."""
SLOW_RENDERING_S = 0.05
"""A template that has once taken so long is rendered on a thread from then on."""

T = TypeVar("T")


class EncodeBatch(Protocol):
    """What a tokenizer may have besides ``encode``."""

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]: ...


class EncodeKnown(Protocol):
    """The same."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> list[int] | None: ...


class OpenGeneration(Protocol):
    """A request that is being answered, until its answer is with the connection."""

    def shut_down(self, problem: HttpError) -> None: ...


class Service:
    """One served model. Used from one event loop."""

    def __init__(
        self,
        client: EngineClient,
        assets: TextAssets,
        server: ServerConfig,
        served_names: tuple[str, ...],
        admission: Admission,
        peers: Peers | None = None,
    ) -> None:
        """``peers`` are the other frontend processes of the same server."""
        self.client = client
        self.assets = assets
        self.server = server
        self.served_names = served_names
        self.admission = admission
        self.peers = peers
        self.responses = ResponseStore(server.max_stored_responses, server.max_stored_bytes)
        self.created = int(time.time())
        self.generations: set[OpenGeneration] = set()
        self.metrics = ServerMetrics(
            prefix=server.metrics_prefix, model_name=served_names[0], max_model_len=client.info.max_model_len
        )
        self.metrics.set_cache_config(_cache_labels(client))
        observe = getattr(client, "observe_delivery", None)  # clients of other processes have it
        if observe is not None:
            observe(self.metrics.on_delivery)
        self.num_together = 1  # requests that were begun in this turn of the event loop, with the one that asks
        self._texts: list[tuple[str, bool, asyncio.Future[list[int]]]] = []
        self._encode_known: EncodeKnown | None = getattr(assets.tokenizer, "encode_known", None)
        self._encode_batch: EncodeBatch | None = getattr(assets.tokenizer, "encode_batch", None)
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenize")
        self._pool.submit(assets.tokenizer.encode, "é")  # what the first text of its kind would wait for
        self._renderers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="render")
        self._renders_slowly = False

    @property
    def constrains_output(self) -> bool:
        """Whether the engine enforces ``SamplingParams.structured``."""
        return constrains_output(self.client.info.decisions)

    def snapshot(self) -> Snapshot:
        """What this process has counted."""
        return Snapshot(self.metrics.set.counts(), self.admission.num_open, self.admission.num_refused)

    async def peer_snapshots(self) -> list[Snapshot]:
        """What the others have counted. Raises HttpError when one does not answer."""
        return await self.peers.collect() if self.peers is not None else []

    def model_name(self, asked: str | None) -> str:
        """The name to answer with. No name means the first one. Raises ModelNotServedError."""
        if asked is None:
            return self.served_names[0]
        if asked not in self.served_names:
            served = ", ".join(self.served_names)
            raise ModelNotServedError(f"The model {asked[:200]!r} is not served here. Served: {served}.")
        return asked

    async def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Token ids of ``text``; long texts do not hold up the event loop."""
        tokenizer = self.assets.tokenizer
        if self._encode_known is not None:
            known = self._encode_known(text, add_special_tokens=add_special_tokens)
            if known is not None:
                return one_bos(tokenizer, text, known, add_special_tokens)
        if len(text) <= INLINE_CHARACTERS:
            if self.num_together > 1 and self._encode_batch is not None:
                return await self._encode_together(text, add_special_tokens)
            return encode_prompt(tokenizer, text, add_special_tokens=add_special_tokens)
        return await self.compute(
            len(text), lambda: encode_prompt(tokenizer, text, add_special_tokens=add_special_tokens)
        )

    async def encode_all(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[tuple[int, ...]]:
        """``encode`` of the texts of one request: how long they are together says where."""
        if len(texts) == 1 or sum(map(len, texts)) <= INLINE_CHARACTERS:
            return [await self.encode(text, add_special_tokens=add_special_tokens) for text in texts]
        tokenizer, loop = self.assets.tokenizer, asyncio.get_running_loop()

        def encode(batch: Sequence[str]) -> list[tuple[int, ...]]:
            return [encode_prompt(tokenizer, text, add_special_tokens=add_special_tokens) for text in batch]

        ids: list[tuple[int, ...]] = []
        for batch in _batches(texts):
            ids += await loop.run_in_executor(self._pool, encode, batch)
        return ids

    async def compute(self, size: int, work: Callable[[], T]) -> T:
        """``work()`` on ``size`` characters, tokens or bytes; on many of them it does not hold up the event loop."""
        if size <= INLINE_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def render(self, num_messages: int, render: Callable[[], T]) -> T:
        """``render()``, which goes through the model's chat template; what takes long does not hold up the event
        loop."""
        if num_messages > INLINE_MESSAGES or self._renders_slowly:
            return await asyncio.get_running_loop().run_in_executor(self._renderers, render)
        begin = time.monotonic()
        try:
            return render()
        finally:
            self._renders_slowly = time.monotonic() - begin > SLOW_RENDERING_S

    async def _encode_together(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        """One of several texts of this turn of the loop: they are tokenized by one call, on all cores."""
        loop = asyncio.get_running_loop()
        if not self._texts:
            loop.call_soon(self._encode_texts)
        ids: asyncio.Future[list[int]] = loop.create_future()
        self._texts.append((text, add_special_tokens, ids))
        return one_bos(self.assets.tokenizer, text, await ids, add_special_tokens)

    def _encode_texts(self) -> None:
        waiting, self._texts = self._texts, []
        assert self._encode_batch is not None
        for special in (False, True):
            group = [(text, ids) for text, wanted, ids in waiting if wanted is special and not ids.done()]
            if not group:
                continue
            try:
                results = self._encode_batch([text for text, _ in group], add_special_tokens=special)
            except Exception as error:  # noqa: BLE001 - each request is told
                for _, ids in group:
                    ids.set_exception(error)
                continue
            for (_, ids), result in zip(group, results, strict=True):
                ids.set_result(result)

    def close(self) -> None:
        """Release threads. The client belongs to whoever made it."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._renderers.shutdown(wait=False, cancel_futures=True)


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """In order, each of at least one text and of no more characters than BATCH_CHARACTERS besides."""
    begin = size = 0
    for end, text in enumerate(texts):
        if end > begin and size + len(text) > BATCH_CHARACTERS:
            yield texts[begin:end]
            begin, size = end, 0
        size += len(text)
    yield texts[begin:]


def _cache_labels(client: EngineClient) -> dict[str, str]:
    info = client.info
    labels = {"num_gpu_blocks": str(sum(info.num_blocks)), "max_model_len": str(info.max_model_len)}
    if info.block_tokens:
        labels["block_size"] = str(info.block_tokens[0])
    for name in ("enable_prefix_caching", "dtype", "kv_cache_memory"):
        if name in info.settings:
            labels[name] = info.settings[name]
    return labels
