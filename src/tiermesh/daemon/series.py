"""Figures that cost one addition when something happens, and become Prometheus' series when somebody looks.

prometheus-client's own counters take a lock and check themselves at every step, 20 us a request; on one loop nobody
needs that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString


class Histogram:
    """How often a value came, by the least of `bounds` (ascending) that is not below it; all above come last."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Once more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def counter_family(
    name: str, about: str, labels: Sequence[str], counts: Mapping[tuple[str, ...], float]
) -> CounterMetricFamily:
    """A counter's series, by their labels."""
    family = CounterMetricFamily(name, about, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def histogram_family(
    name: str, about: str, labels: Sequence[str], histograms: Mapping[tuple[str, ...], Histogram]
) -> Metric:
    """A histogram's series, by their labels."""
    family = HistogramMetricFamily(name, about, labels=labels)
    for values, histogram in histograms.items():
        bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
        family.add_metric(
            values, list(zip(bounds, accumulate(histogram.counts), strict=True)), sum_value=histogram.total
        )
    return family
