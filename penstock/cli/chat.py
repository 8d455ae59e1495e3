"""``penstock chat``: a conversation in the terminal. Answers stream; Ctrl-C first ends an answer, then the chat."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Annotated, Any, cast

from penstock.cli.parse import ModelArgument, Option, verb
from penstock.cli.sampling import (
    JsonSchema,
    MaxTokens,
    Mock,
    Temperature,
    TopK,
    TopP,
    constraint,
    in_options,
    load_llm,
    naming_options,
    request_seed,
    show_reasoning,
)
from penstock.config import env
from penstock.config.flags import engine_flags
from penstock.errors import InvalidRequestError

if TYPE_CHECKING:
    from penstock.engine.llm import LLM
    from penstock.frontend.text.stream import TextDelta
    from penstock.types.request import SamplingParams

COMMANDS = """\
/help            this list
/reset           forget the conversation
/system TEXT     forget the conversation and begin it with this system prompt
/exit            leave (Ctrl-D works too)
Ctrl-C           end an answer that is being written; at the prompt: leave
"""


@verb(engine_flags)
def chat(
    model: ModelArgument,
    system: Annotated[
        str | None,
        Option("--system", metavar="TEXT", help="System prompt that the conversation begins with."),
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    json_schema: JsonSchema = None,
    mock: Mock = False,
    **options: Any,
) -> None:
    """Talk with MODEL in the terminal. It remembers the conversation; type /help for what else there is.

    penstock chat smollm2
    penstock chat smollm2 --system "Answer in one sentence." --temperature 0
    penstock chat ./my-model --max-model-len 2048
    """
    from penstock.observability.log import configure_logging

    configure_logging("warning" if not env.is_set("PENSTOCK_LOG_LEVEL") else env.log_level())
    with load_llm(model, options, mock=mock) as llm, naming_options():
        sampling = llm.default_sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=request_seed(options),
            structured=constraint(json_schema),
        )
        conversation = Conversation(llm, sampling, system)
        conversation.check_template()
        if sys.stdin.isatty():
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  editing and history at the prompt
            print(f"Talking with {llm.info.model.name}. /help lists commands, /exit leaves.", file=sys.stderr)
        conversation.run()


class Conversation:
    """The messages so far, and the loop that reads, answers and remembers."""

    def __init__(self, llm: LLM, sampling: SamplingParams, system: str | None) -> None:
        self._llm = llm
        self._sampling = sampling
        self._system = system
        self._messages: list[dict[str, Any]] = []
        self.reset()

    def check_template(self) -> None:
        """Raises ConfigError when the model has no chat template, before anybody has typed anything."""
        self._llm.render_chat([{"role": "user", "content": ""}])

    def reset(self) -> None:
        self._messages = [{"role": "system", "content": self._system}] if self._system else []

    def run(self) -> None:
        """Read lines until the end of input, /exit, or Ctrl-C at the prompt."""
        prompt = "> " if sys.stdin.isatty() else ""
        while True:
            try:
                line = input(prompt).strip()
            except (EOFError, KeyboardInterrupt):
                if prompt:
                    print()
                return
            if line.startswith("/"):
                if not self._obey(line):
                    return
            elif line:
                self._answer(line)

    def _obey(self, line: str) -> bool:
        """Carry out a command; False when it ends the chat."""
        command, _, rest = line.partition(" ")
        match command:
            case "/exit" | "/quit" | "/bye":
                return False
            case "/reset":
                self.reset()
                print("The conversation is forgotten.", file=sys.stderr)
            case "/system":
                self._system = rest.strip() or None
                self.reset()
                print("The conversation begins anew.", file=sys.stderr)
            case "/help":
                print(COMMANDS, end="", file=sys.stderr)
            case _:
                print(f"There is no command {command}; /help lists them.", file=sys.stderr)
        return True

    def _answer(self, line: str) -> None:
        """Stream one answer. An answer that was cut short is remembered as far as it came."""
        self._messages.append({"role": "user", "content": line})
        pieces: list[str] = []
        try:
            # Leaving the generator, by Ctrl-C too, aborts the request.
            deltas = cast("Generator[TextDelta, None, None]", self._llm.stream_chat(self._messages, self._sampling))
            with contextlib.suppress(KeyboardInterrupt), contextlib.closing(deltas):
                for delta in deltas:
                    show_reasoning(delta)
                    pieces.append(delta.text)
                    print(delta.text, end="", flush=True)
        except InvalidRequestError as error:
            self._messages.pop()
            print(f"{in_options(error)} /reset forgets the conversation.", file=sys.stderr)
            return
        print(flush=True)
        self._messages.append({"role": "assistant", "content": "".join(pieces)})
