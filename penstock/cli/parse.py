"""Verbs and groups of verbs on argparse: a function's annotated parameters are its command line.

Start-up counts here, so nothing is read or built for a verb before it is asked for. It knows no verb.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import os
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NoReturn

from penstock.cli.sentences import sentences
from penstock.config import flags
from penstock.errors import ConfigError

Run = Callable[[str, Sequence[str]], None]
"""A command: its name as the user wrote it ("penstock bench serve") and the arguments behind it."""
FlagSet = Callable[[], Sequence[flags.Flag]]

_MAX_WIDTH = 110
_MAX_HELP_POSITION = 34


class Option:
    """How a parameter is given by name. ``off`` is the other name of a switch, which is on by ``name``."""

    def __init__(self, name: str, *, help: str, metavar: str = "", off: str = "", minimum: float | None = None) -> None:
        self.name, self.help, self.metavar, self.off, self.minimum = name, help, metavar, off, minimum


class Argument:
    """How a parameter is given by its place. With a default in the signature it may be left out."""

    def __init__(self, metavar: str, help: str) -> None:
        self.metavar, self.help = metavar, help


ModelArgument = Annotated[str, Argument("MODEL", "Bundle name, local directory, local .gguf file, or hub id.")]


def verb(*flag_sets: FlagSet) -> Callable[[Callable[..., None]], Run]:
    """Make a command of a function: its own parameters first, then one option per flag of ``flag_sets`` that is not
    called like one of them.

    Parameters are ``Annotated`` with an ``Option`` or an ``Argument``; the function takes the flags as ``**options``,
    and those that were not given are None (or empty). The docstring is the help. Errors become one sentence on stderr
    and an exit code.
    """

    def decorate(function: Callable[..., None]) -> Run:
        def run(prog: str, arguments: Sequence[str]) -> None:
            with sentences():
                function(**_parse(function, flag_sets, prog, arguments))

        run.__doc__ = function.__doc__
        run.__name__ = function.__name__
        return run

    return decorate


def group(text: str, verbs: Mapping[str, tuple[str, str]], find: Callable[[str], Run]) -> Run:
    """A command whose first argument names another one. ``verbs`` has where each is and what it does in a few words,
    ``find`` turns the former into the command."""

    def run(prog: str, arguments: Sequence[str]) -> None:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_group_help(prog, text, verbs), file=sys.stdout if arguments else sys.stderr)
            raise SystemExit(0 if arguments else 2)
        name, *rest = arguments
        with sentences():
            if name not in verbs:
                kind = "option" if name.startswith("-") else "command"
                raise ConfigError(f"Run {prog} --help: there is no {kind} {name}{_meant(name, verbs)}")
        find(verbs[name][0])(f"{prog} {name}", rest)

    return run


def load(place: str) -> Run:
    """The command at ``module:name``."""
    module, _, name = place.partition(":")
    command: Run = getattr(importlib.import_module(module), name)
    return command


class Parser(argparse.ArgumentParser):
    """An argparse parser whose complaints are ConfigErrors and whose options cannot be shortened."""

    def __init__(self, prog: str, usage: str, text: str) -> None:
        super().__init__(
            prog=prog,
            usage=f"{prog} {usage}",
            description=textwrap.indent(inspect.cleandoc(text), "  ").replace("%", "%%"),
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help="Show this message and exit.")

    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ")
        raise ConfigError(f"Run {self.prog} --help: {text}.")

    def read(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The values by parameter name. Raises ConfigError."""
        values, unknown = self.parse_known_args(list(arguments))
        if unknown:
            name = unknown[0].partition("=")[0]
            if name.startswith("-"):
                raise ConfigError(f"Run {self.prog} --help: there is no option {name}{_meant(name, self.options())}")
            raise ConfigError(f"Run {self.prog} --help: {name!r} is one argument too many.")
        return vars(values)

    def options(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings]


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        width = min(_MAX_WIDTH, shutil.get_terminal_size().columns - 2)
        super().__init__(prog, max_help_position=_MAX_HELP_POSITION, width=width)


def _parse(
    function: Callable[..., None], flag_sets: Iterable[FlagSet], prog: str, arguments: Sequence[str]
) -> dict[str, Any]:
    signature = inspect.signature(function, eval_str=True)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    places = [each.metavar for each in map(_declaration, own) if isinstance(each, Argument)]
    parser = Parser(prog, " ".join(("[OPTIONS]", *places)), inspect.getdoc(function) or "")
    minimums: dict[str, tuple[str, float]] = {}
    for parameter in own:
        declared = _declaration(parameter)
        _add(parser, parameter, declared)
        if isinstance(declared, Option) and declared.minimum is not None:
            minimums[parameter.name] = (declared.name, declared.minimum)
    named = {"model", *(each.name for each in own)}
    for each in (flag for flag_set in flag_sets for flag in flag_set() if flag.name not in named):
        _add_flag(parser, each)
    values = parser.read(arguments)
    for name, (option, minimum) in minimums.items():
        if values[name] is not None and values[name] < minimum:
            raise ConfigError(f"{option} is {values[name]}, but it must be at least {minimum:g}.")
    return values


def _declaration(parameter: inspect.Parameter) -> Option | Argument:
    return next(each for each in parameter.annotation.__metadata__ if isinstance(each, Option | Argument))


def _add(parser: Parser, parameter: inspect.Parameter, declared: Option | Argument) -> None:
    kind, repeats = _kind(typing.get_args(parameter.annotation)[0])
    default = parameter.default
    text = declared.help.replace("%", "%%")
    if isinstance(declared, Argument):
        more: dict[str, Any] = {} if default is inspect.Parameter.empty else {"nargs": "?", "default": default}
        parser.add_argument(parameter.name, metavar=declared.metavar, help=text, type=kind, **more)
        return
    shown = "" if default in (None, "", False) or "Default" in text or kind is bool else f" Default: {default}."
    if kind is bool:
        parser.add_argument(declared.name, dest=parameter.name, action="store_true", default=default, help=text)
        if declared.off:
            other = f"The opposite of {declared.name}."
            parser.add_argument(declared.off, dest=parameter.name, action="store_false", default=default, help=other)
        return
    parser.add_argument(
        declared.name,
        dest=parameter.name,
        type=kind,
        metavar=declared.metavar or {int: "N", float: "X"}.get(kind, "TEXT"),
        default=default,
        action="append" if repeats else "store",
        help=text + shown.replace("%", "%%"),
    )


def _kind(annotation: Any) -> tuple[type, bool]:
    """The type of one value, and whether there may be several."""
    if isinstance(annotation, types.UnionType):
        annotation = next(each for each in typing.get_args(annotation) if each is not type(None))
    if typing.get_origin(annotation) is list:
        return typing.get_args(annotation)[0], True
    return annotation, False


def _add_flag(parser: Parser, flag: flags.Flag) -> None:
    text = flag.text
    if flag.kind == "bool":
        text += f" Default: {'on' if flag.default else 'off'}."
    elif flag.default not in (None, ()) and "Default" not in text:
        text += f" Default: {flag.default}."
    if flag.env:
        text += f" Default: ${flag.env}."
    text = text.replace("%", "%%")
    if flag.kind == "bool":
        parser.add_argument(flag.option, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    action = "append" if flag.kind == "list" else "store"
    parser.add_argument(flag.option, dest=flag.name, action=action, metavar=flag.metavar, help=text)


def _group_help(prog: str, text: str, verbs: Mapping[str, tuple[str, str]]) -> str:
    width = max(map(len, verbs)) + 2
    lines = [f"  {name:{width}}{words}" for name, (_, words) in verbs.items()]
    return "\n".join((f"usage: {prog} COMMAND [OPTIONS] ...", "", text, "", "commands:", *lines))


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; {close[0]} was meant?" if close else "."


def ends_quietly(command: Callable[[], None]) -> NoReturn:
    """Run the command line and end the process as shells expect: 130 after Ctrl-C; a reader that leaves is no error
    to speak of."""
    try:
        command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # what is still buffered goes there when Python ends
        raise SystemExit(1) from None
    raise SystemExit(0)
