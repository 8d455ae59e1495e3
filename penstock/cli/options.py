"""Turns declared flags into command-line options, and errors into sentences and exit codes.

It knows typer and the flag declarations; it does not know any verb.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from penstock.config import env, flags
from penstock.config.sections import EngineConfig, MockConfig, ServerConfig
from penstock.errors import PenstockError, UserError

if TYPE_CHECKING:
    from penstock.loader.sources import ModelSource

EXIT_USER_ERROR = 2
EXIT_FAILURE = 1

Command = Callable[..., None]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Bundle name, local directory, local .gguf file, or hub id.")
]


def verb(*flag_sets: Sequence[flags.Flag]) -> Callable[[Command], Command]:
    """Make a command of a function: its own parameters first, then one option per flag of ``flag_sets`` that is not
    called like one of them.

    The function takes the flags as ``**options``; those that were not given are None (or empty). Its errors
    become one sentence on stderr and an exit code.
    """

    def decorate(function: Command) -> Command:
        signature = inspect.signature(function, eval_str=True)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        named = {"model", *(each.name for each in own)}
        generated = [_parameter(flag) for group in flag_sets for flag in group if flag.name not in named]
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *generated)]

        def command(**values: Any) -> None:
            with sentences():
                function(**values)

        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate


def engine_config(model: str, options: dict[str, Any]) -> EngineConfig:
    """The engine's sections from a verb's options; those of the server are left aside."""
    names = {flag.name for flag in flags.engine_flags()}
    return flags.engine_config_from("option", model=model, **{k: v for k, v in options.items() if k in names})


def server_config(options: dict[str, Any]) -> ServerConfig:
    names = {flag.name for flag in flags.server_flags()}
    return flags.server_config_from("option", **{k: v for k, v in options.items() if k in names})


def mock_config(options: dict[str, Any]) -> MockConfig:
    names = {flag.name for flag in flags.mock_flags()}
    return flags.mock_config_from("option", **{k: v for k, v in options.items() if k in names})


def fetch_model(model: str, revision: str | None) -> ModelSource:
    """Find or fetch a model, saying on stderr what is fetched; engines then find it in its cache, and say nothing."""
    from penstock.loader.sources import resolve_source

    return resolve_source(model, revision=revision, progress=lambda text: print(text, file=sys.stderr, flush=True))


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Errors that Penstock raises on purpose end the process with their sentence: 2 when the user can fix it, else 1.

    With PENSTOCK_DEBUG (or --debug) the stack trace comes as well.
    """
    try:
        for remark in env.check_environment():
            print(remark, file=sys.stderr)
        yield
    except PenstockError as error:
        if _debug():
            raise
        print(f"penstock: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILURE) from error


def _debug() -> bool:
    try:
        return env.debug()
    except UserError:  # a malformed PENSTOCK_DEBUG is the very error to report
        return False


def _parameter(flag: flags.Flag) -> inspect.Parameter:
    text = flag.text
    if flag.default not in (None, ()) and flag.kind != "bool" and "Default" not in text:
        text = f"{text} Default: {flag.default}."
    if flag.env:
        text = f"{text} Default: ${flag.env}."
    hint: Any
    if flag.kind == "bool":
        names = f"{flag.option}/--no-{flag.option[2:]}"
        text = f"{text} Default: {'on' if flag.default else 'off'}."
        hint = Annotated[Optional[bool], typer.Option(names, help=text)]  # noqa: UP045  typer reads it at run time
    else:
        kind = Optional[list[str]] if flag.kind == "list" else Optional[str]  # noqa: UP045
        hint = Annotated[kind, typer.Option(flag.option, metavar=flag.metavar, help=text)]
    return inspect.Parameter(flag.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
