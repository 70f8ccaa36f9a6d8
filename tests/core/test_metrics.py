"""Prometheus accepts the tables of metrics, and disabled metrics cost nothing."""

from __future__ import annotations

import re

import pytest

from inbox.config.values import Address
from inbox.errors import CAUSES, RequestError
from inbox.observe.metrics import RECEIVER, RELAY, Metric


@pytest.mark.parametrize("metric", [*RECEIVER, *RELAY], ids=lambda metric: metric.name)
def test_a_metrics_name_tells_its_side_its_kind_and_its_unit(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)+", metric.name)
    assert metric.name.startswith("inbox_" if metric in RECEIVER else "relay_")
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.help.endswith(".")


def test_no_two_have_one_name() -> None:
    names = [metric.name for metric in (*RECEIVER, *RELAY)]
    assert len(names) == len(set(names))


def test_every_cause_of_a_refusal_is_known() -> None:
    def causes(error: type[RequestError]) -> set[str]:
        return {error.cause, *(cause for each in error.__subclasses__() for cause in causes(each))}

    assert {cause for error in RequestError.__subclasses__() for cause in causes(error)} == CAUSES


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:9100", "127.0.0.1", 9100), ("localhost:1", "localhost", 1), ("[::1]:65535", "::1", 65535)],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert (address, address.host, address.port) == (text, host, port)


@pytest.mark.parametrize(
    "text", ["", "9100", ":9100", "127.0.0.1", "a:0", "a:65536", "a:b", "::1:9100", "a b:1", 9100, None]
)
def test_anything_else_is_none(text: object) -> None:
    with pytest.raises(ValueError, match="expected a host and a port"):
        Address.parse(text)
