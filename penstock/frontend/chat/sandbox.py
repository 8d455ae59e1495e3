"""The Jinja environment that chat templates expect: the filters and tags of the hub, inside a sandbox and its limits.

Does not know conversations. Jinja is imported on first use.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from penstock.errors import UnsupportedModelError
from penstock.frontend.chat import limits

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment


MAX_SOURCE_CHARACTERS = 1 << 20

_MAKING_OPERATORS = frozenset({"*", "**", "%", "+"})
_COMPILE_ERRORS = (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError)


def compile_template(source: str, name: str) -> Template:
    """Raises UnsupportedModelError with the line when ``source`` is not valid Jinja."""
    from jinja2 import TemplateSyntaxError

    instead = "Use --chat-template to name a file with another one."
    if len(source) > MAX_SOURCE_CHARACTERS:
        raise UnsupportedModelError(
            f"The chat template {name!r} is longer than {MAX_SOURCE_CHARACTERS} characters.\n\n{instead}"
        )
    try:
        template = _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise UnsupportedModelError(
            f"The chat template {name!r} is not valid: line {error.lineno}: {error.message}.\n\n{instead}"
        ) from error
    except _COMPILE_ERRORS as error:
        raise UnsupportedModelError(
            f"The chat template {name!r} cannot be compiled: {type(error).__name__}: {error}.\n\n{instead}"
        ) from error
    # Each rendering copies them, and to copy the environment's chain of mappings takes half of a short rendering.
    template.globals = dict(template.globals)
    return template


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import TemplateError, nodes, pass_context
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """``{% generation %}`` marks what the model wrote, for training; here it only prints its body."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class BoundedEnvironment(ImmutableSandboxedEnvironment):
        """Takes every step of a template past ``limits``."""

        intercepted_binops = _MAKING_OPERATORS

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree = super()._parse(source, name, filename)
            for loop in tree.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, "paced", [], [], None, None, lineno=loop.lineno)
            for joined in tree.find_all(nodes.Concat):
                _check_pairs(joined)
            tree.set_environment(self)
            return tree

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            limits.check_operator(operator, left, right)
            return limits.checked(super().call_binop(context, operator, left, right))

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in Jinja
            limits.tick()
            value = getattr(__obj, "__self__", None)
            if isinstance(value, str):
                limits.check_call(__obj.__name__, value, args, kwargs)
            return limits.checked(super().call(__context, __obj, *args, **kwargs))

        def wrap_str_format(self, value: Any) -> Any:
            wrapped = super().wrap_str_format(value)
            if wrapped is not None:
                limits.check_format(str(value.__self__))
            return wrapped

    def _check_pairs(joined: nodes.Concat) -> None:
        """``a ~ b ~ c`` looks at what it has after every text."""
        first, *rest = joined.nodes
        for one in rest[:-1]:
            pair = nodes.Concat([first, one], lineno=joined.lineno)
            first = nodes.Filter(pair, "bounded", [], [], None, None, lineno=joined.lineno)
        joined.nodes = [first, *rest[-1:]]

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    environment.filters["tojson"] = _tojson
    for name in limits.REMOVED_FILTERS:
        del environment.filters[name]
    for name, function in list(environment.filters.items()):
        environment.filters[name] = limits.checked_filter(name, function)
    environment.filters["paced"] = pass_context(lambda _, items: limits.paced(items))
    environment.filters["bounded"] = pass_context(lambda _, text: limits.checked(text))
    for name in limits.REMOVED_GLOBALS:
        del environment.globals[name]
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes for HTML, which models have not seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
