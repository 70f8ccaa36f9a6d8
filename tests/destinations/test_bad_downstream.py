"""Bad responses: a call ends within half a second of its deadline, keeps at most 64 KiB, and never mixes up responses."""

from __future__ import annotations

import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from inbox.clock import steady
from inbox.config.model import ApiHeader
from inbox.config.values import Duration, Secret
from relay.http import client
from relay.http.client import MAX_ANSWER, Request
from relay.http.connection import LARGEST_HEAD, MOST_FIELDS, MOST_INTERIM
from relay.http.response import CallResult
from tests.destinations.calling import POST, Called, hang_lookups, make_client, resolve_to
from tests.helpers.delivering import context
from tests.helpers.scripted import (
    CERTIFICATE,
    Act,
    ScriptedServer,
    answer,
    drip,
    drip_body,
    drip_body_until_close,
    drip_chunks,
    drip_head,
    drip_status_line,
    hang,
    raw,
    reset,
    send_hundred_megabytes,
    serving,
    then_close,
)
from tests.helpers.waiting import Stopwatch

DEADLINE = 0.3
SLACK = 0.5
MEGABYTE = 1024 * 1024
CA = str(CERTIFICATE)


def run_in_time(call: Callable[[], CallResult], deadline: float = DEADLINE) -> CallResult:
    """Make a call that must end in time, and return its answer."""
    with Stopwatch() as watch:
        result = call()
    assert watch.seconds < deadline + SLACK
    return result


def endless(head: bytes, piece: bytes) -> Act:
    """Send `head`, then `piece` endlessly and fast."""
    many = piece * max(1, 65536 // len(piece))

    def sending(server: ScriptedServer, connection: socket.socket) -> None:
        connection.sendall(head)
        while not server.closing.is_set():
            connection.sendall(many)

    return sending


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


# --- before the request has left


def speak_plainly(server: ScriptedServer, connection: socket.socket) -> None:
    connection.sendall(OK + b"\r\n")
    hang(server, connection)


HALF_A_RECORD = b"\x16\x03\x03\x40\x00"
"""Head of a TLS record of 16 KiB that never arrives."""


@pytest.mark.parametrize("act", [drip(HALF_A_RECORD, b"\x02"), hang, speak_plainly], ids=["drips", "hangs", "plain"])
def test_a_tls_handshake_that_does_not_end_well_ends_the_call_unsent(act: Act) -> None:
    with serving(act, reads=False) as server:
        client = make_client(f"https://localhost:{server.port}", timeout=Duration(DEADLINE))
        result = run_in_time(lambda: client.call(POST, context()))
    assert (result.error_class, result.call.sent) == ("not_sent", "not_sent")


def test_a_name_server_that_hangs_is_given_up_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    with hang_lookups(monkeypatch):
        result = run_in_time(
            lambda: make_client("http://nowhere.example", timeout=Duration(0.3)).call(POST, context()), 0.3
        )
    assert (result.error_class, result.call.error) == ("not_sent", "not connected within 0.3 s")


def listen_without_accepting(stack: ExitStack, *hosts: str) -> int:
    """Listen on these hosts at one port without accepting connections, and return the port."""
    port = 0
    for host in hosts:
        listener = stack.enter_context(socket.create_server((host, port), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(4):  # beyond the backlog, the kernel drops connections
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((host, port))
    return port


def test_a_connection_that_is_not_accepted_is_given_up_with_the_lease(stack: ExitStack) -> None:
    client = make_client(f"http://127.0.0.1:{listen_without_accepting(stack, '127.0.0.1')}", timeout=Duration(30))
    began = steady()
    result = run_in_time(lambda: client.call(POST, context(lambda: began + DEADLINE)))
    assert (result.error_class, result.call.error) == ("lease_lost", "not made: the lease ended")


def test_addresses_of_which_none_answers_share_one_deadline(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to(*hosts))
    url = f"http://many.example:{listen_without_accepting(stack, *hosts)}"
    result = run_in_time(lambda: make_client(url, timeout=Duration(DEADLINE)).call(POST, context()))
    assert (result.error_class, result.call.sent) == ("not_sent", "not_sent")
    assert result.call.error == "not connected within 0.3 s"


# --- while it is on its way


def test_a_server_that_never_reads_is_cut_at_the_deadline() -> None:
    large = Request("forward", "POST", {}, body=bytes(16 * MEGABYTE))
    with serving(hang, reads=False) as server:
        result = run_in_time(lambda: make_client(server.url, timeout=Duration(DEADLINE)).call(large, context()))
    assert (result.error_class, result.call.sent) == ("unknown", "unknown")


def test_a_reset_before_anything_was_read_is_unknown_too_and_not_repeated() -> None:
    """The kernel may have accepted the request: only the other side knows its progress."""
    resets = []

    def reset_unread(server: ScriptedServer, connection: socket.socket) -> None:
        connection.recv(1, socket.MSG_PEEK)  # wait for the request
        resets.append(1)
        reset(server, connection)

    with serving(reset_unread, reads=False) as server:
        result = run_in_time(lambda: make_client(server.url, timeout=Duration(DEADLINE)).call(POST, context()))
    assert (result.error_class, result.call.sent) == ("unknown", "unknown")
    assert len(resets) == 1


# --- the answer

FLOODS = {
    "100s": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "103s": endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "no head": endless(b"", b"x"),
    "one header": endless(OK + b"X: ", b"x"),
    "chunk extension": endless(CHUNKED + b"1;", b"x"),
    "trailer": endless(CHUNKED + b"1\r\nx\r\n0\r\n", b"X: 1\r\n"),
}


@pytest.mark.parametrize("act", FLOODS.values(), ids=FLOODS)
def test_an_answer_without_an_end_ends_in_time_and_is_unknown(stack: ExitStack, act: Act) -> None:
    call = Called(stack, act, timeout=Duration(DEADLINE))
    result = run_in_time(call)
    assert (result.error_class, result.call.sent) == ("unknown", "unknown")
    assert len(call.server.seen) == 1


WAITS = {
    "nothing": hang,
    "status line": drip_status_line,
    "head": drip_head,
    "body": drip_body,
    "body until close": drip_body_until_close,
    "chunks": drip_chunks,
    "100s": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "trailer": drip(CHUNKED + b"1\r\nx\r\n0\r\n", b"X: 1\r\n"),
    "body of a 500": drip(b"HTTP/1.1 500 No\r\nContent-Length: 1000000\r\n\r\n", b"x"),
    "body of a redirect": drip(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 1000000\r\n\r\n", b"x"),
    "nothing after a 103": raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
}


@pytest.mark.parametrize("is_kept", [False, True], ids=["a new connection", "one that was kept"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_servers_that_hang_or_drip_are_cut_at_the_deadline(stack: ExitStack, tls: bool, is_kept: bool) -> None:
    """Run all at once, as each lasts until its deadline."""
    before = [answer()] if is_kept else []
    options: dict[str, Any] = {"tls": tls, "ca_file": CA if tls else None, "timeout": Duration(1)}
    calls = [Called(stack, *before, act, **options) for act in WAITS.values()]

    def cut(call: Called) -> tuple[str | None, str, str | None, bool, list[int]]:
        assert [call().error_class for _ in before] == [None] * is_kept
        result = run_in_time(call, 1)
        forgotten = not call.client._connection()[1].call._socket
        connections = [seen.connection for seen in call.server.seen]
        return result.error_class, result.call.sent, result.call.error, forgotten, connections

    with ThreadPoolExecutor(len(calls)) as pool:
        found = dict(zip(WAITS, pool.map(cut, calls), strict=True))
    expected = ("unknown", "unknown", "no complete response within 1 s", True, [1] * (1 + is_kept))
    too_many = (*expected[:2], "not an HTTP response: more than 8 interim responses", *expected[3:])
    assert found.pop("100s") in (too_many, expected), "whichever comes first"
    assert found == dict.fromkeys(WAITS.keys() - {"100s"}, expected)


@pytest.mark.parametrize("act", [hang, drip_body, drip_head])
def test_a_running_call_is_cut_when_the_lease_ends(stack: ExitStack, act: Act) -> None:
    call = Called(stack, act, answer(200, b"whole"), timeout=Duration(30))
    began = steady()
    result = run_in_time(lambda: call(within=context(lambda: began + 0.3)), 0.3)
    assert steady() - began > 0.2
    assert (result.error_class, result.call.sent) == ("lease_lost", "unknown")
    assert call().body == b"whole", "the next one is not cut"


def test_a_lease_that_is_renewed_while_the_call_runs_does_not_cut_it(stack: ExitStack) -> None:
    until = [steady() + 0.3]

    def answer_later(server: ScriptedServer, sock: socket.socket) -> None:
        until[0] += 60
        server.closing.wait(0.6)  # beyond the first lease
        answer(204)(server, sock)

    result = Called(stack, answer_later, timeout=Duration(30))(within=context(lambda: until[0]))
    assert result.error_class is None


# --- its size

LARGE = [
    (b"200 OK\r\nContent-Length: 104857600\r\n\r\n", None),
    (b"302 Found\r\nContent-Length: 104857600\r\n\r\n", "redirect"),
    (b"500 No\r\nContent-Length: 104857600\r\n\r\n", "server_error"),
    (b"200 OK\r\nConnection: close\r\n\r\n", None),
    (b"200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 104857600\r\n\r\n", None),
    (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6400000\r\n", None),
    (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n", None),
    (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "unknown"),
]


@pytest.mark.parametrize(("head", "error_class"), LARGE, ids=repr)
def test_at_most_64_kib_of_a_large_response_are_kept(stack: ExitStack, head: bytes, error_class: str | None) -> None:
    large = then_close(send_hundred_megabytes(b"HTTP/1.1 " + head))
    call = Called(stack, large, answer(200, b"own"), timeout=Duration(30))
    result, peak = measure_memory(lambda: run_in_time(call))
    kept = (True, 0) if error_class == "unknown" else (False, MAX_ANSWER + 1)
    assert (result.error_class, result.whole, len(result.body)) == (error_class, *kept)
    assert len(result.call.excerpt or "") <= 4096
    assert peak < MEGABYTE
    assert call().body == b"own"
    assert [seen.connection for seen in call.server.seen] == [1, 2], "what is left of it is not taken for an answer"


def test_small_chunks_without_an_end_are_kept_up_to_64_kib(stack: ExitStack) -> None:
    call = Called(stack, endless(CHUNKED, b"1\r\nx\r\n"), timeout=Duration(30))
    result, peak = measure_memory(call)
    assert (result.error_class, result.whole, len(result.body)) == (None, False, MAX_ANSWER + 1)
    assert peak < 16 * MEGABYTE


def measure_memory(call: Callable[[], CallResult]) -> tuple[CallResult, int]:
    """Return the answer and the peak memory in bytes."""
    tracemalloc.start()
    try:
        result = call()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
def test_no_redirect_gets_the_request_its_body_or_its_key_to_another_place(stack: ExitStack, status: int) -> None:
    other = stack.enter_context(serving(answer()))
    away = then_close(raw(f"HTTP/1.1 {status} Away\r\nLocation: {other.url}/x\r\nContent-Length: 0\r\n\r\n".encode()))
    call = Called(stack, away, timeout=Duration(30), auth=ApiHeader("X-Api-Key", Secret("k3y")))
    result = run_in_time(lambda: call(Request("update", "PATCH", {}, path="/contacts/1", body=b'{"name": "Ada"}')))
    assert (result.error_class, result.call.status, result.call.sent) == ("redirect", status, "answered")
    assert (len(call.server.seen), other.seen) == (1, [])


# --- responses that break HTTP/1's rules


OWN = OK + b"Content-Length: 3\r\n\r\nown"


def interim(*statuses: int) -> bytes:
    return b"".join(f"HTTP/1.1 {status} Soon\r\nLink: </a>\r\n\r\n".encode() for status in statuses)


# --- invalid responses

SIZES = [b"-1", b"-5", b"+5", b"0x5", b"5_0", b" 5", b"5 ", b"5\t", b"", b"g", b"\xb2", b"F" * 17, b"5\r", b"5\n"]
CHUNKS = [
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhelloXX0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"5\r\nhello\r0\r\n\r\n",
    b'1;"\r"\r\nx\r\n',
    b"0\r\n" + b"X: 1\r\n" * (MOST_FIELDS + 1) + b"\r\n",
]
"""Line ends other than CRLF, and too many trailer fields."""
FIELDS = [
    b"Content-Length: +5",
    b"Content-Length: 5_0",
    b"Content-Length: 5, 6",
    b"Content-Length:",
    b"Content-Length: 99999999999999999999999",
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: gzip",
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
"""Bodies framed twice or not at all, and too many fields or bytes."""
STATUS_LINES = [
    b"HTTP/1.1  200 OK",
    b"HTTP/1.1 20 OK",
    b"HTTP/1.1 2000 OK",
    b"HTTP/1.1 +200 OK",
    b"HTTP/1.1 099 No",
    b"HTTP/1.1 \xb2\xb2\xb2 OK",
    b"HTTP/2.0 200 OK",
    b"HTTP/1.7 200 OK",
    b"http/1.1 200 OK",
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
def test_an_invalid_response_is_unknown_and_closes_its_connection(stack: ExitStack, sent: bytes, why: str) -> None:
    call = Called(stack, then_close(raw(sent)), raw(OWN), timeout=Duration(30))
    result = call()
    assert (result.error_class, result.call.sent) == ("unknown", "unknown")
    assert f"not an HTTP response: {why}" in (result.call.error or "")
    assert (call().body, [seen.connection for seen in call.server.seen]) == (b"own", [1, 2])


# --- valid responses


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


# --- bugs


@pytest.mark.parametrize(
    ("owner", "name", "sent"), [(client, "read_rate_hold", "unknown"), (client.HttpClient, "_send", "not_sent")]
)
def test_bugs_have_no_text(
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


# --- random responses

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
    """A service with a hostile first response and a valid second one."""

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
        finally:  # the client may have closed the connection
            self._has_ended.set()

    def calls(self, hostile: bytes, *, closes: bool = True) -> tuple[CallResult, CallResult]:
        """Make two calls, the first with this response."""
        self._hostile, self._closes = hostile, closes
        self._has_ended.clear()
        first = self.call()
        assert self._has_ended.wait(60)  # or the next call may begin before its end is seen
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
def test_any_response_ends_the_call_and_the_next_call_gets_its_own(pair: Pair, hostile: bytes) -> None:
    first, second = pair.calls(hostile)
    assert first.call.sent in {"answered", "unknown"}
    assert len(first.body) <= MAX_ANSWER + 1
    assert (second.error_class, second.body) == (None, b"own")


@settings(max_examples=MANY // 2, derandomize=True, database=None, deadline=None)
@given(hostile=HOSTILE)
def test_bytes_after_a_response_are_not_taken_for_the_next_one(pair: Pair, hostile: bytes) -> None:
    first, second = pair.calls(interim(103) + OK + b"Content-Length: 5\r\n\r\nfirst" + hostile, closes=False)
    assert (first.error_class, first.body) == (None, b"first")
    assert (second.error_class, second.body) == (None, b"own")
