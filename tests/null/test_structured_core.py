"""Constrained requests in the core: waiting, late masks, ends, preemption, drafts. Mock device, real grammars."""

from __future__ import annotations

import itertools
import json
import re
import time

import pytest
from structured_fixtures import END, GatedBackend, byte_vocabulary, make_constraints

from penstock.core.engine import CoreLimits
from penstock.mock.clock import VirtualClock
from penstock.mock.executor import MockExecutor, mix, mock_token
from penstock.mock.performance import FixedDelay
from penstock.mock.rig import RecordingChannel, full_group, make_core, make_request
from penstock.structured import constraints
from penstock.structured.backends.llguidance import Llguidance
from penstock.types.output import FailureKind, FinishReason
from penstock.types.structured import StructuredSpec

PROMPT = tuple(range(60, 70))
DATE = StructuredSpec.regex("[0-9]{4}-[0-9]{2}")
YES = StructuredSpec.choice(["yes"])


class Bench:
    """A core with constraints on a verifying mock. Turns are counted until there is no work."""

    def __init__(self, *, depth=2, backend=None, num_blocks=100, accept=None, drafter=None, **limits):
        self.clock = VirtualClock()
        self.channel = RecordingChannel()
        self.constraints = make_constraints(backend)
        self.executor = MockExecutor(
            (full_group(tokens_per_block=4),),
            (num_blocks,),
            depth=depth,
            seed=3,
            performance=FixedDelay(1.0),
            clock=self.clock,
            num_seats=8,
            verify=True,
            **({"accept": accept} if accept else {}),
        )
        fields = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 200, "check_integrity": True}
        self.core = make_core(
            self.executor,
            CoreLimits(**fields | {"num_draft_tokens": 3 if drafter else 0} | limits),
            self.channel,
            clock=self.clock,
            drafter=drafter,
            constraints=self.constraints,
        )

    def add(self, request_id, spec, *, stop=(END,), **fields):
        self.core.add(make_request(request_id, PROMPT, structured=spec, stop_token_ids=stop, **fields))

    def finish(self):
        """Compiling takes real time: an idle turn is no sign that nothing will come."""
        for _ in range(2_000_000):
            if not self.core.has_work:
                self.core.check_integrity()
                return
            self.core.step(block=True)
        raise AssertionError(f"the core still has work: {self.core.stats()}")

    def text(self, request_id):
        return bytes(token for token in self.channel.tokens(request_id) if token < 256).decode()


@pytest.fixture
def bench():
    made = []

    def make(**options):
        made.append(Bench(**options))
        return made[-1]

    yield make
    for one in made:
        one.constraints.close()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_answers_have_the_form_and_end_with_an_end_token(bench, depth):
    one = bench(depth=depth)
    for request_id in range(6):
        one.add(request_id, DATE)
        one.add(10 + request_id, None)
    one.finish()
    for request_id in range(6):
        assert re.fullmatch("[0-9]{4}-[0-9]{2}", one.text(request_id))
        terminal = one.channel.terminal(request_id)
        assert (terminal.reason, terminal.stop_token_id, terminal.num_output_tokens) == (FinishReason.STOP, END, 8)
        free = one.channel.tokens(10 + request_id)
        assert free == tuple(mock_token(3, 10 + request_id, len(PROMPT) + i) for i in range(16))
    assert one.core.stats().constraints.num_masks >= 6 * 8


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    ("fields", "reason", "tokens"),
    [
        ({}, FinishReason.STOP, 4),
        ({"ignore_eos": True, "stop": ()}, FinishReason.STOP, 3),
        ({"stop": ()}, FinishReason.STOP, 3),
        ({"min_tokens": 10}, FinishReason.STOP, 3),
        ({"max_tokens": 3}, FinishReason.STOP, 3),  # complete, although nothing more was allowed
        ({"max_tokens": 2}, FinishReason.LENGTH, 2),
        ({"stop": (ord("e"), END)}, FinishReason.STOP, 2),  # a stop token within the answer ends it there
    ],
)
def test_how_a_finished_grammar_ends_a_request(bench, depth, fields, reason, tokens):
    one = bench(depth=depth)
    one.add(1, YES, **fields)
    one.finish()
    terminal = one.channel.terminal(1)
    assert (terminal.reason, terminal.failure, terminal.num_output_tokens) == (reason, None, tokens)
    assert one.text(1) == "yes"[:tokens]


def test_an_end_token_is_not_offered_to_those_who_ignore_it(bench):
    one = bench()
    one.add(1, StructuredSpec.regex("[0-9]*"), ignore_eos=True, stop=(), max_tokens=50)
    one.finish()
    assert re.fullmatch("[0-9]{50}", one.text(1))


def test_waiting_for_a_grammar_holds_nobody_up(bench):
    backend = GatedBackend()
    one = bench(backend=backend, max_num_seqs=1)
    one.add(1, DATE)
    one.add(2, None)
    for _ in range(40):
        one.core.step(block=True)
    assert one.channel.terminal(2).reason is FinishReason.LENGTH
    assert 1 not in one.channel.terminals
    assert one.core.stats().num_compiling == 1
    one.core.check_integrity()
    backend.gate.set()
    one.finish()
    assert one.channel.terminal(1).reason is FinishReason.STOP


def test_a_compiled_request_takes_the_place_that_its_arrival_gave_it(bench):
    backend = GatedBackend()
    one = bench(backend=backend, max_num_seqs=1)
    one.add(1, DATE)
    for request_id in (2, 3, 4):
        one.add(request_id, None)
    one.core.step(block=True)
    (request,) = one.core._compiling.values()
    backend.gate.set()
    while not request.constraint.done:
        time.sleep(0.001)
    one.finish()
    ended = {request_id: one.channel.terminal(request_id).ended for request_id in (1, 2, 3, 4)}
    assert ended[1] < ended[4]


@pytest.mark.parametrize(("text", "told"), [("broken", "It is broken."), ("crash", "RuntimeError: out of luck")])
def test_what_does_not_compile_ends_with_one_terminal(bench, text, told):
    backend = GatedBackend()
    backend.gate.set()
    one = bench(backend=backend)
    for request_id in (1, 2):
        one.add(request_id, StructuredSpec.lark(text))
    one.add(3, DATE)
    one.finish()
    for request_id in (1, 2):
        terminal = one.channel.terminal(request_id)
        assert (terminal.reason, terminal.failure) == (FinishReason.ERROR, FailureKind.CONSTRAINT)
        assert told in terminal.message
        assert one.channel.tokens(request_id) == ()
    assert one.channel.terminal(3).reason is FinishReason.STOP
    assert sum(spec.text == text for spec in backend.compiled) == 1  # refusals are kept too


def test_requests_that_wait_for_a_grammar_can_be_aborted_and_expire(bench):
    backend = GatedBackend()
    one = bench(backend=backend)
    one.add(1, DATE)
    one.add(2, DATE, deadline=5.0)
    one.core.abort([1])
    assert one.channel.terminal(1).reason is FinishReason.ABORT
    one.clock.sleep_until(6.0)
    one.core.step(block=True)
    assert one.channel.terminal(2).failure is FailureKind.DEADLINE
    assert not one.core.has_work
    backend.gate.set()
    one.add(3, DATE)
    one.finish()
    assert one.channel.terminal(3).reason is FinishReason.STOP


def test_aborted_in_the_midst_of_an_answer(bench):
    one = bench(depth=3)
    one.add(1, StructuredSpec.regex("[0-9]{100}"), max_tokens=None)
    one.add(2, StructuredSpec.regex("[0-9]{20}"), max_tokens=None)
    while len(one.channel.tokens(1)) < 5:
        one.core.step(block=True)
    one.core.abort([1])
    one.finish()
    assert re.fullmatch("[0-9]{20}", one.text(2))
    assert len(one.channel.terminals[1]) == 1


def test_an_engine_without_backend_says_so(bench):
    one = bench()
    one.core._constraints = None
    one.add(1, DATE)
    one.finish()
    assert one.channel.terminal(1).failure is FailureKind.CONSTRAINT


def test_the_executor_may_die_while_masks_are_awaited(bench):
    one = bench(depth=3)
    one.add(1, DATE)
    one.add(2, DATE)
    while not one.channel.tokens(1):
        one.core.step(block=True)
    one.executor.stop()
    one.finish()
    for request_id in (1, 2):
        assert one.channel.terminal(request_id).failure is FailureKind.ENGINE_DEAD


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_preemption_keeps_the_place_in_the_grammar(bench, depth):
    one = bench(depth=depth, num_blocks=12, max_num_seqs=4)
    for request_id in range(4):
        one.add(request_id, StructuredSpec.regex("(0123456789){3}"), max_tokens=40)
    one.finish()
    assert one.core.stats().num_preemptions > 0
    for request_id in range(4):
        assert one.text(request_id) == "0123456789" * 3


@pytest.mark.parametrize("depth", [1, 2])
def test_a_grammar_that_outgrows_its_limits_ends_its_request_alone(bench, depth):
    backend = GatedBackend(outgrown_after=5)
    backend.gate.set()
    one = bench(depth=depth, backend=backend)
    one.add(1, StructuredSpec.regex("[0-9]{20}"), max_tokens=100)
    one.add(2, DATE)
    one.add(3, None)
    one.finish()
    terminal = one.channel.terminal(1)
    assert (terminal.failure, terminal.message) == (FailureKind.CONSTRAINT, "The grammar has outgrown its limits.")
    assert re.fullmatch("[0-9]{5}", one.text(1))
    assert one.channel.terminal(2).reason is FinishReason.ERROR  # eight masks
    assert one.channel.terminal(3).reason is FinishReason.LENGTH


def test_nobody_compiles_for_those_who_have_left(bench):
    backend = GatedBackend()
    one = bench(backend=backend)
    for request_id in range(10):
        one.add(request_id, StructuredSpec.choice([f"{request_id}"]))
    one.add(10, StructuredSpec.choice(["9"]))  # somebody still waits for the same
    one.core.abort(range(10))
    backend.gate.set()
    one.finish()
    assert one.text(10) == "9"
    begun = {spec.choices[0] for spec in backend.compiled}
    assert "9" in begun
    assert len(begun) <= 1 + 2  # two threads had begun with what they had in hand
    one.add(11, StructuredSpec.choice(["5"]))  # and who comes later gets it all the same
    one.finish()
    assert one.text(11) == "5"


def test_an_answer_that_takes_too_long_to_follow_ends_alone(bench, monkeypatch):
    """Reading "aaa..." in every way that this grammar has takes longer with every letter."""
    monkeypatch.setattr(constraints, "FOLLOW_S", 0.05)
    monkeypatch.setattr(constraints, "FOLLOW_TOKEN_S", 0.0)
    one = bench(max_model_len=400)
    one.add(1, StructuredSpec.lark('start: a\na: a a | a a a | "a" | '), ignore_eos=True, stop=(), max_tokens=300)
    one.add(2, DATE)
    one.finish()
    terminal = one.channel.terminal(1)
    assert terminal.failure is FailureKind.CONSTRAINT
    assert "takes too long to follow" in terminal.message
    assert one.channel.terminal(2).reason is FinishReason.STOP


# -- drafts ------------------------------------------------------------------------------------------------------


class SpellingDrafter:
    """Proposes what ``text`` has next; every third time with a wrong last letter."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.calls = itertools.count()

    def propose(self, request_id, token_ids, num_unknown, max_drafts):
        at = len(token_ids) - len(PROMPT) + num_unknown
        drafts = list(self.text[at : at + max_drafts])
        if drafts and next(self.calls) % 3 == 2:
            drafts[-1] = ord("!")
        return tuple(drafts)


@pytest.mark.parametrize("depth", [1, 2])
def test_drafts_are_followed_as_far_as_the_grammar_goes_and_taken_back(bench, depth):
    text = b"0123456789" * 4
    one = bench(
        depth=depth,
        accept=lambda request_id, position, num_drafts: mix(request_id, position, 1) % (num_drafts + 1) + 1,
        drafter=SpellingDrafter(text),
    )
    one.add(1, StructuredSpec.choice([text.decode()]), max_tokens=None)
    one.add(2, StructuredSpec.regex("[0-9]{40}"), max_tokens=None)
    one.finish()
    assert one.text(1) == text.decode()
    assert re.fullmatch("[0-9]{40}", one.text(2))
    stats = one.core.stats()
    assert stats.num_steps < 60  # several tokens per step
    assert stats.constraints.num_masks > stats.generation_tokens


# -- what backends answer ----------------------------------------------------------------------------------------


def test_masks_do_not_depend_on_how_they_are_handed_out(bench):
    one, other = bench(depth=1), bench(depth=3, max_num_batched_tokens=16)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["a"]}
    for made in (one, other):
        for request_id in range(8):
            made.add(request_id, StructuredSpec.json_schema(schema), max_tokens=150)
        made.finish()
    for request_id in range(8):
        assert one.channel.tokens(request_id) == other.channel.tokens(request_id)
        if one.channel.terminal(request_id).reason is FinishReason.STOP:
            assert set(json.loads(one.text(request_id))) >= {"a"}


def test_one_compilation_serves_all_who_ask_for_the_same(bench):
    backend = GatedBackend()
    one = bench(backend=backend)
    for request_id in range(8):
        one.add(request_id, StructuredSpec.regex("[a-z]{5}"))
    backend.gate.set()
    one.finish()
    assert len(backend.compiled) == 1
    assert len({one.text(request_id) for request_id in range(8)}) > 1


def test_the_vocabulary_is_as_wide_as_the_logits():
    vocabulary = byte_vocabulary()
    session = Llguidance().prepare(vocabulary).compile(DATE).open()
    assert len(session.fill()) == vocabulary.mask_bytes == (vocabulary.num_ids + 31) // 32 * 4
