"""Plain metric objects and process logging."""

from __future__ import annotations

import logging

import pytest

from penstock.observability.log import configure_logging, warn_once
from penstock.observability.metrics import Distribution, MetricSet


@pytest.fixture
def penstock_logger():
    logger = logging.getLogger("penstock")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield logger
    logger.handlers[:], logger.level, logger.propagate = before


def test_buckets_include_their_upper_bound():
    sample = Distribution((1, 10))
    for value in (0, 1, 1.5, 10, 11):
        sample.observe(value)
    sample.observe(2, times=3)
    assert sample.counts == [2, 5, 1]
    assert sample.total == 29.5
    assert sample.count == 8


def test_metrics_refuse_what_would_not_be_shown_right():
    metrics = MetricSet()
    ended = metrics.counter("ended", "Ended.", "reason")
    ended.at("stop").add(2)
    assert ended.at("stop").value == 2
    with pytest.raises(ValueError, match="labels"):
        ended.at()
    with pytest.raises(ValueError, match="exists already"):
        metrics.gauge("ended", "Again.")
    with pytest.raises(ValueError, match="must rise"):
        metrics.histogram("h", "H.", (2, 1))
    assert [metric.name for metric in metrics] == ["ended"]


def test_logging_goes_to_stderr_once_however_often_it_is_configured(penstock_logger, capsys):
    configure_logging("info", process="engine")
    configure_logging("warning")
    child = logging.getLogger("penstock.some.module")
    child.info("quiet")
    warn_once(child, "a unique sentence of this test")
    warn_once(child, "a unique sentence of this test")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("a unique sentence") == 1
    assert "quiet" not in captured.err
    with pytest.raises(ValueError, match="log level"):
        configure_logging("loud")
