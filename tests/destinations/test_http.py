"""A call ends, and what is known of it then."""

from __future__ import annotations

import errno
import socket
import threading
from contextlib import ExitStack
from typing import Any

import pytest

from inbox.clock import steady
from inbox.config.types import Duration
from relay.http import guard
from tests.destinations.calling import POST, Called, client_of
from tests.destinations.scripted import (
    CERTIFICATE,
    Act,
    ScriptedServer,
    answer,
    closed_port,
    drip_body,
    drip_body_until_close,
    drip_chunks,
    drip_head,
    drip_status_line,
    hang,
    raw,
    reset,
    serving,
    then_close,
)
from tests.helpers.delivering import context

# --- a call ends


@pytest.mark.parametrize(
    "act",
    [hang, drip_status_line, drip_head, drip_body, drip_body_until_close, drip_chunks],
    ids=["hang", "status line", "head", "body", "body until close", "chunks"],
)
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_server_that_hangs_or_drips_is_cut_at_the_deadline(stack: ExitStack, act: Act, tls: bool) -> None:
    call = Called(stack, act, tls=tls, ca_file=str(CERTIFICATE) if tls else None, timeout=Duration(0.5))
    began = steady()
    result = call()
    assert 0.4 < steady() - began < 1.0
    assert result.error_class == "unknown"
    assert result.call.sent == "unknown"
    assert result.call.error == "no whole answer within 0.5 s"
    assert not call.client._connection()[1].call._socket


def test_a_server_that_does_not_shake_hands_is_cut_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = client_of(f"https://localhost:{listener.getsockname()[1]}", timeout=Duration(0.4))
        began = steady()
        result = client.call(POST, context())
    assert steady() - began < 0.9
    assert (result.error_class, result.call.sent) == ("not_sent", "not_sent")


def test_a_connection_that_is_not_accepted_is_given_up_at_the_deadline_and_with_the_lease() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # more than the backlog: the kernel drops what follows
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        began = steady()
        timed_out = client_of(url, timeout=Duration(0.4)).call(POST, context())
        lost = client_of(url, timeout=Duration(30)).call(POST, context(lambda: began + 0.8))
        assert steady() - began < 1.8
    assert (timed_out.error_class, timed_out.call.error) == ("not_sent", "not connected within 0.4 s")
    assert (lost.error_class, lost.call.error) == ("lease_lost", "not made: the lease ended")


def test_a_name_server_that_hangs_is_given_up_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hanging(*_: object, **__: object) -> list[object]:
        over.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    began = steady()
    result = client_of("http://nowhere.example", timeout=Duration(0.3)).call(POST, context())
    over.set()
    assert steady() - began < 0.8
    assert (result.error_class, result.call.error) == ("not_sent", "not connected within 0.3 s")


@pytest.mark.parametrize("act", [hang, drip_body])
def test_a_running_call_is_cut_when_the_lease_ends(stack: ExitStack, act: Act) -> None:
    call = Called(stack, act, timeout=Duration(30))
    began = steady()
    result = call(within=context(lambda: began + 0.3))
    assert 0.2 < steady() - began < 0.8
    assert (result.error_class, result.call.sent) == ("lease_lost", "unknown")


def test_a_lease_that_is_renewed_while_the_call_runs_does_not_cut_it(stack: ExitStack) -> None:
    renewed = threading.Event()
    until = [steady() + 0.3]

    def answer_later(server: ScriptedServer, sock: socket.socket) -> None:
        until[0] += 60
        server.closing.wait(0.6)  # beyond the first lease
        renewed.set()
        answer(204)(server, sock)

    result = Called(stack, answer_later, timeout=Duration(30))(within=context(lambda: until[0]))
    assert renewed.is_set()
    assert result.error_class is None


def test_no_call_starts_after_the_lease(stack: ExitStack) -> None:
    call = Called(stack, answer())
    until = steady()
    result = call(within=context(lambda: until))
    assert (result.error_class, result.call.sent) == ("lease_lost", "not_sent")
    assert call.server.seen == []


def test_a_cut_call_leaves_the_next_one_whole(stack: ExitStack) -> None:
    call = Called(stack, drip_head, answer(200, b"whole"), timeout=Duration(0.3))
    assert call().error_class == "unknown"
    assert call().body == b"whole"


# --- what is known of it


@pytest.mark.parametrize(
    ("status", "error_class"),
    [
        (200, None), (204, None), (299, None), (301, "redirect"), (304, "redirect"), (400, "rejected"), (401, "auth"),
        (403, "auth"), (404, "not_found"), (408, "throttled"), (409, "conflict"), (410, "gone"), (412, "conflict"),
        (418, "rejected"), (422, "rejected"), (425, "throttled"), (429, "throttled"), (500, "server_error"),
        (503, "server_error"), (599, "server_error"), (700, "bad_answer"),
    ],
)  # fmt: skip
def test_an_answer_has_the_class_of_its_status(stack: ExitStack, status: int, error_class: str | None) -> None:
    body = b"" if status in {204, 304} else b"text"
    result = Called(stack, answer(status, body))()
    assert (result.error_class, result.call.status, result.call.sent) == (error_class, status, "answered")


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (reset, "Connection reset by peer"),
        (then_close(raw(b"")), "the connection was closed without an answer"),
        (then_close(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive")), "the answer broke off"),
        (then_close(raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")), "the answer broke off"),
        (then_close(raw(b"\x00\x01garbage\r\n\r\n")), "not an HTTP answer: expected HTTP/, RTSP/ or ICE/"),
        (raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), "no whole answer within 1 s"),
        (then_close(raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")), "the answer broke off"),
        (
            raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
            "not an HTTP answer: it switches to a protocol that nobody has asked for",
        ),
    ],
)
def test_a_request_that_left_and_got_no_whole_answer_is_unknown(stack: ExitStack, act: Act, error: str) -> None:
    call = Called(stack, act)
    result = call()
    assert (result.error_class, result.call.sent, result.call.error) == ("unknown", "unknown", error)
    assert len(call.server.seen) == 1  # and was not repeated


def test_a_refused_connection_was_not_sent_and_is_tried_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    connects = []
    original = socket.socket.connect

    def counting(self: socket.socket, address: tuple[str, int]) -> None:
        connects.append(address)
        original(self, address)

    monkeypatch.setattr(socket.socket, "connect", counting)
    result = client_of(f"http://127.0.0.1:{closed_port()}", timeout=Duration(5)).call(POST, context())
    assert (result.error_class, result.call.sent, result.call.error) == ("not_sent", "not_sent", "Connection refused")
    assert len(connects) == 3


def test_a_try_that_succeeds_after_a_refused_one_is_the_answer(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Called(stack, answer())
    original = socket.socket.connect
    refusals = iter([ConnectionRefusedError(111, "Connection refused")])

    def refusing_once(self: socket.socket, address: tuple[str, int]) -> None:
        for refusal in refusals:
            raise refusal
        original(self, address)

    monkeypatch.setattr(socket.socket, "connect", refusing_once)
    assert call().error_class is None


def test_the_process_ending_interrupts_the_wait_between_tries() -> None:
    stop = threading.Event()
    stop.set()
    client = client_of(f"http://127.0.0.1:{closed_port()}", timeout=Duration(30))
    began = steady()
    assert client.call(POST, context(stop=stop)).error_class == "not_sent"
    assert steady() - began < 0.1


def test_tries_stay_within_the_deadline() -> None:
    client = client_of(f"http://127.0.0.1:{closed_port()}", timeout=Duration(0.05))
    began = steady()
    assert client.call(POST, context()).error_class == "not_sent"
    assert steady() - began < 0.1


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.EPIPE])
def test_a_connection_that_is_reset_while_it_is_made_was_not_sent_and_is_tried_again(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tls: bool, number: int
) -> None:
    call = Called(stack, answer(), tls=tls, timeout=Duration(30), ca_file=str(CERTIFICATE) if tls else None)
    connect, failures = guard.connect, [OSError(number, "reset"), OSError(number, "reset")]

    def refuse_twice(*arguments: Any) -> socket.socket:  # noqa: ANN401  # as the guard takes them
        if failures:
            raise failures.pop()
        return connect(*arguments)

    monkeypatch.setattr(guard, "connect", refuse_twice)
    assert call().error_class is None
    failures += [OSError(number, "reset")] * 3
    call.client.close()
    told = call()
    assert (told.error_class, told.call.sent, told.call.error) == ("not_sent", "not_sent", "reset")


def test_a_name_that_does_not_exist_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    result = client_of("http://nowhere.example").call(POST, context())
    assert result.error_class == "not_sent"
    assert result.call.error == "the host's name is not resolved: Name or service not known"


def test_a_certificate_nobody_vouches_for_was_not_sent(stack: ExitStack) -> None:
    call = Called(stack, answer(), tls=True)
    result = call()
    assert result.error_class == "not_sent"
    assert (result.call.error or "").startswith("the certificate is not accepted: self-signed certificate")
    assert call.server.seen == []


def test_a_certificate_for_another_name_was_not_sent(stack: ExitStack) -> None:
    server = stack.enter_context(serving(answer(), tls=True))
    client = client_of(f"https://127.0.0.1:{server.port}", ca_file=str(CERTIFICATE))
    assert "IP address mismatch" in (client.call(POST, context()).call.error or "")


def test_a_certificate_of_the_ca_file_is_accepted(stack: ExitStack) -> None:
    call = Called(stack, answer(200, b"over TLS"), tls=True, ca_file=str(CERTIFICATE))
    assert [call().body, call().body] == [b"over TLS", b"over TLS"]
    assert {seen.connection for seen in call.server.seen} == {1}
