"""LLM: the engine as an object in this process, for scripts, notebooks and benchmarks.

Text is handled by the same code as in the server, so the same request gives the same answer.
"""

from __future__ import annotations

import dataclasses
import logging
import operator
import os
import queue
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from penstock.engine.build import build_for_llm
from penstock.engine.inproc import InProcessClient
from penstock.engine.outputs import CompletionOutput, FunctionCall, RequestOutput
from penstock.errors import ConfigError, EngineDeadError, InvalidRequestError, RequestFailedError
from penstock.frontend.chat.messages import normalize_messages
from penstock.frontend.chat.tools import ToolUse, read_tool_use
from penstock.frontend.chatting import check_tools, constrain_answer, constrains_output, plan_reading
from penstock.frontend.dialects.contract import Reading
from penstock.frontend.dialects.events import AnswerFold, ContentText
from penstock.frontend.openai.structured import constraint_of_format
from penstock.frontend.text.answer_stream import AnswerStream
from penstock.frontend.text.requests import PreparedRequest, merge_sampling, prepare_request
from penstock.frontend.text.stream import TextDelta, TextFold, TextStream
from penstock.frontend.text.tokenizer import Tokenizer
from penstock.observability.log import warn_once
from penstock.types.control import ControlCommand, ControlReply
from penstock.types.facts import EngineInfo
from penstock.types.output import EngineStats, FailureKind, Terminal, TokenUpdate
from penstock.types.request import SamplingParams
from penstock.types.structured import StructuredSpec

Prompt = str | Sequence[int]
Message = dict[str, Any]
_News = tuple[int, Sequence[TokenUpdate], Terminal | None]

_LONGEST_TIMEOUT = 1e9  # seconds; also what an integer beyond every float becomes

log = logging.getLogger(__name__)


class LLM:
    """A loaded model. Keywords are the engine's flags (``penstock serve --help``) with underscores.

    >>> with LLM("smollm2", max_model_len=1024) as llm:
    ...     answer = llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=8))[0]
    ...     print(answer.text)

    Methods may be called from several threads; their requests share the engine's steps. Raises ConfigError,
    ModelSourceError, UnsupportedModelError or NoBackendError when the model cannot be built as asked.
    ``mock`` builds the engine without weights: random tokens over bytes, for tests of what is around it.
    ``default_max_tokens`` caps answers whose sampling parameters name no ``max_tokens``; less is left by a long prompt.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "smollm2",
        *,
        mock: bool = False,
        default_max_tokens: int | None = None,
        **options: Any,
    ) -> None:
        client, assets = build_for_llm({"model": model, **options}, mock=mock)
        if default_max_tokens is not None:
            longest = min(default_max_tokens, assets.max_new_tokens or default_max_tokens)
            assets = dataclasses.replace(assets, max_new_tokens=longest)
        self._assets = assets
        self._client: InProcessClient = client
        self._finalizer = weakref.finalize(self, client.stop)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine and free its memory. Open requests fail with EngineDeadError. Idempotent."""
        self._finalizer()

    @property
    def info(self) -> EngineInfo:
        """Facts about model and machine, sizes, and every decision with its reasons."""
        return self._client.info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._assets.tokenizer

    def stats(self) -> EngineStats:
        return self._client.stats()

    def control(self, command: ControlCommand) -> ControlReply:
        """Carry out a command between two steps, for example ``ResetPrefixCache()`` before a measurement."""
        return self._client.control_now(command)

    def default_sampling(self, **given: Any) -> SamplingParams:
        """The model's own sampling defaults (``generation_config.json``), changed by what is given."""
        return merge_sampling(self._assets.sampling_defaults, given)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        timeout: float | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Complete prompts, all at once, and return the answers in their order.

        A prompt is text or a sequence of token ids. ``sampling_params`` is one for all or one per prompt; None takes
        the model's own defaults. Lower ``priority`` runs first with ``scheduling_policy="priority"``. Requests share
        cached KV blocks only with those of the same ``cache_salt``. ``timeout`` is in seconds, for all prompts
        together. ``progress`` draws a bar on stderr. Raises InvalidRequestError before anything runs, or when what
        ``structured`` asks for cannot be compiled; RequestFailedError or EngineDeadError when a request fails or its
        time is up (the others are aborted).

        >>> llm.generate(["One, two,", "Un, deux,"], SamplingParams(max_tokens=4, n=2))[1].outputs[0].text
        """
        batch = _as_batch(prompts)
        terms = self._terms(priority, cache_salt, timeout)
        return self._run(self._prepare(batch, sampling_params, terms, add_special_tokens=True), batch, progress)

    def time_tokens(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams
    ) -> tuple[float, list[tuple[float, ...]]]:
        """For measurements: when the first prompt was submitted, and when each token of each prompt's answer was there,
        ``time.perf_counter()`` seconds on the engine's own thread. All prompts are submitted at once; ``n`` is 1.

        Raises RequestFailedError or EngineDeadError when a request fails.
        """
        prepared = self._prepare(prompts, sampling_params, self._terms(0, "", None), add_special_tokens=True)
        ended: queue.SimpleQueue[Terminal] = queue.SimpleQueue()
        times: list[list[float]] = [[] for _ in prepared]

        def sink(arrivals: list[float]) -> Callable[[Sequence[TokenUpdate], Terminal | None], None]:
            def on_news(updates: Sequence[TokenUpdate], terminal: Terminal | None) -> None:
                now = time.perf_counter()
                arrivals.extend(now for update in updates for _ in update.token_ids)
                if terminal is not None:
                    ended.put(terminal)

            return on_news

        children = [job.children[0] for job in prepared]
        started = time.perf_counter()
        try:
            for child, arrivals in zip(children, times, strict=True):
                self._client.submit(child, sink(arrivals))
            for _ in children:
                terminal = ended.get()
                if terminal.failure is not None:
                    raise _failure_of(terminal) from self._client.death
        except BaseException:
            self._client.abort([child.request_id for child in children])
            raise
        return started, [tuple(arrivals) for arrivals in times]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
        priority: int = 0,
        cache_salt: str = "",
        timeout: float | None = None,
        progress: bool = False,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several at once. ``template_options`` go to the chat template, for example
        ``add_generation_prompt``, ``continue_final_message`` or variables of the model's own. ``tools``,
        ``tool_choice``, ``parallel_tool_calls`` and ``response_format`` are what OpenAI's API has under these names,
        and reasoning and calls of tools stand apart in the outputs, as the server answers them. Everything else is as
        in ``generate``.

        >>> llm.chat([{"role": "user", "content": "What is the capital of France?"}])[0].text
        """
        conversations = [messages] if _is_conversation(messages) else list(messages)
        use = read_tool_use(tools, tool_choice, parallel_tool_calls)
        form = constraint_of_format(response_format)
        terms = self._terms(priority, cache_salt, timeout)
        prepared = self._prepare_chats(conversations, sampling_params, use, form, template_options, terms)  # type: ignore[arg-type]
        return self._run([job for job, _ in prepared], [text for _, text in prepared], progress)

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        timeout: float | None = None,
    ) -> Iterator[TextDelta]:
        """Complete one prompt and yield its text as it comes. Leaving the loop early aborts the request.

        >>> for delta in llm.stream("Once upon a time", SamplingParams(max_tokens=100)):
        ...     print(delta.text, end="", flush=True)
        """
        terms = self._terms(priority, cache_salt, timeout)
        return self._stream(*self._prepare([prompt], sampling_params, terms, add_special_tokens=True))

    def stream_chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
        priority: int = 0,
        cache_salt: str = "",
        timeout: float | None = None,
        **template_options: Any,
    ) -> Iterator[TextDelta]:
        """Like ``stream``, for a conversation, with the options of ``chat``. A delta's ``text`` is for the user, its
        ``reasoning`` is the model's own, and its ``events`` have the calls of tools as they come."""
        use = read_tool_use(tools, tool_choice, parallel_tool_calls)
        form = constraint_of_format(response_format)
        terms = self._terms(priority, cache_salt, timeout)
        ((prepared, _),) = self._prepare_chats([messages], sampling_params, use, form, template_options, terms)
        return self._stream(prepared)

    def render_chat(self, messages: Sequence[Message], **template_options: Any) -> str:
        """The prompt text that the model's chat template makes of a conversation."""
        template = self._assets.chat_template
        if template is None:
            raise ConfigError(
                f"{self.info.model.name} has no chat template. Use generate, or give a template with chat_template."
            )
        return template.render(normalize_messages(list(messages)), **template_options)

    def _prepare_chats(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: SamplingParams | Sequence[SamplingParams] | None,
        use: ToolUse,
        form: StructuredSpec | None,
        template_options: Mapping[str, Any],
        terms: dict[str, Any],
    ) -> list[tuple[PreparedRequest, str]]:
        """Each conversation ready for the engine, with the text of its prompt."""
        assets = self._assets
        check_tools(assets, use)
        if use.shown:
            template_options = {**template_options, "tools": use.shown}
        texts = [self.render_chat(conversation, **template_options) for conversation in conversations]
        continues = bool(template_options.get("continue_final_message"))
        enforced = constrains_output(self.info.decisions)
        readings: list[Reading | None] = []
        wanted: list[SamplingParams] = []
        for text, messages, params in zip(texts, conversations, self._each(sampling, len(texts)), strict=True):
            if form is not None and params.structured is not None:
                raise InvalidRequestError(
                    "response_format and structured of the sampling parameters exclude each other: give one of them.",
                    param="response_format",
                )
            params = params if form is None else dataclasses.replace(params, structured=form)
            reading = plan_reading(assets, text, use, messages, continues=continues)
            wanted.append(constrain_answer(assets, params, use, reading, enforced=enforced))
            readings.append(reading)
        prepared = self._prepare(texts, wanted, terms, add_special_tokens=False)
        return [
            (dataclasses.replace(job, reading=reading), text)
            for job, reading, text in zip(prepared, readings, texts, strict=True)
        ]

    def _terms(self, priority: int, cache_salt: str, timeout: float | None) -> dict[str, Any]:
        """What concerns the request but not its sampling, as ``prepare_request`` takes it. Starts the clock."""
        if type(priority) is not int or not -(2**31) <= priority < 2**31:
            raise InvalidRequestError(f"priority must be an integer of 32 bits, got {priority!r}.", param="priority")
        if priority and self.info.settings.get("scheduling_policy") == "fcfs":
            warn_once(log, "priority is ignored: the scheduling policy is fcfs; scheduling_policy='priority' obeys it")
        if not isinstance(cache_salt, str):
            raise InvalidRequestError(f"cache_salt must be a text, got {cache_salt!r}.", param="cache_salt")
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0
        ):
            raise InvalidRequestError(f"timeout must be a number of seconds above 0, got {timeout!r}.", param="timeout")
        now = time.monotonic()
        deadline = None if timeout is None else now + float(min(timeout, _LONGEST_TIMEOUT))
        return {"priority": priority, "cache_salt": cache_salt, "arrival_time": now, "deadline": deadline}

    def _prepare(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None,
        terms: dict[str, Any],
        *,
        add_special_tokens: bool,
    ) -> list[PreparedRequest]:
        return [
            prepare_request(
                self._assets,
                prompt,
                params,
                new_request_id=self._client.new_request_id,
                max_model_len=self.info.max_model_len,
                add_special_tokens=add_special_tokens,
                vocab_size=self.info.model.vocab_size,
                **terms,
            )
            for prompt, params in zip(prompts, self._each(sampling, len(prompts)), strict=True)
        ]

    def _each(
        self, sampling: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
    ) -> Sequence[SamplingParams]:
        """Sampling parameters of every prompt."""
        if sampling is None or isinstance(sampling, SamplingParams):
            return [sampling or self.default_sampling()] * num_prompts
        if len(sampling) != num_prompts:
            raise InvalidRequestError(
                f"{num_prompts} prompts came with {len(sampling)} sampling_params; give one, or one per prompt.",
                param="sampling_params",
            )
        return sampling

    def _run(
        self, prepared: Sequence[PreparedRequest], prompts: Sequence[Prompt], progress: bool
    ) -> list[RequestOutput]:
        folds: dict[int, TextFold] = {}
        terminals: dict[int, Terminal] = {}
        with _bar(len(prepared) if progress else 0) as advance:
            remaining = {child.request_id: job for job in prepared for child in job.children}
            to_come = {id(job): len(job.children) for job in prepared}
            for request_id, delta, terminal in self._events(prepared):
                folds.setdefault(request_id, TextFold()).add(delta)
                if delta.failure is not None:
                    raise _failure_of(delta.failure) from self._client.death
                if terminal is not None:
                    terminals[request_id] = terminal
                    job = remaining.pop(request_id)
                    to_come[id(job)] -= 1
                    if not to_come[id(job)]:
                        advance()
        return [
            _answer(job, prompt, [folds[c.request_id] for c in job.children], terminals[job.children[0].request_id])
            for job, prompt in zip(prepared, prompts, strict=True)
        ]

    def _stream(self, prepared: PreparedRequest) -> Iterator[TextDelta]:
        if len(prepared.children) != 1:
            raise InvalidRequestError("stream yields one choice; n must be 1.", param="n")
        return self._deltas(prepared)

    def _deltas(self, prepared: PreparedRequest) -> Iterator[TextDelta]:
        for _, delta, _ in self._events([prepared]):
            if delta.failure is not None:
                raise _failure_of(delta.failure) from self._client.death
            if not delta.is_empty:
                yield _as_said(delta)

    def _events(self, prepared: Sequence[PreparedRequest]) -> Iterator[tuple[int, TextDelta, Terminal | None]]:
        """Submit everything, then yield each request's deltas until all have had their terminal.

        Whatever ends this generator early (an error, Ctrl-C, a consumer that leaves) aborts what is still open.
        """
        news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        streams: dict[int, TextStream | AnswerStream] = {}
        try:
            for job in prepared:
                for index, child in enumerate(job.children):
                    streams[child.request_id] = job.make_stream(index)
                    self._client.submit(child, _sink(child.request_id, news))
            while streams:
                request_id, updates, terminal = news.get()
                stream = streams[request_id]
                for update in updates:
                    delta = stream.on_update(update)
                    if delta.abort:
                        self._client.abort([request_id])
                    yield request_id, delta, None
                if terminal is not None:
                    del streams[request_id]
                    yield request_id, stream.on_terminal(terminal), terminal
        finally:
            if streams:
                self._client.abort(list(streams))


def _sink(request_id: int, news: queue.SimpleQueue[_News]) -> Callable[[Sequence[TokenUpdate], Terminal | None], None]:
    return lambda updates, terminal: news.put((request_id, updates, terminal))


def _as_said(delta: TextDelta) -> TextDelta:
    """With the text that is for the user, where somebody reads what the model writes."""
    if delta.events is None:
        return delta
    return dataclasses.replace(delta, text="".join(e.text for e in delta.events if isinstance(e, ContentText)))


def _output(index: int, fold: TextFold, job: PreparedRequest) -> CompletionOutput:
    said = AnswerFold()
    events = fold.events
    said.add(events or ())
    return CompletionOutput(
        index=index,
        text=fold.text if events is None else said.content,
        reasoning=said.reasoning,
        tool_calls=tuple(FunctionCall(id=call.id, name=call.name, arguments=call.arguments) for call in said.calls),
        token_ids=tuple(fold.token_ids),
        finish_reason=fold.finish_reason or "",
        stop_reason=fold.stop_reason,
        logprobs=None if job.sampling.logprobs is None else tuple(fold.scores),
    )


def _answer(job: PreparedRequest, prompt: Prompt, folds: Sequence[TextFold], first: Terminal) -> RequestOutput:
    return RequestOutput(
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=job.prompt_token_ids,
        outputs=tuple(_output(index, fold, job) for index, fold in enumerate(folds)),
        prompt_logprobs=None if job.sampling.prompt_logprobs is None else tuple(folds[0].prompt_scores),
        num_cached_tokens=first.num_cached_tokens,
    )


def _failure_of(terminal: Terminal) -> Exception:
    if terminal.failure is FailureKind.ENGINE_DEAD:
        return EngineDeadError(terminal.message)
    if terminal.failure is FailureKind.CONSTRAINT:
        return InvalidRequestError(terminal.message, param="structured")
    kind = (terminal.failure or FailureKind.INTERNAL).value
    return RequestFailedError(terminal.message or "The request failed.", kind=kind)


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    items: list[Any] = list(prompts)
    if items and hasattr(items[0], "__index__"):  # one prompt of token ids
        items = [items]
    return [item if isinstance(item, str) else [operator.index(token_id) for token_id in item] for item in items]


def _is_conversation(messages: Sequence[Any]) -> bool:
    return bool(messages) and isinstance(messages[0], dict)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar of finished prompts on stderr; nothing when ``total`` is 0."""
    if not total:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("prompts", total=total)
        yield lambda: bar.advance(task)
