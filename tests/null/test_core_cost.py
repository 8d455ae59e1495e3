"""The price of a step, in operations rather than seconds: flat in context length, and small per row."""

from __future__ import annotations

import pytest

from penstock.bench.core import CoreBench, measure_core


def test_operations_per_row_are_flat_in_context_length():
    short, long = (CoreBench(4, context, 64).operations_per_row() for context in (2048, 32768))
    assert long == pytest.approx(short, rel=0.01)


def test_operations_per_row_do_not_grow_with_rows():
    assert CoreBench(64, 2048, 64).operations_per_row() < CoreBench(4, 2048, 64).operations_per_row()


def test_counting_counts():
    bench = CoreBench(2, 64, 64)
    once = bench.count_operations(16)
    assert once > 1000
    assert bench.count_operations(32) > 1.9 * once


def test_the_report_has_a_row_per_size():
    said: list[str] = []
    report = measure_core((1, 3), 128, 5, "penstock bench core", said.append)
    assert [row["rows"] for row in report.rows] == [1, 3]
    assert report.rows[0]["target_ms"] == 0.3
    assert all(row["step_ms_p50"] > 0 and row["bytecodes_per_row"] > 0 for row in report.rows)
    assert len(said) == 2
