from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.model import Route
from inbox.config.sources import HeaderAuth, NoAuth, Source
from inbox.config.values import Duration, Secret
from inbox.events.event import Enrolment, Identity, RawRequest, dedup_key
from inbox.events.timestamps import to_nanoseconds
from inbox.sources import PRESETS
from inbox.sources.normalize import KEPT_HEADERS, kept_headers, to_event, valid_traceparent

NOW = datetime(2024, 1, 1, tzinfo=UTC)
TRIVORE = PRESETS["trivore"]
OPEN = Source(name="trivore", preset="trivore", auth=NoAuth())
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_an_event_has_all_that_the_request_and_its_identity_tell() -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8", "traceparent": TRACE}
    raw = RawRequest("trivore", headers, b'{"id": 1}', NOW)
    identity = Identity("USER", "u1", "UPDATE", "update", 1_546_300_800_000_000_123, ("u1", "USER"), key_has_time=True)
    routes = [Route(name="r", source="trivore", destination="d")]
    event = to_event(OPEN, raw, identity, routes, {"content-type": "kept"})
    assert event.dedup_key == dedup_key(identity)
    assert event.dedup_key.startswith("2019-01-01T00:00:00.000000123Z|")
    assert event.occurred_at == datetime(2019, 1, 1, tzinfo=UTC)
    assert event.enrolments == (Enrolment("r", "USER|u1"),)
    assert (event.body, event.body_sha256) == (b'{"id": 1}', hashlib.sha256(b'{"id": 1}').digest())
    assert event.content_type == "Application/JSON; charset=utf-8"
    assert event.headers == {"content-type": "kept"}
    assert event.traceparent == TRACE
    assert event.received_at == NOW


def test_an_event_without_a_time_of_its_own_is_ordered_by_its_arrival() -> None:
    source = msgspec.structs.replace(OPEN, clock_skew=Duration(7))
    raw = RawRequest("trivore", {}, b"{}", NOW)
    told, arrived = (Identity("USER", "u1", "UPDATE", "update", at, ("u1",)) for at in (1, to_nanoseconds(NOW)))
    assert [to_event(source, raw, identity, []).ahead for identity in (told, arrived)] == [7, None]


def kept(source: Source, headers: dict[str, str], **request: str) -> dict[str, str]:
    """Return what is stored of these headers."""
    return kept_headers(source, TRIVORE, RawRequest("s", headers, b"{}", NOW, **request))


def test_the_header_that_a_source_sends_its_secret_in_is_not_kept_even_if_it_is_on_the_list() -> None:
    source = Source(name="s", preset="p", auth=HeaderAuth(name="X-Request-ID", secrets=[Secret("hunter2")]))
    assert kept(source, {"x-request-id": "hunter2"}) == {}


NAMES = st.sampled_from(
    [*sorted(KEPT_HEADERS), "authorization", "cookie", "x-webhook-token", "host", "x-forwarded-for"]
)
HEADERS = st.dictionaries(NAMES | st.text(max_size=20).map(str.lower), st.text(max_size=40), max_size=8)


@given(headers=HEADERS, secret=NAMES)
def test_whatever_the_headers_are_those_of_the_list_are_kept_and_no_other_and_never_the_secrets(
    headers: dict[str, str], secret: str
) -> None:
    source = Source(name="s", preset="p", auth=HeaderAuth(name=secret.title(), secrets=[Secret("hunter2")]))
    found = kept(source, headers)
    assert found.keys() == (headers.keys() & KEPT_HEADERS) - {secret}
    for name, value in found.items():
        assert value.isascii()
        assert value == "" or value.isprintable()
        assert value == headers[name] or not (headers[name].isascii() and headers[name].isprintable())


HEX = st.text("0123456789abcdef", min_size=1, max_size=34)
TRACES = st.builds(
    lambda version, trace, parent, flags, more: f"{version}-{trace}-{parent}-{flags}{more}",
    st.sampled_from(["00", "01", "cc", "ff", "0", "0A"]),
    st.sampled_from(["0" * 32, "a" * 32, "A" * 32]) | HEX,
    st.sampled_from(["0" * 16, "b" * 16]) | HEX,
    st.sampled_from(["00", "01", "0"]) | HEX,
    st.sampled_from(["", "-", "-more", "more", "\n"]),
)


@given(st.text(max_size=60) | TRACES)
def test_a_trace_context_is_valid_by_the_standard_and_then_stays_itself_or_there_is_none(value: str) -> None:
    valid = valid_traceparent(value)
    if valid is None:
        return
    version, trace, parent, flags = valid.split("-")
    assert (version, len(trace), len(parent), len(flags)) == ("00", 32, 16, 2)
    assert set(trace + parent + flags) <= set("0123456789abcdef")
    assert int(trace, 16)
    assert int(parent, 16)
    assert valid_traceparent(valid) == valid
    assert value[2:].startswith(valid[2:])


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        TRACE.upper(),
        TRACE + "-extra",
        TRACE + "\n",
        " " + TRACE,
        TRACE.replace("00-4", "ff-4"),
        TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        TRACE.replace("00f067aa0ba902b7", "0" * 16),
        TRACE[:-1],
        "00-4bf92f3577b34da6a3ce929d0e0e473x-00f067aa0ba902b7-01",
        "cc" + TRACE[2:] + "what",
    ],
)
def test_a_trace_context_that_is_not_valid_is_none(value: str | None) -> None:
    assert valid_traceparent(value) is None
