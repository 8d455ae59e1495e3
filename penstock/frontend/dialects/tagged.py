"""Reading an answer that is content with reasoning and calls in tags: what nearly all dialects are.

The one place where a broken call is handled. A dialect with an own ``read`` uses ``read_guarded`` for its calls.
"""

from __future__ import annotations

from penstock.frontend.dialects.contract import Dialect, ParseCalls, Reading
from penstock.frontend.dialects.cursor import Cursor, EndOfText, Malformed, Steps
from penstock.frontend.dialects.writer import Writer


def read_tagged(dialect: Dialect, text: Cursor, out: Writer, reading: Reading) -> Steps[None]:
    """The whole answer. Raises EndOfText at its end."""
    reasoning = dialect.reasoning if reading.reads_reasoning else None
    triggers = dialect.triggers if reading.tools else ()
    at_start = dialect.start_triggers if reading.tools else ()
    opening = (reasoning.begin,) if reasoning is not None else ()
    closing: tuple[str, ...] = ()
    if reasoning is not None:
        closing = (reasoning.end, *triggers) if reasoning.ends_at_call else (reasoning.end,)
    marker: str | None = opening[0] if opening and reading.in_reasoning else None
    fresh = True  # nothing but white space since the beginning, reasoning or a complete call
    while True:
        if marker is None and fresh:
            yield from text.stream_space(out.content)
            if expected := (*triggers, *at_start, *opening):
                marker = yield from text.accept(*expected)
        if marker is None:
            if not triggers:
                yield from text.stream_rest(out.content)
                raise EndOfText
            fresh = False
            marker = yield from text.stream_until(*triggers, sink=out.content)
        if reasoning is not None and marker == reasoning.begin:
            out.begin_reasoning()
            yield from text.accept(reasoning.begin)  # models repeat the tag that the prompt has opened
            ended_by = yield from text.stream_until(*closing, sink=out.reasoning)
            marker = ended_by if ended_by != reasoning.end else None
            out.end_reasoning(commit=marker is None)
            fresh = True
            continue
        assert dialect.parse is not None
        fresh = yield from read_guarded(dialect.parse, dialect.resync, text, out, marker)
        marker = None


def read_guarded(parse: ParseCalls, resync: tuple[str, ...], text: Cursor, out: Writer, trigger: str) -> Steps[bool]:
    """Run ``parse``; True when it succeeded. When not, what it had read comes back as content.

    After a failure everything up to the next text of ``resync`` is content, too.
    """
    try:
        yield from parse(text, out, trigger)
    except Malformed:
        out.break_off()
        out.content(text.take_back())
        if resync:
            out.content((yield from text.stream_until(*resync, sink=out.content)))
        return False
    except EndOfText:
        out.break_off()
        if rest := text.take_back(unread=True):
            out.content(rest)
        raise
    out.break_off()
    text.commit()
    return True
