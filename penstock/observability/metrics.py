"""Counters, gauges and histograms as plain objects. Does not know how they are shown or what they measure.

Used from one thread. A metric is a family of samples told apart by the values of its ``label_names``; the hot paths
keep the sample (``metric.at("stop")``) and call it directly, which costs a tenth of a microsecond.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar


class Number:
    """One value that counts up or is set."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        self.value += amount

    def set(self, value: float) -> None:
        self.value = value


class Distribution:
    """Observations counted per bucket. ``counts[i]`` are those in (bounds[i-1], bounds[i]]; the last is above all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)


S = TypeVar("S", Number, Distribution)


@dataclass(slots=True)
class Metric(Generic[S]):
    """A named family of samples. ``kind`` is "counter", "gauge" or "histogram"."""

    name: str
    kind: str
    text: str
    make: Callable[[], S]
    label_names: tuple[str, ...] = ()
    samples: dict[tuple[str, ...], S] = field(default_factory=dict)

    def at(self, *label_values: str) -> S:
        """The sample with these label values, made at first use."""
        sample = self.samples.get(label_values)
        if sample is None:
            if len(label_values) != len(self.label_names):
                raise ValueError(f"metric {self.name} has labels {self.label_names}, got {label_values}")
            sample = self.samples[label_values] = self.make()
        return sample

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], S]]:
        return iter(self.samples.items())


Counts = dict[str, dict[tuple[str, ...], list[float]]]
"""By name and label values: a counter's value, or a histogram's total and the counts of its buckets."""

AnyMetric = Metric[Number] | Metric[Distribution]


class MetricSet:
    """An ordered collection of metrics with unique names."""

    def __init__(self) -> None:
        self._metrics: dict[str, AnyMetric] = {}

    def counter(self, name: str, text: str, *label_names: str) -> Metric[Number]:
        """``name`` has no _total suffix; the exposition adds it."""
        return self._add(Metric(name, "counter", text, Number, label_names))

    def gauge(self, name: str, text: str, *label_names: str) -> Metric[Number]:
        return self._add(Metric(name, "gauge", text, Number, label_names))

    def histogram(self, name: str, text: str, bounds: Sequence[float], *label_names: str) -> Metric[Distribution]:
        """``bounds`` are upper bounds in rising order, without infinity."""
        if list(bounds) != sorted(set(bounds)):
            raise ValueError(f"bounds of metric {name} must rise")
        return self._add(Metric(name, "histogram", text, lambda: Distribution(bounds), label_names))

    def counts(self) -> Counts:
        """All counters and histograms as plain data: what several processes can add up."""
        return {
            metric.name: {labels: _count_of(sample) for labels, sample in metric}
            for metric in self
            if metric.kind != "gauge"
        }

    def _add(self, metric: Metric[S]) -> Metric[S]:
        if metric.name in self._metrics:
            raise ValueError(f"metric {metric.name} exists already")
        self._metrics[metric.name] = metric
        return metric

    def __iter__(self) -> Iterator[AnyMetric]:
        return iter(self._metrics.values())


def _count_of(sample: Number | Distribution) -> list[float]:
    return [sample.value] if isinstance(sample, Number) else [sample.total, *sample.counts]


def add_counts(sample: Number | Distribution, others: Sequence[Sequence[float]]) -> Number | Distribution:
    """A new sample: ``sample`` and what other processes counted of the same."""
    totals = [sum(column) for column in zip(_count_of(sample), *others, strict=True)]
    if isinstance(sample, Number):
        number = Number()
        number.value = totals[0]
        return number
    distribution = Distribution(sample.bounds)
    distribution.total, distribution.counts = totals[0], [int(count) for count in totals[1:]]
    return distribution
