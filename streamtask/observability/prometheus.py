"""Metrics in Prometheus format: tables of names, and families made from them. Independent of what is measured.

Always true: a name that is in no table is never exported, and every sample has exactly the labels of its table entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

Table = Mapping[str, tuple[str, tuple[str, ...], str]]  #: name → (kind, labels, meaning)
Samples = Iterable[tuple[Sequence[str], float]]


def family(table: Table, name: str, samples: Samples) -> Metric:
    """A counter or gauge from the table, with these samples: (label values, value)."""
    kind, labels, meaning = table[name]
    make = CounterMetricFamily if kind == COUNTER else GaugeMetricFamily
    made = make(name.removesuffix("_total"), meaning, labels=labels)
    for values, value in samples:
        assert len(values) == len(labels), f"{name}: {values} are no values of {labels}"
        made.add_metric(values, value)
    return made


class Together(Collector):
    """Several collectors as one."""

    def __init__(self, *collectors: Collector) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            yield from collector.collect()


class Given(Collector):
    """A collector of families that already exist."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


def render(collector: Collector, accept: str) -> tuple[str, bytes]:
    """Returns (content type, body) in the format that the Accept header asks for."""
    encode, content_type = choose_encoder(accept)
    return content_type, encode(collector)
