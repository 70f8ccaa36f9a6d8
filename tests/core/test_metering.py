"""Metrics and figures from a process's counts to the served page: nothing is lost, and memory is bounded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sqlalchemy.exc import DataError

from inbox.config.values import Address
from inbox.db.throughput import Tally
from inbox.errors import CAUSES, RequestError
from inbox.observe import metrics
from inbox.observe.exporter import LONGEST_LINE, Totals
from inbox.observe.recorder import Recorder
from tests.helpers.metrics import Samples, parse_samples

# --- Metrics from a process's counts to the served page: through a pipe, with other writers, read or unread


Step = tuple[str, metrics.Metric, float, tuple[str, ...]]

NAMES = st.text(min_size=1, max_size=8)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("count"), st.just(metrics.ATTEMPTS), st.floats(0, 1e6), st.tuples(NAMES, NAMES)),
        st.tuples(st.just("count"), st.just(metrics.NOT_KEPT), st.floats(0, 1e6), st.just(())),
        st.tuples(st.just("observe"), st.just(metrics.DELIVERY_SECONDS), st.floats(0, 1e6), st.tuples(NAMES)),
        st.tuples(
            st.just("observe"),
            st.just(metrics.BATCH_EVENTS),
            st.sampled_from(metrics.BATCH_EVENTS.buckets),
            st.just(()),
        ),
        st.tuples(st.just("put"), st.just(metrics.OPEN), st.floats(-1e6, 1e6), st.tuples(NAMES, NAMES)),
    ),
    max_size=30,
)


class Pipe:
    """A pipe, and the exporter's totals of its lines."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.totals = Totals()

    def recorder(self) -> Recorder:
        return Recorder((*metrics.RECEIVER, *metrics.RELAY), os.dup(self.writing))

    def close(self) -> None:
        """Close the ends that are open."""
        for end in (self.reading, self.writing):
            with contextlib.suppress(OSError):
                os.close(end)

    def expose(self) -> Samples:
        """Read until the last writer is gone."""
        os.close(self.writing)
        with os.fdopen(self.reading, "rb") as lines:
            for line in lines:
                self.totals.add(line)
        return exposition(self.totals)


def exposition(totals: Totals) -> Samples:
    registry = CollectorRegistry()
    registry.register(totals)
    return parse_samples(generate_latest(registry).decode())


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def tell(meters: metrics.Meters, steps: list[Step]) -> None:
    for told, metric, value, labels in steps:
        if told == "count":
            meters.count(metric, *labels, by=value)
        else:
            getattr(meters, told)(metric, value, *labels)


def as_the_library_says(steps: list[Step]) -> Samples:
    """The same counts by prometheus-client in one process."""
    registry = CollectorRegistry()
    kinds: Mapping[str, Callable[[metrics.Metric], Any]] = {
        "counter": lambda m: Counter(m.name, m.help, m.labels, registry=registry),
        "gauge": lambda m: Gauge(m.name, m.help, m.labels, registry=registry),
        "histogram": lambda m: Histogram(m.name, m.help, m.labels, registry=registry, buckets=m.buckets),
    }
    made = {m.name: kinds[m.kind](m) for m in (*metrics.RECEIVER, *metrics.RELAY) if m.kind != "gauge" or m.labels}
    for what, metric, value, labels in steps:
        series = made[metric.name].labels(*labels) if labels else made[metric.name]
        getattr(series, {"count": "inc", "observe": "observe", "put": "set"}[what])(value)
    return {n: s for n, s in parse_samples(generate_latest(registry).decode()).items() if not n.endswith("_created")}


@given(st.lists(STEPS, min_size=1, max_size=3))
def test_several_processes_count_together_as_one_would(parts: list[list[Step]]) -> None:
    pipe = Pipe()
    for steps in parts:  # one after the other, so that a gauge's last value is known
        recorder = pipe.recorder()
        tell(recorder, steps)
        recorder.close()
    expected = as_the_library_says([step for steps in parts for step in steps])
    found = pipe.expose()
    assert found.keys() == expected.keys()
    for name, series in expected.items():
        assert found[name] == pytest.approx(series), name


def test_the_newest_value_of_a_gauge_stands_in_whichever_order_processes_write(pipe: Pipe) -> None:
    first, second = pipe.recorder(), pipe.recorder()
    first.put(metrics.BREAKER, 2, "destination", "crm")
    second.put(metrics.BREAKER, 0, "destination", "crm")
    second.close()
    first.close()
    assert pipe.expose()["relay_breaker"]["destination", "crm"] == 0


@pytest.mark.parametrize(
    "line",
    [
        b'ed_total",["trivore"],[1.0]]\n',
        b'["inbox_received_total",["trivore"],[1.0',
        b'["no_such_metric",[],[1.0]]\n',
        b'["inbox_received_total",[],[1.0]]\n',
        b'["inbox_received_total",["a"],[1.0,2.0]]\n',
        b'["inbox_batch_events",[],[1.0]]\n',
        b"\xff" * LONGEST_LINE,
    ],
)
def test_anything_but_a_line_of_a_recorder_is_left_out(line: bytes) -> None:
    totals = Totals()
    with pytest.raises(ValueError, match=r"."):
        totals.add(line)
    assert exposition(totals) == {}


# --- Prometheus accepts the tables of metrics, and disabled metrics cost nothing


def test_every_cause_of_a_refusal_is_known() -> None:
    def causes(error: type[RequestError]) -> set[str]:
        return {error.cause, *(cause for each in error.__subclasses__() for cause in causes(each))}

    assert {cause for error in RequestError.__subclasses__() for cause in causes(error)} == CAUSES


@pytest.mark.parametrize(
    "text", ["", "9100", ":9100", "127.0.0.1", "a:0", "a:65536", "a:b", "::1:9100", "a b:1", 9100, None]
)
def test_anything_else_is_none(text: object) -> None:
    with pytest.raises(ValueError, match="expected a host and a port"):
        Address.parse(text)


# --- Figures of a process while they wait to be written: nothing is lost, and memory is bounded


def test_figures_that_were_not_written_are_there_the_next_time_unless_the_database_rejects_them() -> None:
    tally = Tally()
    tally.add("route", "crm", "delivered")
    with contextlib.suppress(OSError), tally.take():
        raise OSError
    tally.add("route", "crm", "delivered")
    tally.add("route", "crm", "dead")
    with contextlib.suppress(DataError), tally.take() as figures:
        assert [(figure["outcome"], figure["count"]) for figure in figures] == [("delivered", 2), ("dead", 1)]
        raise DataError("INSERT", {}, ValueError("out of range"))
    with tally.take() as figures:
        assert figures == []
