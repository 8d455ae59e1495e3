"""Reading an answer that is content with reasoning and calls in tags: what nearly all dialects are.

The one place where a broken call is handled. A dialect with an own ``read`` uses ``read_guarded`` for its calls.
"""

from __future__ import annotations

from penstock.frontend.dialects.contract import Dialect, ParseCalls, Reading, Reasoning
from penstock.frontend.dialects.cursor import Cursor, EndOfText, Malformed, Steps
from penstock.frontend.dialects.writer import Writer


def read_tagged(dialect: Dialect, text: Cursor, out: Writer, reading: Reading) -> Steps[None]:
    """The whole answer. Raises EndOfText at its end."""
    reasoning = dialect.reasoning if reading.reads_reasoning else None
    triggers = dialect.triggers if reading.tools else ()
    at_start = dialect.start_triggers if reading.tools else ()
    opening = (reasoning.begin,) if reasoning is not None else ()
    marker: str | None = opening[0] if opening and reading.in_reasoning else None
    unclosed: tuple[str, ...] = ()  # the tag that ends reasoning, after a call has done so in its place
    first = (reasoning.end,) if reasoning is not None and reasoning.may_be_closed else ()
    fresh = True  # nothing but white space since the beginning, reasoning or a complete call
    while True:
        if marker is None and fresh:
            yield from text.stream_space(out.content)
            if expected := (*triggers, *at_start, *opening, *unclosed, *first):
                marker = yield from text.accept(*expected)
            first = ()
        if marker is None:
            if not triggers:
                yield from text.stream_rest(out.content)
                raise EndOfText
            fresh = False
            marker = yield from text.stream_until(*triggers, *unclosed, sink=out.content)
        if reasoning is not None and marker == reasoning.begin:
            out.begin_reasoning()
            yield from text.accept(reasoning.begin)  # models repeat the tag that the prompt has opened
            closed = yield from _read_reasoning(dialect, reasoning, triggers, text, out)
            unclosed = () if closed else (reasoning.end,)
            fresh = True
        elif reasoning is not None and marker == reasoning.end:
            out.end_reasoning()
            unclosed = ()
            fresh = True
        else:
            assert dialect.parse is not None
            fresh = yield from read_guarded(dialect.parse, dialect.resync, text, out, marker)
        marker = None


def _read_reasoning(
    dialect: Dialect, reasoning: Reasoning, triggers: tuple[str, ...], text: Cursor, out: Writer
) -> Steps[bool]:
    """Reasoning to its end tag; False when calls have ended it, which are then read.

    A trigger alone is reasoning still, for models think about tags, too. Only a call whose name is certain ends it.
    """
    closing = (reasoning.end, *triggers) if reasoning.ends_at_call else (reasoning.end,)
    while True:
        ended_by = yield from text.stream_until(*closing, sink=out.reasoning)
        if ended_by == reasoning.end:
            out.end_reasoning()
            return True
        assert dialect.parse is not None
        num_begun = out.num_begun
        try:
            yield from dialect.parse(text, out, ended_by)
        except (Malformed, EndOfText) as error:
            at_end = isinstance(error, EndOfText)
            if out.num_begun > num_begun:
                if at_end:
                    raise
                yield from _give_back(dialect.resync, text, out)
                return False
            taken = text.take_back(unread=at_end)
            at = taken.find(reasoning.end)
            out.reasoning(taken if at < 0 else taken[:at])
            if at >= 0:
                text.put_back(taken[at:])
            elif at_end:
                raise
        else:
            out.break_off()
            out.end_reasoning()
            return False


def read_guarded(parse: ParseCalls, resync: tuple[str, ...], text: Cursor, out: Writer, trigger: str) -> Steps[bool]:
    """Run ``parse``; True when it succeeded. When not, what it had read comes back as content."""
    try:
        yield from parse(text, out, trigger)
    except Malformed:
        yield from _give_back(resync, text, out)
        return False
    except EndOfText:
        out.break_off()
        if rest := text.take_back(unread=True):
            out.content(rest)
        raise
    out.break_off()
    text.commit()
    return True


def _give_back(resync: tuple[str, ...], text: Cursor, out: Writer) -> Steps[None]:
    """What a broken call had read is content. Of a call whose name was certain, so is the rest, up to the next text of
    ``resync`` and with it. A mark without a call ends nothing: the next end mark may be that of a real call."""
    was_open = out.break_off()
    out.content(text.take_back())
    if was_open and resync:
        out.content((yield from text.stream_until(*resync, sink=out.content)))
