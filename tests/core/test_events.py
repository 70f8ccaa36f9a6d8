"""Events made of requests: their keys, headers, routes and lanes."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config import routing
from inbox.config.model import Route, When
from inbox.config.routing import ROUTE_LANE, enrol, matches, select_routes
from inbox.config.sources import HeaderAuth, NoAuth, Source
from inbox.config.values import Duration, Secret
from inbox.db.dialect import is_storable, json_text, make_storable, rows_param
from inbox.events import timestamps
from inbox.events.event import Enrolment, Identity, RawRequest, dedup_key, swept_key, swept_parts
from inbox.events.timestamps import to_nanoseconds
from inbox.sources import PRESETS
from inbox.sources.normalize import KEPT_HEADERS, kept_headers, to_event, valid_traceparent

PARTS = st.lists(st.text(alphabet='ab|\\:"é😀', max_size=6), min_size=1, max_size=4).map(tuple)
INSTANTS = st.integers(
    timestamps.parse_rfc3339("2000-01-01T00:00:00Z"), timestamps.parse_rfc3339("2100-01-01T00:00:00Z")
)


def identity(parts: tuple[str, ...], occurred_ns: int = 0, *, key_has_time: bool = True) -> Identity:
    return Identity("USER", "u1", "UPDATE", "update", occurred_ns, parts, key_has_time)


@given(PARTS, PARTS, st.booleans())
def test_other_parts_have_other_keys(some: tuple[str, ...], others: tuple[str, ...], key_has_time: bool) -> None:
    keys = {dedup_key(identity(parts, key_has_time=key_has_time)) for parts in (some, others)}
    assert len(keys) == len({some, others})


@given(PARTS, st.sampled_from(["2019-01-01T00:00:00Z", "2019-01-01T00:00:00.000+00:00", "2019-01-01T02:00:00+02:00"]))
def test_equal_instants_give_equal_keys_however_they_are_spelled(parts: tuple[str, ...], spelling: str) -> None:
    key = dedup_key(identity(parts, timestamps.parse_rfc3339(spelling)))
    assert key == dedup_key(identity(parts, 1_546_300_800_000_000_000))


@given(PARTS, PARTS, st.lists(INSTANTS, min_size=2, max_size=2, unique=True).map(sorted))
def test_keys_with_a_time_sort_by_time(some: tuple[str, ...], others: tuple[str, ...], instants: list[int]) -> None:
    earlier, later = instants
    assert dedup_key(identity(some, earlier)) < dedup_key(identity(others, later))


@given(PARTS, INSTANTS, INSTANTS)
def test_a_key_without_a_time_does_not_depend_on_it(parts: tuple[str, ...], one: int, other: int) -> None:
    assert dedup_key(identity(parts, one, key_has_time=False)) == dedup_key(identity(parts, other, key_has_time=False))


@given(st.text(alphabet="a|\\😀", min_size=900, max_size=1500), st.booleans())
def test_a_long_key_still_fits_an_index_and_still_tells_parts_apart(text: str, key_has_time: bool) -> None:
    keys = {
        dedup_key(identity(parts, key_has_time=key_has_time))
        for parts in ((text,), (text, ""), ("", text), (text + "a",))
    }
    assert len(keys) == 4
    assert all(len(key.encode()) <= 1000 for key in keys)


@given(st.text(alphabet="u1|\\é", min_size=1, max_size=4), PARTS, st.booleans())
def test_no_key_holds_the_id_of_its_entity(entity_id: str, parts: tuple[str, ...], key_has_time: bool) -> None:
    holding = Identity("USER", entity_id, "U", "update", 0, (*parts, f"user-{entity_id}"), key_has_time)
    after_time = dedup_key(holding).removeprefix(f"{timestamps.format_fixed_width(0)}|")
    assert re.fullmatch(r"\\sha256:[A-Za-z0-9_-]{32}", after_time)


def test_a_key_that_does_not_name_the_entity_stays_readable() -> None:
    assert dedup_key(identity(("evt_1",), key_has_time=False)) == "evt_1"


def test_the_key_of_a_sweeps_event_is_found_again_by_entity_and_time() -> None:
    swept = identity(swept_parts("USER", "u1"), 7)
    assert dedup_key(swept) == swept_key("USER", "u1", 7)


# --- events of requests


ARRIVED = datetime(2024, 1, 1, tzinfo=UTC)
TRIVORE = PRESETS["trivore"]
OPEN = Source(name="trivore", preset="trivore", auth=NoAuth())
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_an_event_has_all_that_the_request_and_its_identity_tell() -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8", "traceparent": TRACE}
    raw = RawRequest("trivore", headers, b'{"id": 1}', ARRIVED)
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
    assert event.received_at == ARRIVED


def test_an_event_without_a_time_of_its_own_is_ordered_by_its_arrival() -> None:
    source = msgspec.structs.replace(OPEN, clock_skew=Duration(7))
    raw = RawRequest("trivore", {}, b"{}", ARRIVED)
    told, arrived = (Identity("USER", "u1", "UPDATE", "update", at, ("u1",)) for at in (1, to_nanoseconds(ARRIVED)))
    assert [to_event(source, raw, identity, []).ahead for identity in (told, arrived)] == [7, None]


def kept_of(source: Source, headers: dict[str, str], **request: str) -> dict[str, str]:
    """Return the stored headers."""
    return kept_headers(source, TRIVORE, RawRequest("s", headers, b"{}", ARRIVED, **request))


NAMES = st.sampled_from(
    [*sorted(KEPT_HEADERS), "authorization", "cookie", "x-webhook-token", "host", "x-forwarded-for"]
)
HEADERS = st.dictionaries(NAMES | st.text(max_size=20).map(str.lower), st.text(max_size=40), max_size=8)


@given(headers=HEADERS, secret=NAMES)
def test_headers_of_the_list_are_kept_and_no_other_and_never_the_secrets(headers: dict[str, str], secret: str) -> None:
    source = Source(name="s", preset="p", auth=HeaderAuth(name=secret.title(), secrets=[Secret("hunter2")]))
    found = kept_of(source, headers)
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


INVALID = [None, "", TRACE.upper(), f"{TRACE}-extra", f"{TRACE}\n", f"ff{TRACE[2:]}", TRACE[:-1], f"cc{TRACE[2:]}what"]


@pytest.mark.parametrize("value", INVALID)
def test_a_trace_context_that_is_not_valid_is_none(value: str | None) -> None:
    assert valid_traceparent(value) is None


# --- routes and lanes


LETTERS = st.text(alphabet="ab|\\*", min_size=1, max_size=5)


def an_identity(entity_type: str | None = "USER", entity_id: str | None = "u1", event: str = "UPDATE") -> Identity:
    return Identity(entity_type, entity_id, event, "update", 0, (entity_id or "", event))


def route(name: str, *, source: str = "trivore", when: When | None = None) -> Route:
    return Route(name=name, source=source, destination="crm", when=when or When())


def lane_of(event: Identity, on: Route) -> str:
    key = dedup_key(event)
    return routing.name_lane(on, entity_type=event.entity_type, entity_id=event.entity_id, key=key)


def test_an_event_takes_every_route_of_its_source_that_it_matches_in_the_order_of_the_file() -> None:
    routes = [
        route("all"),
        route("others", source="github"),
        route("groups", when=When(entity_type=["GROUP"])),
        route("users", when=When(entity_type=["GROUP", "USER"], event_type=["UPDATE"], action=["update"])),
    ]
    own = select_routes("trivore", routes)
    assert enrol(an_identity(), "key", own) == (Enrolment("all", "USER|u1"), Enrolment("users", "USER|u1"))


@pytest.mark.parametrize(
    "when", [{}, {"entity_type": ["USER"]}, {"event_type": ["CREATE", "UPDATE"]}, {"action": ["update", "delete"]}]
)
@pytest.mark.parametrize("other", [{}, {"entity_type": ["user"]}, {"event_type": ["CREATE"]}, {"action": ["delete"]}])
def test_every_condition_that_is_given_must_hold(when: dict[str, Any], other: dict[str, Any]) -> None:
    assert matches(When(**{**when, **other}), "USER", "UPDATE", "update") is (other == {})


def test_the_lane_is_the_entity_the_route_or_the_event_as_the_route_says() -> None:
    per_route = Route(name="r", source="s", destination="d", lane="route")
    per_event = Route(name="r", source="s", destination="d", lane="event")
    assert lane_of(an_identity(), route("r")) == "USER|u1"
    assert lane_of(an_identity(), per_route) == ROUTE_LANE
    assert lane_of(an_identity(event="A"), per_event) != lane_of(an_identity(event="B"), per_event)


@pytest.mark.parametrize("nobody", [(None, None), ("USER", None), (None, "u1")])
def test_an_event_without_an_entity_is_its_own_lane(nobody: tuple[str | None, str | None]) -> None:
    one, other = an_identity(*nobody, "A"), an_identity(*nobody, "B")
    assert lane_of(one, route("r")) != lane_of(other, route("r"))
    assert lane_of(one, route("r")) == lane_of(one, route("r"))


@given(LETTERS, LETTERS, LETTERS, LETTERS)
def test_two_entities_share_a_lane_only_if_they_are_the_same(type1: str, id1: str, type2: str, id2: str) -> None:
    same = lane_of(an_identity(type1, id1), route("r")) == lane_of(an_identity(type2, id2), route("r"))
    assert same == ((type1, id1) == (type2, id2))


# --- Texts that no database takes: escaped where that is harmless, rejected where they must stay unchanged


TEXTS = st.text(st.characters(codec=None, categories=None), max_size=20)


@given(TEXTS)
def test_a_storable_text_can_be_encoded_has_no_nul_and_stays_as_it_is(text: str) -> None:
    written = make_storable(text)
    assert "\x00" not in written
    assert written.encode().decode() == written
    assert make_storable(written) == written
    assert (written == text) == is_storable(text)


@given(TEXTS, TEXTS)
def test_rows_are_written_storable_keys_too(key: str, text: str) -> None:
    (row,) = json.loads(rows_param([{"detail": {key: [text]}}]))
    assert row == {"detail": {make_storable(key): [make_storable(text)]}}


@given(TEXTS)
def test_a_text_that_must_stay_as_it_is_is_refused_instead(text: str) -> None:
    if is_storable(text):
        assert json.loads(json_text([{"id": text}])) == [{"id": text}]
    else:
        with pytest.raises(ValueError, match=r"NUL|surrogates"):
            json_text([{"id": text}])


def test_the_characters_that_json_writes_for_a_nul_are_no_nul() -> None:
    for text in (r"\u0000", r"\\u0000", r"a\b\u0000c"):
        assert json.loads(json_text([{"id": text}])) == [{"id": text}]
    assert json.loads(rows_param([{"id": "a\x00b\udc80"}])) == [{"id": r"a\x00b\udc80"}]
