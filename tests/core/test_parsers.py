"""Parsers of untrusted input: they read it as its format says, or raise their one error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox import errors
from inbox.config.routing import list_passed_headers
from inbox.config.sources import NoAuth, Source, UrlTokenAuth
from inbox.config.values import Secret
from inbox.events import strict_json, timestamps
from inbox.events.event import RawRequest
from inbox.http import head
from inbox.http.limits import LEAST_BURST, MEMORY_FOR_BODY, SMALL_BODY, Bucket, MemoryBudget, Reservation
from inbox.loader.load import parse_config
from inbox.sources import build_preset
from inbox.sources.normalize import kept_headers
from relay.http import client as http_client
from tests.helpers.webhooks import mistake
from tests.sources import test_secevent as secevent
from tests.sources.presenting import NOW

JSON_MARKS = '{}[]",:\\u019dDeE+-.aNIntrlfs \n\x00\ufeff\ud7ff'
SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers())


class Parser(NamedTuple):
    """A parser, with inputs that come near to its format, and a check of everything that it accepts."""

    inputs: st.SearchStrategy[Any]
    read: Callable[[Any], None]
    refusal: type[Exception]


def read_time(text: str) -> None:
    assert isinstance(timestamps.parse_rfc3339(text), int)


def read_json(body: bytes) -> None:
    json.dumps(strict_json.parse(body), allow_nan=False, ensure_ascii=False).encode()


HEADS = st.tuples(
    st.sampled_from(["1.1", "1.1", "1.0", "0.9", "2.0"]),
    st.sampled_from([b"/", b"/a?b", b"http://a/"]) | st.binary(max_size=30),
    st.lists(
        st.sampled_from([(b"host", b"a"), (b"expect", b"100-continue"), (b"transfer-encoding", b"chunked")])
        | st.tuples(
            st.sampled_from([b"host", b"content-type", b"transfer-encoding", b"expect", b"x-a"]),
            st.sampled_from([b"", b"a", b"gzip, chunked"]) | st.binary(max_size=20),
        ),
        max_size=5,
    ),
)


def read_head(drawn: tuple[str, bytes, list[tuple[bytes, bytes]]]) -> None:
    version, target, fields = drawn
    head.check(version, target, fields)
    names = [name for name, _ in fields]
    assert version == "1.0" or (version == "1.1" and names.count(b"host") == 1)
    assert all(names.count(name) <= 1 for name in (b"host", b"content-type", b"transfer-encoding", b"expect"))
    assert dict(fields).get(b"transfer-encoding", b"chunked").lower() == b"chunked"
    assert target.startswith((b"/", b"http"))


def read_token(body: bytes) -> None:
    value, lasts = http_client.read_token(body)
    assert re.fullmatch(r"[!-~]+", value)
    assert 0 <= lasts <= 10**9


SIGNALS = secevent.trust(secevent.ALL)


def read_security_event_token(body: bytes) -> None:
    SIGNALS.verify(secevent.as_request(body), NOW)
    raise AssertionError("it is not signed")


TOKEN_HEADERS = st.fixed_dictionaries(
    {"kid": st.text(max_size=20), "alg": st.sampled_from(["RS256", "ES256", "EdDSA", 5, None])}
).map(secevent.segment)
KEY_MEMBERS = st.dictionaries(
    st.sampled_from(["kty", "crv", "alg", "use", "key_ops", "kid", "n", "e", "x", "y", "d", "k"]),
    st.none() | st.integers() | st.text(max_size=20) | st.lists(st.text(max_size=5), max_size=2)
    | st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "RS256", "sig", "AQAB"]),
)  # fmt: skip
JWK = secevent.jwk(secevent.RSA)


def read_key(members: dict[str, object]) -> None:
    secevent.trust(secevent.as_jwks({**JWK, **members}))


def read_config(text: str) -> None:
    parse_config(text)


PARSERS = {
    "times": Parser(st.text() | st.text(alphabet="0123456789-:TZtz+. ٣", max_size=40), read_time, ValueError),
    "JSON": Parser(st.binary() | st.text(alphabet=JSON_MARKS).map(str.encode), read_json, errors.Unreadable),
    "heads": Parser(HEADS, read_head, errors.RequestError),
    "tokens": Parser(
        st.binary(max_size=200)
        | st.dictionaries(st.sampled_from(["access_token", "token_type", "expires_in", "scope"]), SIMPLE).map(
            lambda made: json.dumps(made).encode()
        ),
        read_token,
        errors.UnusableResponse,
    ),
    "security event tokens": Parser(
        st.tuples(st.binary(max_size=40) | TOKEN_HEADERS, st.binary(max_size=40), st.binary(max_size=40)).map(b".".join)
        | st.lists(st.binary(max_size=40), max_size=5).map(b".".join),
        read_security_event_token,
        errors.NotAuthenticated,
    ),
    "keys": Parser(KEY_MEMBERS, read_key, errors.ConfigError),
    "configurations": Parser(st.text(alphabet="[]{}=\"'.,#\n\\ ab1-"), read_config, errors.ConfigError),
}


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_any_input_is_read_as_its_format_says_or_refused(name: str, data: st.DataObject) -> None:
    parser = PARSERS[name]
    drawn = data.draw(parser.inputs)
    try:
        parser.read(drawn)
    except parser.refusal as error:
        str(getattr(error, "detail", error)).encode()  # an answer or a log repeats it, and it must be writable


# --- times


SECOND = 1_000_000_000
OFFSETS = st.integers(-(24 * 60 - 1), 24 * 60 - 1).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=OFFSETS)  # noqa: DTZ001  # bounds are naive
INSTANTS = st.integers(-62_135_596_800 * SECOND, 253_402_300_800 * SECOND - 1)


@given(MOMENTS)
def test_parsing_agrees_with_the_calendar_of_the_standard_library(moment: datetime) -> None:
    assert timestamps.parse_rfc3339(moment.isoformat()) == timestamps.to_nanoseconds(moment)


@given(st.integers(0, SECOND - 1))
def test_no_digit_of_a_nanosecond_is_lost_or_rounded(fraction: int) -> None:
    assert timestamps.parse_rfc3339(f"1970-01-01T00:00:00.{fraction:09d}Z") == fraction


@given(INSTANTS)
def test_a_number_becomes_a_datetime_and_back_to_the_microsecond(instant: int) -> None:
    moment = timestamps.to_datetime(instant)
    assert moment.tzinfo is UTC
    assert timestamps.to_nanoseconds(moment) == instant // 1000 * 1000


@given(INSTANTS, INSTANTS)
def test_the_fixed_width_text_sorts_as_time_does(one: int, other: int) -> None:
    first, second = timestamps.format_fixed_width(one), timestamps.format_fixed_width(other)
    assert len(first) == len(second) == 30
    assert (first < second) == (one < other)


@pytest.mark.parametrize("year", [0, 10_000])
def test_instants_outside_the_calendar_are_refused(year: int) -> None:
    with pytest.raises(ValueError, match="outside the years 1 to 9999"):
        timestamps.to_datetime((year - 1970) * 366 * 86_400 * SECOND)


REFUSED = (
    "", "now", "infinity", "1704067200", "2024-01-01", "2024-01-01T00:00:00", "2024-01-01 00:00:00Z", "2024-01-01T00:00Z",
    "2024-01-01T24:00:00Z", "2016-12-31T23:59:60Z", "2024-02-30T00:00:00Z", "2023-02-29T00:00:00Z", "1900-02-29T00:00:00Z",
    "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "2024-W01-1T00:00:00Z", "2024-01-01T00:00:00EST",
    "2024-01-01T00:00:00+24:00", "2024-01-01T00:00:00+00:60", "2024-01-01T00:00:00+0000", "2024-01-01T00:00:00,5Z",
    "2024-01-01T00:00:00.Z", "2024-01-01T00:00:00.1234567890Z", "2024-01-01T00:00:00Z\n", " 2024-01-01T00:00:00Z",
    "202\N{FULLWIDTH DIGIT FOUR}-01-01T00:00:00Z", "2024-01-01T00:00:0٣Z", "2024-13-01T00:00:00Z", "2024-1-01T00:00:00Z",
)  # fmt: skip
SAME = (
    "2019-01-01T00:00:00Z", "2019-01-01t00:00:00z", "2019-01-01T00:00:00+00:00", "2019-01-01T00:00:00-00:00",
    "2019-01-01T00:00:00.000000000Z", "2019-01-01T02:00:00+02:00", "2018-12-31T18:30:00-05:30",
)  # fmt: skip
"""Spellings of one instant."""


@pytest.mark.parametrize("text", REFUSED)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be|names no|has an offset"):
        timestamps.parse_rfc3339(text)


def test_every_spelling_of_an_instant_is_that_instant() -> None:
    assert {timestamps.parse_rfc3339(text) for text in SAME} == {1_546_300_800 * SECOND}
    assert timestamps.parse_rfc3339("0001-01-01T00:00:00.000000001+23:59") < timestamps.parse_rfc3339(
        "0001-01-01T00:00:00Z"
    )
    assert timestamps.parse_rfc3339("9999-12-31T23:59:59-23:59") > timestamps.parse_rfc3339("9999-12-31T23:59:59Z")


MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T10:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("2026-01-31T10:00:05", datetime(2026, 1, 31, 10, 0, 5, tzinfo=UTC)),
        ("2026-01-31T10:00:05.123Z", datetime(2026, 1, 31, 10, 0, 5, 123_000, tzinfo=UTC)),
        ("2026-01-31 10:00:05.123456Z", datetime(2026, 1, 31, 10, 0, 5, 123_456, tzinfo=UTC)),
        ("2026-01-31T12:00:05+02:00", datetime(2026, 1, 31, 10, 0, 5, tzinfo=UTC)),
        ("30s", NOW - timedelta(seconds=30)),
        ("15m", NOW - timedelta(minutes=15)),
        ("1h", NOW - timedelta(hours=1)),
        ("2d", NOW - timedelta(days=2)),
        ("1w", NOW - timedelta(weeks=1)),
        ("1h30m", NOW - timedelta(hours=1, minutes=30)),
        ("yesterday", MIDNIGHT - timedelta(days=1)),
        ("today", MIDNIGHT),
        ("00:00", MIDNIGHT),
        ("23:59", MIDNIGHT - timedelta(minutes=1)),
    ],
)
def test_a_time_is_a_printed_one_a_date_a_time_of_day_or_a_span_back_from_now(given: str, meant: datetime) -> None:
    assert timestamps.parse_time(given, NOW) == meant


@pytest.mark.parametrize(
    "given",
    ["", "tomorrow", "24:00", "9:00", "1h30", "1", "-1h", "1y", "2026-13-01", "2026-01-31Z", "999999999w", "٣h"],
)
def test_any_other_time_is_an_error_with_the_valid_forms(given: str) -> None:
    with pytest.raises(ValueError, match=r"2026-01-31T10:00:00.123Z.* a date .*1h"):
        timestamps.parse_time(given, NOW)


# --- `pass_headers` of a forward destination: the names that it may have, and the headers that the receiver stores


RECEIVED = datetime(2026, 1, 1, tzinfo=UTC)
FILE = """\
[sources.github]
preset = "github"
secrets = ["env:GITHUB_SECRET"]
[sources.acme]
preset = "trivore"
auth = { kind = "header", name = "X-Acme-Key", secrets = ["env:ACME_KEY"] }
[destinations.ours]
kind = "forward"
url = "https://ours.example.com/hook"
pass_headers = [NAMES]
[routes.github-to-ours]
source = "github"
destination = "ours"
[routes.acme-to-ours]
source = "acme"
destination = "ours"
"""
WHERE = "inbox.toml:10: [destinations.ours] pass_headers[0]: "
"""Begin of every mistake."""
CONNECTION = "belongs to the connection, and is never passed on; remove it"
SECRET = "is named as a header with a secret, and is never stored; remove it"
ADDED = "is a header that the relay adds itself; remove it"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, f"{name!r} {CONNECTION}") for name in ("Host", "connection", "TE", "Content-Length", "Via")),
        *(
            (name, f"{name!r} {CONNECTION}")
            for name in ("X-Forwarded-Uri", "X-Original-URL", "X-Rewrite-Url", "Referer")
        ),
        *((name, f"{name!r} {SECRET}") for name in ("Authorization", "Cookie", "set-cookie", "X-Gitlab-Token")),
        *((name, f"{name!r} {SECRET}") for name in ("X-API-Key", "X-Hub-Signature-256", "X-Auth-Request-User")),
        *((name, f"{name!r} {ADDED}") for name in ("Webhook-Id", "webhook-other", "Inbox-Seq", "User-Agent", "Accept")),
        ("X Y", "'X Y' is not a header name; write one such as X-GitHub-Event"),
        ("", "'' is not a header name; write one such as X-GitHub-Event"),
        ("X-A: b\\r\\nX-C", "'X-A: b\\r\\nX-C' is not a header name; write one such as X-GitHub-Event"),
    ],
)
def test_a_header_that_can_not_be_passed_on_is_a_mistake_at_the_start(name: str, why: str) -> None:
    assert mistake(FILE.replace("NAMES", f'"{name}"')) == f"{WHERE}{why}"


def test_the_receiver_stores_what_a_destination_of_the_source_passes_on_and_of_no_other_source() -> None:
    config = parse_config(FILE.replace("NAMES", '"X-GitHub-Hook-ID"').partition("[routes.acme-to-ours]")[0])
    routes, destinations = config.routes.values(), config.destinations
    assert list_passed_headers("github", routes, destinations) == {"x-github-hook-id"}
    assert list_passed_headers("acme", routes, destinations) == set()
    asks_for_a_secret = {"ours": msgspec.structs.replace(destinations["ours"], pass_headers=["Cookie", "X-Kind"])}
    assert list_passed_headers("github", routes, asks_for_a_secret) == {"x-kind"}, (
        "a file with a mistake may be read as well"
    )

    source = config.sources["github"]
    raw = RawRequest("github", {"x-github-hook-id": "7", "x-other": "8"}, b"{}", RECEIVED)
    assert kept_headers(source, build_preset(source), raw) == {}
    assert kept_headers(source, build_preset(source, frozenset({"x-github-hook-id"})), raw) == {"x-github-hook-id": "7"}


def test_a_passed_header_that_has_the_token_of_the_url_is_not_stored() -> None:
    source = Source(name="chat", preset="trivore", auth=UrlTokenAuth(secrets=[Secret("a-token")]))
    preset = build_preset(source, frozenset({"x-uri", "x-kind"}))
    headers = {"x-uri": "/webhooks/chat/a-token", "x-kind": "message", "user-agent": "a-token/1"}
    raw = RawRequest("chat", headers, b"{}", RECEIVED, url_token="a-token")
    assert kept_headers(source, preset, raw) == {"x-kind": "message", "user-agent": "a-token/1"}
    assert build_preset(Source(name="s", preset="trivore", auth=NoAuth())).kept_headers == frozenset()


# --- heads of requests


HOST = (b"host", b"example.com")


@pytest.mark.parametrize(
    "host",
    ["", "example.com", "example.com:8000", "EXAMPLE.com.", "127.0.0.1", "[::1]", "[2001:db8::1]:443", "my_host", "a:"],
)
def test_every_spelling_of_a_host_is_taken(host: str) -> None:
    head.check("1.1", b"/webhooks/a", [(b"host", host.encode())])


@pytest.mark.parametrize("host", ["a b", "a/b", "a@b", "a:b", "a:123456", "[::1", "::1", "\xff", "a?b", "a#b", "[]"])
def test_anything_but_a_host_is_refused(host: str) -> None:
    with pytest.raises(errors.Unreadable):
        head.check("1.1", b"/", [(b"host", host.encode("latin-1"))])


@pytest.mark.parametrize("target", [b"http://example.com/a", b"HTTPS://EXAMPLE.COM/", b"/", b"/a?b=c", b"/a//b"])
def test_a_path_or_the_url_of_the_same_host_is_taken(target: bytes) -> None:
    head.check("1.1", target, [HOST])


@pytest.mark.parametrize(
    "target",
    [
        b"*", b"//a", b"a", b"http://other/a", b"http://example.com", b"http://a@example.com/",
        b"ftp://example.com/", b"/#",
    ],
)  # fmt: skip
def test_any_other_target_is_refused(target: bytes) -> None:
    with pytest.raises(errors.Unreadable):
        head.check("1.1", target, [HOST])


FIELDS = [HOST, (b"content-type", b"a"), (b"transfer-encoding", b"chunked"), (b"expect", b"100-continue")]


@pytest.mark.parametrize("twice", FIELDS, ids=lambda field: field[0])
def test_a_field_that_may_come_once_is_refused_twice(twice: tuple[bytes, bytes]) -> None:
    head.check("1.1", b"/", FIELDS)
    with pytest.raises(errors.RequestError):
        head.check("1.1", b"/", [*FIELDS, twice])


@given(st.lists(st.integers(0, 2 * head.LONGEST_FIELD), max_size=2 * head.MOST_FIELDS))
def test_a_head_is_taken_when_its_fields_are_within_every_limit_and_only_then(values: list[int]) -> None:
    fields = [HOST, *((b"x", b"a" * size) for size in values)]
    sizes = [len(name) + len(value) + 4 for name, value in fields]
    within = len(sizes) <= head.MOST_FIELDS and max(sizes) <= head.LONGEST_FIELD and sum(sizes) <= head.LARGEST_HEAD
    try:
        head.check("1.1", b"/", fields)
        head.check_size(b"/", fields)
    except errors.HeadTooLarge:
        assert not within
    else:
        assert within


def test_a_head_that_does_not_end_is_told_by_what_is_too_long_in_it() -> None:
    assert isinstance(head.make_unfinished_error(b"/" * (head.LONGEST_TARGET + 1)), errors.TargetTooLong)
    assert isinstance(head.make_unfinished_error(b"/"), errors.HeadTooLarge)


# --- limits


@given(rate=st.floats(0.001, 1e6), steps=st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_never_more_come_through_than_the_rate_and_one_burst(rate: float, steps: list[float]) -> None:
    bucket, now, through = Bucket(rate), 0.0, 0
    for step in steps:
        now += step
        through += bucket.take(now) == 0
    assert through <= max(LEAST_BURST, rate) + rate * now + 0.001


@given(rate=st.floats(0.001, 1e6), asked=st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_a_sender_that_waits_as_long_as_it_is_told_gets_through(rate: float, asked: list[float]) -> None:
    bucket, now = Bucket(rate), 0.0
    for step in asked:
        now += step
        wait = bucket.take(now)
        if wait:
            now += wait * 1.000001 + 1e-9
            assert bucket.take(now) == 0


def test_bodies_share_a_room_that_small_ones_take_nothing_of() -> None:
    room = MemoryBudget(100 * MEMORY_FOR_BODY)
    small, one, other = ([Reservation(room) for _ in range(number)] for number in (1000, 1, 1))
    for place in small:
        place.grow(SMALL_BODY)
    one[0].grow(SMALL_BODY + 60)
    one[0].grow(SMALL_BODY + 80)
    with pytest.raises(errors.Unavailable):
        other[0].grow(SMALL_BODY + 21)
    other[0].grow(SMALL_BODY + 20)
    for place in (*small, *one, *one):
        place.release()
    with pytest.raises(errors.Unavailable):
        one[0].grow(SMALL_BODY + 81)
    one[0].grow(SMALL_BODY + 80)
