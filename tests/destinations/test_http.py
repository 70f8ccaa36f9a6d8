"""Knowledge of a call that has ended: its class, whether it was sent, and the error."""

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
from tests.destinations.scripted import CERTIFICATE, Act, answer, closed_port, raw, reset, serving, then_close
from tests.helpers.delivering import context


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
        (then_close(raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")), "the answer broke off"),
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


@pytest.mark.parametrize(
    ("timeout", "stops"), [(30, True), (0.05, False)], ids=["the end of the process", "the deadline"]
)
def test_what_interrupts_the_wait_between_tries(timeout: float, stops: bool) -> None:
    stop = threading.Event()
    if stops:
        stop.set()
    client = client_of(f"http://127.0.0.1:{closed_port()}", timeout=Duration(timeout))
    began = steady()
    assert client.call(POST, context(stop=stop)).error_class == "not_sent"
    assert steady() - began < 0.1


@pytest.mark.parametrize(
    ("number", "tls"), [(errno.ECONNRESET, True), (errno.EPIPE, False), (errno.ECONNREFUSED, False)]
)
def test_a_connection_that_breaks_while_it_is_made_was_not_sent_and_is_tried_again(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, number: int, tls: bool
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
