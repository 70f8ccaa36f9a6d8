"""An answer that breaks HTTP/1's rules costs little, ends its call, and is never mixed up with another call's."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from inbox.config.values import Duration
from relay.http import client
from relay.http.answer import Answer
from relay.http.client import MAX_ANSWER
from relay.http.connection import LARGEST_HEAD, MOST_FIELDS, MOST_INTERIM
from tests.destinations.calling import Called
from tests.helpers.scripted import ScriptedServer, answer, raw, then_close

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
OWN = OK + b"Content-Length: 3\r\n\r\nown"


def interim(*statuses: int) -> bytes:
    return b"".join(f"HTTP/1.1 {status} Soon\r\nLink: </a>\r\n\r\n".encode() for status in statuses)


# --- what is no answer

SIZES = [b"-1", b"-5", b"+5", b"0x5", b"5_0", b" 5", b"5 ", b"5\t", b"", b"g", b"\xb2", b"F" * 17, b"5\r", b"5\n"]
CHUNKS = [
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhelloXX0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"5\r\nhello\r0\r\n\r\n",
    b'1;"\r"\r\nx\r\n',
    b"0\r\n" + b"X: 1\r\n" * (MOST_FIELDS + 1) + b"\r\n",
]
"""Lines that don't end with CRLF exactly, and a trailer of more fields than a head may have."""
FIELDS = [
    b"Content-Length: -5",
    b"Content-Length: +5",
    b"Content-Length: 5_0",
    b"Content-Length: 0x5",
    b"Content-Length: 5, 6",
    b"Content-Length:",
    b"Content-Length: 99999999999999999999999",
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding : chunked",
    b"X: a\x00b\r\nContent-Length: 5",
    b"X: a\rContent-Length: 5",
    b"X: a\r\n folded\r\nContent-Length: 5",
    b" X: a\r\nContent-Length: 5",
    b"No colon\r\nContent-Length: 5",
    b": no name\r\nContent-Length: 5",
    b"X\x01: a\r\nContent-Length: 5",
    b"X: 1\r\n" * MOST_FIELDS + b"X: 1",
    b"X: " + b"x" * (2 * LARGEST_HEAD),
]
"""A body is framed in two ways or in none, or there are too many fields or bytes."""
STATUS_LINES = [
    b"HTTP/1.1  200 OK",
    b"HTTP/1.1 20 OK",
    b"HTTP/1.1 2000 OK",
    b"HTTP/1.1 -200 OK",
    b"HTTP/1.1 +200 OK",
    b"HTTP/1.1 2_0 OK",
    b"HTTP/1.1 099 No",
    b"HTTP/1.1 \xb2\xb2\xb2 OK",
    b"HTTP/2.0 200 OK",
    b"HTTP/0.9 200 OK",
    b"HTTP/1.7 200 OK",
    b"http/1.1 200 OK",
    b"ICY 200 OK",
    b"HTTP/1.1",
]
PROTOCOL = "it switches to a protocol that was not requested"
UPGRADE = b"HTTP/1.1 101 Away\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
NO_ANSWERS = [
    *((CHUNKED + size + b"\r\nhello\r\n0\r\n\r\n", "") for size in SIZES),
    *((CHUNKED + chunks, "") for chunks in CHUNKS),
    *((OK + fields + b"\r\n\r\nhello", "") for fields in FIELDS),
    *((CHUNKED[:-2] + b"Transfer-Encoding: %b\r\n\r\n0\r\n\r\n" % coding, "") for coding in (b"chunked", b"gzip")),
    *((line + b"\r\nContent-Length: 5\r\n\r\nhello", "") for line in STATUS_LINES),
    (interim(*[103] * (MOST_INTERIM + 1)) + OWN, f"more than {MOST_INTERIM} interim responses"),
    *((before + OWN, PROTOCOL) for before in (interim(101), interim(103, 101), UPGRADE)),
]


@pytest.mark.parametrize(("sent", "why"), NO_ANSWERS, ids=lambda value: repr(value)[-60:])
def test_an_answer_that_breaks_the_rules_is_none_and_its_connection_is_not_used_again(
    stack: ExitStack, sent: bytes, why: str
) -> None:
    call = Called(stack, then_close(raw(sent)), raw(OWN), timeout=Duration(30))
    result = call()
    assert (result.error_class, result.call.sent) == ("unknown", "unknown")
    assert f"not an HTTP response: {why}" in (result.call.error or "")
    assert (call().body, [seen.connection for seen in call.server.seen]) == (b"own", [1, 2])


# --- what is one


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_leaves_none_for_the_next_call(stack: ExitStack, status: int) -> None:
    bodiless = f"HTTP/1.1 {status} Nothing\r\nContent-Length: 5\r\n\r\n".encode()
    call = Called(stack, raw(bodiless + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen"), raw(OWN))
    assert (call().call.status, call().body) == (status, b"own")
    assert [seen.connection for seen in call.server.seen] == [1, 2]


@pytest.mark.parametrize(
    "plain",
    [
        b"HTTP/1.1 204 Nothing\r\n\r\n",
        b"HTTP/1.1 304\r\nETag: x\r\n\r\n",
        b"HTTP/1.1 200 \r\ncontent-length:\t2 \t\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nTRANSFER-ENCODING:  Chunked \r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\nX:\r\nX: caf\xe9\r\nContent-Length: 2\r\n\r\nhi",
        CHUNKED + b'00005;name=value;other="a b"\r\nhello\r\n1\r\n!\r\n0\r\nDigest: x\r\n\r\n',
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
    ],
    ids=repr,
)
def test_an_answer_that_http_allows_is_read_and_the_connection_used_again(stack: ExitStack, plain: bytes) -> None:
    call = Called(stack, raw(plain), raw(OWN))
    result = call()
    assert (result.call.sent, call().body) == ("answered", b"own")
    assert result.body in {b"", b"hi", b"hello!"}
    assert [seen.connection for seen in call.server.seen] == [1, 1]


@pytest.mark.parametrize("line", [b"HTTP/1.0 200 OK", b"HTTP/1.1 200 OK"])
def test_a_body_without_a_length_ends_with_the_connection(stack: ExitStack, line: bytes) -> None:
    assert Called(stack, then_close(raw(line + b"\r\nX: y\r\n\r\nall of it")))().body == b"all of it"


@pytest.mark.parametrize("statuses", [(100,), (102,), (199,), (100, 102, 103, 103, 199), (103,) * MOST_INTERIM])
def test_interim_answers_are_read_past_however_slowly_they_come(stack: ExitStack, statuses: tuple[int, ...]) -> None:
    def slowly(_: ScriptedServer, connection: socket.socket) -> None:
        for byte in interim(*statuses) + OWN:
            connection.sendall(bytes([byte]))

    call = Called(stack, slowly)
    found = [call(), call()]
    assert [(each.body, each.call.status, each.link) for each in found] == [(b"own", 200, None)] * 2, "and their fields"
    assert [seen.connection for seen in call.server.seen] == [1, 1]


# --- whatever else goes wrong


@pytest.mark.parametrize(
    ("owner", "name", "sent"), [(client, "read_rate_hold", "unknown"), (client.HttpClient, "_send", "not_sent")]
)
def test_an_error_that_nobody_has_thought_of_is_an_answer_of_its_type_and_place_alone(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, sent: str
) -> None:
    def broken(*_: object) -> bytes:
        raise LookupError("s3cr3t-value")

    call = Called(stack, answer())
    monkeypatch.setattr(owner, name, broken)
    result = call()
    assert (result.error_class, result.call.sent) == (sent, sent)
    assert "a bug in the call: LookupError at " in (result.call.error or "")
    assert "s3cr3t" not in repr(result)
    assert len(call.server.seen) == (sent == "unknown")


# --- anything at all

_BEGINNINGS = st.sampled_from([OK, OK, CHUNKED, CHUNKED, OWN, interim(103) + OK, interim(101), UPGRADE, b""])
_PIECES = st.sampled_from(
    [
        *(b"\r\n", b"\n", b"\r", b"0\r\n\r\n", b"5\r\nhello\r\n", OK + b"Content-Length: 6\r\n\r\nstolen", *CHUNKS),
        *(line + b"\r\n" for line in (*STATUS_LINES, *FIELDS, *SIZES, b"Connection: close", b"Content-Length: 5")),
    ]
)
HOSTILE = st.tuples(_BEGINNINGS, st.lists(_PIECES | st.binary(max_size=20), max_size=8).map(b"".join)).map(b"".join)


MANY = 4 * settings().max_examples


class Pair:
    """A service whose first answer of two is hostile, and whose second is the call's own."""

    def __init__(self, stack: ExitStack) -> None:
        self._hostile = b""
        self._closes = True
        self._is_own = True
        self._has_ended = threading.Event()
        self.call = Called(stack, self._act, timeout=Duration(30))

    def _act(self, _: ScriptedServer, connection: socket.socket) -> None:
        self._is_own = not self._is_own
        if self._is_own:
            connection.sendall(OWN)
            return
        try:
            connection.sendall(self._hostile)
            if self._closes:
                connection.shutdown(socket.SHUT_WR)
        finally:  # the call may have closed it
            self._has_ended.set()

    def calls(self, hostile: bytes, *, closes: bool = True) -> tuple[Answer, Answer]:
        """Make two calls, of which the first gets this answer."""
        self._hostile, self._closes = hostile, closes
        self._has_ended.clear()
        first = self.call()
        assert self._has_ended.wait(60)  # or the next call might be made just before its end is seen
        return first, self.call()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with ExitStack() as made:
        yield Pair(made)


@settings(
    max_examples=MANY, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(hostile=HOSTILE)
@example(hostile=CHUNKED + b"-1\r\n" + b"x" * 100_000)
@example(hostile=CHUNKED + b"-5\r\n")
@example(hostile=OWN + OK + b"Content-Length: 6\r\n\r\nstolen")
def test_whatever_is_answered_the_call_ends_and_the_next_one_gets_its_own(pair: Pair, hostile: bytes) -> None:
    first, second = pair.calls(hostile)
    assert first.call.sent in {"answered", "unknown"}
    assert len(first.body) <= MAX_ANSWER + 1
    assert (second.error_class, second.body) == (None, b"own")


@settings(max_examples=MANY // 2, derandomize=True, database=None, deadline=None)
@given(hostile=HOSTILE)
def test_whatever_comes_behind_a_whole_answer_is_not_the_next_ones(pair: Pair, hostile: bytes) -> None:
    first, second = pair.calls(interim(103) + OK + b"Content-Length: 5\r\n\r\nfirst" + hostile, closes=False)
    assert (first.error_class, first.body) == (None, b"first")
    assert (second.error_class, second.body) == (None, b"own")
