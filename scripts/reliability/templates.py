"""Chat templates that take for ever, for all memory, or for Python's own insides; a checkpoint may bring any."""

from __future__ import annotations

import asyncio
from pathlib import Path

from reliability.bodies import is_instruction
from reliability.wire import Outcome, ask, post

_DOUBLING = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x "
HOSTILE: dict[str, str] = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over lists": "{% set l = range(99999)|list %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice":
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "a macro that calls itself for ever": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a recursive loop": "{% set l = [1, 2, 3] %}{% for a in l recursive %}{{ loop(l) }}{% endfor %}",
    "a text that doubles": _DOUBLING + "+ ns.x %}{% endfor %}",
    "a text that doubles by ~": _DOUBLING + "~ ns.x ~ ns.x ~ ns.x %}{% endfor %}",
    "a text that doubles by replace": _DOUBLING + ".replace('a', 'aa') %}{% endfor %}",
    "a text that doubles by join": _DOUBLING + "|join('aa') %}{% endfor %}",
    "a list that doubles":
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a text times a billion": "{{ 'a' * 1000000000000 }}",
    "a billion times a text": "{{ 1000000000000 * 'a' }}",
    "a number to the power of a million": "{{ 10 ** 99999999 }}",
    "a number that squares itself":
        "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a width of a billion": "{{ 'a'|center(1000000000) }}",
    "a width of a billion by a method": "{{ 'a'.ljust(1000000000) }}",
    "a width of a billion by %": "{{ '%1000000000d' % 1 }}",
    "a width of a billion by * and %": "{{ '%*d' % (1000000000, 1) }}",
    "a width of a billion by format": "{{ '{:1000000000}'.format(1) }}",
    "a width of a billion by a nested format": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "an indent of a billion": "{{ [1, [2]]|tojson(indent=1000000000) }}",
    "a million paragraphs": "{{ lipsum(n=1000000) }}",
    "slices of a billion": "{{ [1]|slice(1000000000)|list }}",
    "Python's classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "Python's globals": "{{ raise_exception.__globals__ }}",
    "Python's globals by attr": "{{ raise_exception|attr('__globals__') }}",
    "Python's globals by format": "{{ '{0.__globals__}'.format(raise_exception) }}",
    "Python's globals by format_map": "{{ '{x.__globals__}'.format_map({'x': raise_exception}) }}",
    "an import": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "an include": "{% include '/etc/passwd' %}",
    "messages that are changed": "{% set _ = messages.append(1) %}{{ messages.clear() }}",
    "a message that is changed": "{% set _ = messages[0].update({'role': 'x'}) %}",
}  # fmt: skip


def save_hostile(directory: Path) -> str:
    """A file for --chat-template that runs the hostile template that the first message names. Answers its path."""
    branches = "".join(
        f"{{% {'el' if position else ''}if name == {name!r} %}}{source}"
        for position, (name, source) in enumerate(HOSTILE.items())
    )
    path = directory / "hostile.jinja"
    path.write_text("{% set name = messages[0].content %}" + branches + "{% else %}{{ name }}{% endif %}")
    return str(path)


async def hostile_requests(port: int, names: tuple[str, ...] = tuple(HOSTILE)) -> Outcome:
    """Each name is a message for the template of ``save_hostile``: 400 with a sentence, or tokens of a short prompt."""
    outcome = Outcome()

    async def one(name: str) -> None:
        body = {"messages": [{"role": "user", "content": name}], "max_tokens": 1}
        answer = await ask(port, post("/v1/chat/completions", body), seconds=120)
        outcome.add(str(answer.status))
        outcome.expect(is_instruction(answer), f"{name}: {answer.status} {answer.body[:200]!r}")

    await asyncio.gather(*map(one, names))
    return outcome
