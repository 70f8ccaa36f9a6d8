"""Whatever the other side does, a call ends within half a second of its deadline and keeps at most 64 KiB of it."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from inbox.clock import steady
from inbox.config.model import ApiHeader
from inbox.config.values import Duration, Secret
from relay.http.answer import Answer
from relay.http.client import MAX_ANSWER, Request
from tests.destinations.calling import POST, Called, client_of, hanging_lookups, resolving_to
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
    hundred_megabytes,
    raw,
    reset,
    serving,
    then_close,
)
from tests.helpers.waiting import Stopwatch

DEADLINE = 0.3
SLACK = 0.5
MEGABYTE = 1024 * 1024
CA = str(CERTIFICATE)


def timed(call: Callable[[], Answer], deadline: float = DEADLINE) -> Answer:
    """The answer to a call that has ended in time."""
    with Stopwatch() as watch:
        result = call()
    assert watch.seconds < deadline + SLACK
    return result


def endless(head: bytes, piece: bytes) -> Act:
    """Send `head`, then `piece` as fast as it goes, for ever."""
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
"""A TLS record that announces 16 KiB and never gets there."""


@pytest.mark.parametrize("act", [drip(HALF_A_RECORD, b"\x02"), hang, speak_plainly], ids=["drips", "hangs", "plain"])
def test_a_tls_handshake_that_does_not_end_well_ends_the_call_unsent(act: Act) -> None:
    with serving(act, reads=False) as server:
        client = client_of(f"https://localhost:{server.port}", timeout=Duration(DEADLINE))
        result = timed(lambda: client.call(POST, context()))
    assert (result.error_class, result.call.sent) == ("not_sent", "not_sent")


def test_a_name_server_that_hangs_is_given_up_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging_lookups(monkeypatch):
        result = timed(lambda: client_of("http://nowhere.example", timeout=Duration(0.3)).call(POST, context()), 0.3)
    assert (result.error_class, result.call.error) == ("not_sent", "not connected within 0.3 s")


def accepting_nobody(stack: ExitStack, *hosts: str) -> int:
    """The port at which none of these accepts connections."""
    port = 0
    for host in hosts:
        listener = stack.enter_context(socket.create_server((host, port), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(4):  # more than the backlog: the kernel drops what follows
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((host, port))
    return port


def test_a_connection_that_is_not_accepted_is_given_up_with_the_lease(stack: ExitStack) -> None:
    client = client_of(f"http://127.0.0.1:{accepting_nobody(stack, '127.0.0.1')}", timeout=Duration(30))
    began = steady()
    result = timed(lambda: client.call(POST, context(lambda: began + DEADLINE)))
    assert (result.error_class, result.call.error) == ("lease_lost", "not made: the lease ended")


def test_addresses_of_which_none_answers_share_one_deadline(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to(*hosts))
    url = f"http://many.example:{accepting_nobody(stack, *hosts)}"
    result = timed(lambda: client_of(url, timeout=Duration(DEADLINE)).call(POST, context()))
    assert (result.error_class, result.call.sent) == ("not_sent", "not_sent")
    assert result.call.error == "not connected within 0.3 s"


# --- while it is on its way


def test_a_server_that_never_reads_is_cut_at_the_deadline() -> None:
    large = Request("forward", "POST", {}, body=bytes(16 * MEGABYTE))
    with serving(hang, reads=False) as server:
        result = timed(lambda: client_of(server.url, timeout=Duration(DEADLINE)).call(large, context()))
    assert (result.error_class, result.call.sent) == ("unknown", "unknown")


def test_a_reset_before_anything_was_read_is_unknown_too_and_not_repeated() -> None:
    """The kernel may have taken the request: nobody but the other side knows how far it came."""
    resets = []

    def reset_unread(server: ScriptedServer, connection: socket.socket) -> None:
        connection.recv(1, socket.MSG_PEEK)  # it has come
        resets.append(1)
        reset(server, connection)

    with serving(reset_unread, reads=False) as server:
        result = timed(lambda: client_of(server.url, timeout=Duration(DEADLINE)).call(POST, context()))
    assert (result.error_class, result.call.sent) == ("unknown", "unknown")
    assert len(resets) == 1


# --- the answer

FLOODS = {
    "100s": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "100s with a head": endless(b"", b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\n"),
    "102s": endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "103s": endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "no head": endless(b"", b"x"),
    "status line": endless(b"HTTP/1.1 200 ", b"x"),
    "head": endless(OK, b"X: 1\r\n"),
    "one header": endless(OK + b"X: ", b"x"),
    "size of a chunk": endless(CHUNKED, b"1"),
    "chunk extension": endless(CHUNKED + b"1;", b"x"),
    "trailer": endless(CHUNKED + b"1\r\nx\r\n0\r\n", b"X: 1\r\n"),
}


@pytest.mark.parametrize("act", FLOODS.values(), ids=FLOODS)
def test_an_answer_without_an_end_ends_in_time_and_is_unknown(stack: ExitStack, act: Act) -> None:
    call = Called(stack, act, timeout=Duration(DEADLINE))
    result = timed(call)
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
    """All at once, as each of them takes until its deadline."""
    before = [answer()] if is_kept else []
    options: dict[str, Any] = {"tls": tls, "ca_file": CA if tls else None, "timeout": Duration(1)}
    calls = [Called(stack, *before, act, **options) for act in WAITS.values()]

    def cut(call: Called) -> tuple[str | None, str, str | None, bool, list[int]]:
        assert [call().error_class for _ in before] == [None] * is_kept
        result = timed(call, 1)
        forgotten = not call.client._connection()[1].call._socket
        connections = [seen.connection for seen in call.server.seen]
        return result.error_class, result.call.sent, result.call.error, forgotten, connections

    with ThreadPoolExecutor(len(calls)) as pool:
        found = dict(zip(WAITS, pool.map(cut, calls), strict=True))
    expected = ("unknown", "unknown", "no complete response within 1 s", True, [1] * (1 + is_kept))
    too_many = (*expected[:2], "not an HTTP response: more than 8 interim answers", *expected[3:])
    assert found.pop("100s") in (too_many, expected), "whichever comes first"
    assert found == dict.fromkeys(WAITS.keys() - {"100s"}, expected)


@pytest.mark.parametrize("act", [hang, drip_body, drip_head])
def test_a_running_call_is_cut_when_the_lease_ends(stack: ExitStack, act: Act) -> None:
    call = Called(stack, act, answer(200, b"whole"), timeout=Duration(30))
    began = steady()
    result = timed(lambda: call(within=context(lambda: began + 0.3)), 0.3)
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
    (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7FFFFFFFFFFFFFFF\r\n", None),
    (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "unknown"),
    (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-100000000\r\n", "unknown"),
]


@pytest.mark.parametrize(("head", "error_class"), LARGE, ids=repr)
def test_of_a_hundred_megabytes_no_more_than_64_kib_is_kept(
    stack: ExitStack, head: bytes, error_class: str | None
) -> None:
    large = then_close(hundred_megabytes(b"HTTP/1.1 " + head))
    call = Called(stack, large, answer(200, b"own"), timeout=Duration(30))
    result, peak = measured(lambda: timed(call))
    kept = (True, 0) if error_class == "unknown" else (False, MAX_ANSWER + 1)
    assert (result.error_class, result.whole, len(result.body)) == (error_class, *kept)
    assert len(result.call.excerpt or "") <= 4096
    assert peak < MEGABYTE
    assert call().body == b"own"
    assert [seen.connection for seen in call.server.seen] == [1, 2], "what is left of it is not taken for an answer"


def test_small_chunks_without_an_end_are_kept_up_to_64_kib(stack: ExitStack) -> None:
    call = Called(stack, endless(CHUNKED, b"1\r\nx\r\n"), timeout=Duration(30))
    result, peak = measured(call)
    assert (result.error_class, result.whole, len(result.body)) == (None, False, MAX_ANSWER + 1)
    assert peak < 16 * MEGABYTE


def measured(call: Callable[[], Answer]) -> tuple[Answer, int]:
    """The answer, and how many bytes were in use at most meanwhile."""
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
    result = timed(lambda: call(Request("update", "PATCH", {}, path="/contacts/1", body=b'{"name": "Ada"}')))
    assert (result.error_class, result.call.status, result.call.sent) == ("redirect", status, "answered")
    assert (len(call.server.seen), other.seen) == (1, [])
