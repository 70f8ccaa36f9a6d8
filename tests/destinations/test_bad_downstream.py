"""Whatever the other side does, a call ends within half a second of its deadline and keeps at most 64 KiB of it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from inbox.config.endpoint import ApiHeader
from inbox.config.types import Duration, Secret
from relay.http.answer import Answer
from relay.http.client import MAX_ANSWER, Request
from tests.destinations.calling import POST, Called, client_of
from tests.destinations.scripted import (
    CERTIFICATE,
    Act,
    ScriptedServer,
    answer,
    drip,
    drip_body,
    drip_head,
    hang,
    raw,
    serving,
    then_close,
)
from tests.helpers.delivering import context

DEADLINE = 0.5
SLACK = 0.5
MEGABYTE = 1024 * 1024


@contextlib.contextmanager
def accepting(behave: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """The address of a server that does this with each connection at once, before it has read anything."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                behave(connection, over)

    thread = threading.Thread(target=accept)
    thread.start()
    yield f"localhost:{listener.getsockname()[1]}"
    over.set()
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


def timed(call: Callable[[], Answer]) -> Answer:
    """The answer to a call that has ended in time."""
    began = time.monotonic()
    result = call()
    took = time.monotonic() - began
    assert took < DEADLINE + SLACK, f"it took {took:.2f} s"
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


def drip_greeting(connection: socket.socket, over: threading.Event) -> None:
    """A TLS record that announces 16 KiB and never gets there."""
    connection.sendall(b"\x16\x03\x03\x40\x00")
    while not over.wait(0.05):
        connection.sendall(b"\x02")


def say_nothing(_: socket.socket, over: threading.Event) -> None:
    over.wait()


def speak_plainly(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(OK + b"\r\n")
    over.wait()


@pytest.mark.parametrize("behave", [drip_greeting, say_nothing, speak_plainly])
def test_a_tls_handshake_that_does_not_end_well_ends_the_call_unsent(
    behave: Callable[[socket.socket, threading.Event], None],
) -> None:
    with accepting(behave) as address:
        result = timed(lambda: client_of(f"https://{address}", timeout=Duration(DEADLINE)).call(POST, context()))
    assert (result.error_class, result.call.sent) == ("not_sent", "not_sent")


def slow_lookup(seconds: float, *addresses: str) -> Callable[..., list[Any]]:
    """In place of getaddrinfo: it takes its time and finds these."""

    def resolve(_host: str, port: int, **_: object) -> list[Any]:
        threading.Event().wait(seconds)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return resolve


def test_a_slow_lookup_is_part_of_the_deadline(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", slow_lookup(0.35, "127.0.0.1"))
    server = stack.enter_context(serving(drip(OK, b"X: 1\r\n")))
    client = client_of(f"http://slow.example:{server.port}", timeout=Duration(DEADLINE))
    stack.callback(client.close)
    assert timed(lambda: client.call(POST, context())).error_class == "unknown"
    assert len(server.seen) == 1


def test_addresses_of_which_none_answers_share_one_deadline(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", slow_lookup(0, "127.0.0.1", "127.0.0.2", "127.0.0.3"))
    first = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    port = first.getsockname()[1]
    for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        if host != "127.0.0.1":
            stack.enter_context(socket.create_server((host, port), backlog=0))
        for _ in range(4):  # more than the backlog: the kernel drops what follows
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((host, port))
    result = timed(lambda: client_of(f"http://many.example:{port}", timeout=Duration(DEADLINE)).call(POST, context()))
    assert (result.error_class, result.call.sent) == ("not_sent", "not_sent")


# --- while it is on its way


def test_a_server_that_never_reads_is_cut_at_the_deadline() -> None:
    large = Request("forward", "POST", {}, body=bytes(16 * MEGABYTE))
    with accepting(say_nothing) as address:
        result = timed(lambda: client_of(f"http://{address}", timeout=Duration(DEADLINE)).call(large, context()))
    assert (result.error_class, result.call.sent) == ("unknown", "unknown")


def reset_unread(connection: socket.socket, _: threading.Event) -> None:
    connection.recv(1, socket.MSG_PEEK)  # it has come
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_reset_before_anything_was_read_is_unknown_too_and_not_repeated() -> None:
    """The kernel may have taken the request: nobody but the other side knows how far it came."""
    resets = []

    def counting(connection: socket.socket, over: threading.Event) -> None:
        resets.append(1)
        reset_unread(connection, over)

    with accepting(counting) as address:
        result = timed(lambda: client_of(f"http://{address}", timeout=Duration(DEADLINE)).call(POST, context()))
    assert (result.error_class, result.call.sent) == ("unknown", "unknown")
    assert len(resets) == 1


# --- the answer


@pytest.mark.parametrize(
    "act",
    [
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        endless(b"", b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\n"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
        endless(b"", b"x"),
        endless(b"HTTP/1.1 200 ", b"x"),
        endless(OK, b"X: 1\r\n"),
        endless(OK + b"X: ", b"x"),
        endless(CHUNKED, b"1"),
        endless(CHUNKED + b"1;", b"x"),
        drip(CHUNKED + b"1\r\nx\r\n0\r\n", b"X: 1\r\n"),
        endless(CHUNKED + b"1\r\nx\r\n0\r\n", b"X: 1\r\n"),
        drip(b"HTTP/1.1 500 No\r\nContent-Length: 1000000\r\n\r\n", b"x"),
        drip(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 1000000\r\n\r\n", b"x"),
    ],
    ids=[
        "100s", "100s with a head", "dripping 100s", "102s", "103s", "no head", "status line", "head", "one header",
        "size of a chunk", "chunk extension", "dripping trailer", "trailer", "dripping 500", "dripping redirect",
    ],
)  # fmt: skip
def test_an_answer_without_an_end_ends_in_time_and_is_unknown(stack: ExitStack, act: Act) -> None:
    call = Called(stack, act, timeout=Duration(DEADLINE))
    result = timed(call)
    assert (result.error_class, result.call.sent) == ("unknown", "unknown")
    assert len(call.server.seen) == 1


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("act", [hang, drip_body, drip_head])
def test_a_connection_that_was_kept_is_cut_in_time_too(stack: ExitStack, act: Act, tls: bool) -> None:
    ca_file = str(CERTIFICATE) if tls else None
    call = Called(stack, answer(), act, tls=tls, ca_file=ca_file, timeout=Duration(DEADLINE))
    assert call().error_class is None
    assert timed(call).error_class == "unknown"
    assert [seen.connection for seen in call.server.seen] == [1, 1]


LARGE = {
    "announced": b"Content-Length: 104857600\r\n\r\n",
    "until close": b"Connection: close\r\n\r\n",
    "one chunk": b"Transfer-Encoding: chunked\r\n\r\n6400000\r\n",
    "encoded": b"Content-Encoding: gzip\r\nContent-Length: 104857600\r\n\r\n",
}


@pytest.mark.parametrize("status", [200, 302, 500])
@pytest.mark.parametrize("head", LARGE.values(), ids=LARGE.keys())
def test_of_a_hundred_megabytes_no_more_than_64_kib_is_kept(stack: ExitStack, status: int, head: bytes) -> None:
    def hundred_megabytes(_: ScriptedServer, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 %d Whatever\r\n" % status + head)
        for _chunk in range(1600):
            connection.sendall(MEGABYTES)

    call = Called(stack, hundred_megabytes, answer(), timeout=Duration(DEADLINE))
    result, peak = measured(lambda: timed(call))
    assert (result.call.status, result.whole, len(result.body)) == (status, False, MAX_ANSWER + 1)
    assert len(result.call.excerpt or "") <= 4096
    assert peak < MEGABYTE
    assert call().error_class is None
    assert [seen.connection for seen in call.server.seen] == [1, 2], "what is left of it is not taken for an answer"


MEGABYTES = b"x" * 65536


def test_small_chunks_without_an_end_are_kept_up_to_64_kib(stack: ExitStack) -> None:
    call = Called(stack, endless(CHUNKED, b"1\r\nx\r\n"), timeout=Duration(5))
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
    call = Called(stack, away, timeout=Duration(DEADLINE), auth=ApiHeader("X-Api-Key", Secret("k3y")))
    result = timed(lambda: call(Request("update", "PATCH", {}, path="/contacts/1", body=b'{"name": "Ada"}')))
    assert (result.error_class, result.call.status, result.call.sent) == ("redirect", status, "answered")
    assert (len(call.server.seen), other.seen) == (1, [])
