"""The inputs of a step on a device: packed on the host, sent in one copy, unpacked as views. Knows no model.

Block tables stay on the device, one row per seat; a step brings what was appended to them. What the host does not know
yet, the token that a seat sampled in a step still in flight, is named by its seat and looked up on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from penstock.attention.contract import GroupStep, HostLengths
from penstock.executor.inputs import ForwardInputs, StepInputs, StepShape
from penstock.executor.sampler.rows import FusedCuts
from penstock.executor.seats import Ints, SeatState, table_width
from penstock.types.kv import KvGroupSpec

WORD = 8  # bytes of an entry: everything is sent as int64, or as float64 and float32 in its place


@dataclass(frozen=True, slots=True)
class Field:
    """``count`` entries of ``dtype``, one per word but for float32, from word ``begin`` of a step's memory."""

    begin: int
    count: int
    dtype: torch.dtype

    def of(self, words: torch.Tensor) -> torch.Tensor:
        part = words[self.begin : self.begin + self.count]
        return part if self.dtype is torch.int64 else part.view(self.dtype)[: self.count]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a step of one shape has its inputs. The same shape always has the same places."""

    shape: StepShape
    fields: dict[str, Field]
    num_words: int


def make_layout(shape: StepShape, num_groups: int) -> Layout:
    tokens, rows, asked = shape.num_tokens, shape.num_rows, shape.num_asked
    wanted = {
        "token_ids": (tokens, torch.int64),
        "positions": (tokens, torch.int64),
        **{f"slots{group}": (tokens, torch.int64) for group in range(num_groups)},
        "query_start": (rows + 1, torch.int64),
        "kv_lens": (rows, torch.int64),
        "seats": (rows, torch.int64),
        "asked": (asked, torch.int64),
        "asked_seats": (asked, torch.int64),
        "top_k": (asked, torch.int64),
        "top_p": (asked, torch.float64),
        "uniforms": (asked, torch.float64),
        "temperature": (asked, torch.float32),
        "min_p": (asked, torch.float32),
    }
    fields, begin = {}, 0
    for name, (count, dtype) in wanted.items():
        fields[name] = Field(begin, count, dtype)
        begin += count + count % 2  # every field begins at a multiple of 16 bytes
    return Layout(shape, fields, begin)


def _most_words(max_num_seqs: int, max_num_batched_tokens: int, num_groups: int) -> int:
    """Of the largest step."""
    most = max(max_num_batched_tokens, max_num_seqs)  # decode steps are filled up to all seats
    return make_layout(StepShape(most, max_num_seqs, most), num_groups).num_words


def table_bytes(max_num_seqs: int, max_model_len: int, groups: Sequence[KvGroupSpec]) -> int:
    """The block tables of all seats and of the scratch seat: the device's own, or those that one step gathers."""
    return (max_num_seqs + 1) * sum(table_width(max_model_len, group) for group in groups) * WORD


def input_bytes(
    max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int, groups: Sequence[KvGroupSpec]
) -> int:
    """What DeviceInputs keeps on the device."""
    words = _most_words(max_num_seqs, max_num_batched_tokens, len(groups))
    return words * WORD + table_bytes(max_num_seqs, max_model_len, groups)


@dataclass(frozen=True, slots=True)
class DeviceAsked:
    """Of the rows that sample, as views of the device's memory."""

    seats: torch.Tensor  # int64 [asked]
    cuts: tuple[torch.Tensor, ...]  # of the op "sample", in its order


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """A step's inputs as views of the device's memory. ``forward.token_ids`` may still name seats, see
    ``kernels.reference.step.resolve_tokens``."""

    forward: ForwardInputs
    asked: DeviceAsked


@dataclass(frozen=True, slots=True)
class Cuts:
    """What each asked row's draw is told: the parameters and a uniform number."""

    parameters: Sequence[FusedCuts]
    uniforms: Sequence[float]


class HostRing:
    """Memory that copies to the device read from: a slot is written again when ``size`` - 1 others have been."""

    def __init__(self, size: int, num_words: int, *, pinned: bool) -> None:
        self._slots = [torch.zeros(num_words, dtype=torch.int64, pin_memory=pinned) for _ in range(size)]
        self._pinned = pinned
        self._last = 0

    def next(self, num_words: int) -> torch.Tensor:
        self._last = (self._last + 1) % len(self._slots)
        if self._slots[self._last].numel() < num_words:
            self._slots[self._last] = torch.zeros(2 * num_words, dtype=torch.int64, pin_memory=self._pinned)
        return self._slots[self._last]


class DeviceInputs:
    """Owns the device's copy of a step's inputs and of the block tables. ``scratch_slots[group]`` is where rows that
    only fill a recorded shape write, ``depth`` how many steps may be in flight."""

    def __init__(
        self,
        seats: SeatState,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        scratch_slots: Sequence[int],
        depth: int,
        device: torch.device,
    ) -> None:
        self._seats = seats
        self._num_groups = len(seats.groups)
        self._scratch_seat = max_num_seqs
        self._scratch_slots = tuple(scratch_slots)
        self._device = device
        num_words = _most_words(max_num_seqs, max_num_batched_tokens, self._num_groups)
        self._words = torch.zeros(num_words, dtype=torch.int64, device=device)
        self._tables = [
            torch.zeros(max_num_seqs + 1, table.shape[1], dtype=torch.int64, device=device) for table in seats.tables
        ]
        pinned = device.type == "cuda"
        self._host = HostRing(depth + 1, self._words.numel(), pinned=pinned)
        self._sent = self._host.next(0)  # what the last step was sent from
        self._appended = HostRing((depth + 1) * self._num_groups, 2048, pinned=pinned)
        self._layouts: dict[StepShape, Layout] = {}

    def layout(self, shape: StepShape) -> Layout:
        found = self._layouts.get(shape)
        if found is None:
            if len(self._layouts) > 4096:  # shapes of prefills have no end
                self._layouts.clear()
            found = self._layouts[shape] = make_layout(shape, self._num_groups)
        return found

    def send_tables(self) -> None:
        """Bring the device's block tables up to date with the seats'."""
        for group, (table, changes) in enumerate(zip(self._tables, self._seats.take_appended(), strict=True)):
            if not changes:
                continue
            width = table.shape[1]
            at = np.concatenate([np.arange(begin, begin + len(ids)) + seat * width for seat, begin, ids in changes])
            host = self._appended.next(2 * len(at))[: 2 * len(at)]
            host.numpy()[: len(at)] = at
            # As the tables are by now: a place that changed more than once gets one value, whichever copy comes last.
            host.numpy()[len(at) :] = self._seats.tables[group].reshape(-1)[at]
            sent = host.to(self._device, non_blocking=True)
            self._tables[group].view(-1).index_copy_(0, sent[: len(at)], sent[len(at) :])

    def send(
        self, inputs: StepInputs, host: ForwardInputs, num_final: Ints, cuts: Cuts | None, padded_rows: int | None
    ) -> Layout:
        """Send a step that was built on the host; ``host`` are its inputs there. ``num_final[s]`` tokens of seat s are
        known on the host: one behind them is named by its seat. Decode steps are filled up to ``padded_rows``."""
        num_rows = padded_rows or inputs.shape.num_rows
        shape = inputs.shape if padded_rows is None else StepShape(num_rows, num_rows, num_rows)
        layout = self.layout(shape)
        words = self._sent = self._host.next(layout.num_words)
        array = words.numpy()
        fields = layout.fields

        def put(name: str, values: Ints, filling: int) -> None:
            field = fields[name]
            array[field.begin : field.begin + len(values)] = values
            array[field.begin + len(values) : field.begin + field.count] = filling

        seat_of = inputs.seats if inputs.decodes else np.repeat(inputs.seats, np.diff(inputs.query_start))
        positions = host.positions.numpy()
        put("token_ids", np.where(positions < num_final[seat_of], host.token_ids.numpy(), -1 - seat_of), 0)
        put("positions", positions, 0)
        for group, step in enumerate(host.groups):
            put(f"slots{group}", step.slots.numpy(), self._scratch_slots[group])
        put("query_start", inputs.query_start, 0)
        if padded_rows is not None:
            begin = fields["query_start"].begin
            array[begin : begin + num_rows + 1] = np.arange(num_rows + 1)
        put("kv_lens", host.groups[0].kv_lens.numpy(), 1)
        put("seats", inputs.seats, self._scratch_seat)
        asked = np.arange(num_rows) if host.asked is None else host.asked.numpy()
        put("asked", asked, 0)
        put("asked_seats", inputs.seats[inputs.asked_rows], self._scratch_seat)
        if cuts is not None:
            _put_cuts(words, layout, cuts)
        self._words[: layout.num_words].copy_(words[: layout.num_words], non_blocking=True)
        return layout

    def send_scratch(self, num_rows: int) -> Layout:
        """Fill a decode step of ``num_rows`` rows with nothing but filling, for recording."""
        shape = StepShape(num_rows, num_rows, num_rows)
        layout = self.layout(shape)
        words = self._sent = self._host.next(layout.num_words)
        array = words.numpy()
        array[: layout.num_words] = 0
        fillings = {
            "query_start": np.arange(num_rows + 1),
            "asked": np.arange(num_rows),
            "kv_lens": 1,
            "seats": self._scratch_seat,
            "asked_seats": self._scratch_seat,
            **{f"slots{group}": slot for group, slot in enumerate(self._scratch_slots)},
        }
        for name, filling in fillings.items():
            field = layout.fields[name]
            array[field.begin : field.begin + field.count] = filling
        _put_cuts(words, layout, Cuts((), ()))
        self._words[: layout.num_words].copy_(words[: layout.num_words], non_blocking=True)
        return layout

    def views(self, layout: Layout, max_query_len: int, max_kv_len: int) -> DeviceStep:
        """What was sent last, on the device. Block tables are gathered by seat here, as part of what is recorded."""
        fields = {name: field.of(self._words) for name, field in layout.fields.items()}
        host = HostLengths(layout.fields["query_start"].of(self._sent), layout.fields["kv_lens"].of(self._sent))
        groups = []
        for group, (spec, table) in enumerate(zip(self._seats.groups, self._tables, strict=True)):
            width = min(table.shape[1], -(-max_kv_len // spec.tokens_per_block))
            groups.append(
                GroupStep(
                    query_start=fields["query_start"],
                    kv_lens=fields["kv_lens"],
                    block_table=table[:, :width].index_select(0, fields["seats"]),
                    slots=fields[f"slots{group}"],
                    positions=fields["positions"],
                    max_query_len=max_query_len,
                    max_kv_len=max_kv_len,
                    block_tokens=spec.tokens_per_block,
                    host=host,
                )
            )
        shape = layout.shape
        asked = None if shape.num_asked == shape.num_tokens else fields["asked"]
        forward = ForwardInputs(fields["token_ids"], fields["positions"], tuple(groups), asked)
        return DeviceStep(forward, self.asked(layout))

    def asked(self, layout: Layout) -> DeviceAsked:
        """The same of the rows that sample alone, without a launch. Valid until the next step is sent."""
        seats, *cuts = (
            layout.fields[name].of(self._words)
            for name in ("asked_seats", "temperature", "min_p", "top_k", "top_p", "uniforms")
        )
        return DeviceAsked(seats, tuple(cuts))


def _put_cuts(words: torch.Tensor, layout: Layout, cuts: Cuts) -> None:
    """Rows of filling draw the likeliest token."""
    count = layout.shape.num_asked
    given = len(cuts.parameters)
    columns = list(zip(*cuts.parameters, strict=True)) if given else [(), (), (), ()]
    values = dict(zip(("temperature", "min_p", "top_k", "top_p"), columns, strict=True))
    values["uniforms"] = tuple(cuts.uniforms)
    filling = {"temperature": 1.0, "min_p": 0.0, "top_k": 1, "top_p": 1.0, "uniforms": 0.0}
    for name, column in values.items():
        field = layout.fields[name].of(words)
        field[:given] = torch.tensor(column, dtype=field.dtype)
        field[given:count] = filling[name]
