"""A call, from what is known of it when it has ended to what is read of its answer; nothing repeats it."""

from __future__ import annotations

import errno
import socket
import threading
from contextlib import ExitStack
from typing import Any

import pytest

from inbox.config.model import ApiBearer
from inbox.config.values import Duration, Secret
from relay.http import guard
from relay.http.answer import parse_retry_after
from relay.http.client import MAX_ANSWER, Request
from tests.destinations.calling import POST, Called, client_of
from tests.helpers.delivering import NOW, context
from tests.helpers.scripted import (
    CERTIFICATE,
    Act,
    ScriptedServer,
    answer,
    closed_port,
    raw,
    reset,
    serving,
    then_close,
)


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


def test_a_refused_connection_was_not_sent() -> None:
    result = client_of(f"http://127.0.0.1:{closed_port()}", timeout=Duration(30)).call(POST, context())
    assert (result.error_class, result.call.sent, result.call.error) == ("not_sent", "not_sent", "Connection refused")


@pytest.mark.parametrize(
    ("number", "tls"), [(errno.ECONNRESET, True), (errno.EPIPE, False), (errno.ECONNREFUSED, False)]
)
def test_a_connection_that_breaks_while_it_is_made_was_not_sent(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, number: int, tls: bool
) -> None:
    call = Called(stack, answer(), tls=tls, timeout=Duration(30), ca_file=str(CERTIFICATE) if tls else None)

    def refuse(*_: Any) -> socket.socket:  # noqa: ANN401  # as the guard takes them
        raise OSError(number, "reset")

    with monkeypatch.context() as patched:
        patched.setattr(guard, "connect", refuse)
        told = call()
    assert (told.error_class, told.call.sent, told.call.error) == ("not_sent", "not_sent", "reset")
    assert call().error_class is None


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


# --- the part of an answer that is read, and the part that may be logged


def test_an_answer_of_exactly_64_kib_is_whole(stack: ExitStack) -> None:
    result = Called(stack, answer(200, b"x" * MAX_ANSWER))()
    assert (result.whole, len(result.body)) == (True, MAX_ANSWER)


def test_an_encoded_answer_is_not_decoded(stack: ExitStack) -> None:
    bomb = b"\x1f\x8b\x08not really gzip"
    call = Called(stack, answer(200, bomb, content_encoding="gzip"))
    assert call().body == bomb
    assert call.server.seen[0].headers["accept-encoding"] == "identity"


def test_cookies_are_not_kept(stack: ExitStack) -> None:
    call = Called(stack, answer(200, b"", set_cookie="session=1; Path=/"))
    call()
    call()
    assert "cookie" not in call.server.seen[1].headers


def test_an_excerpt_shows_no_secret_and_nothing_that_steers_a_terminal(stack: ExitStack) -> None:
    body = b'{"error": "bad key s3cr3t-key", "access_token": "abc\\"d", "n": 1}\x00\x1b[2J'
    auth = ApiBearer(Secret("s3cr3t-key"))
    excerpt = Called(stack, answer(400, body), auth=auth)().call.excerpt or ""
    assert excerpt == '{"error": "bad key ***", "access_token": ***, "n": 1}\ufffd\ufffd[2J'


def test_an_excerpt_is_at_most_4_kib_and_never_of_a_success(stack: ExitStack) -> None:
    call = Called(stack, answer(500, "é".encode() * 9000), answer(200, b"fine"))
    excerpt = call().call.excerpt or ""
    assert len(excerpt.encode()) <= 4096
    assert set(excerpt) == {"é"}
    assert call().call.excerpt is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0), ("1.5", 1.5), ("0", 0.0), (" 7 ", 7.0), ("Thu, 01 Jan 2026 00:01:30 GMT", 90.0),
        ("Thu, 01 Jan 2026 00:01:30 -0000", 90.0), ("Wed, 31 Dec 2025 23:59:59 GMT", None),
        ("-5", None), ("soon", None),
        ("", None), ("١٢", None), ("1e9", None), ("99999999999999999999", None), ("nan", None), (None, None),
        ("Thu, 99 Foo 2026 00:01:30 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_rubbish_is_ignored(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


def test_retry_after_is_read_from_a_failure(stack: ExitStack) -> None:
    assert Called(stack, answer(503, b"", retry_after="2.5"))().retry_after == 2.5


# --- one call is one call: nothing below the schedule repeats it, and the environment does not change where or how


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@pytest.mark.parametrize("status", [401, 407, 408, 425, 429, 500, 502, 503, 504])
def test_an_answer_that_asks_to_come_again_is_left_to_the_schedule(stack: ExitStack, status: int) -> None:
    call = Called(stack, answer(status, b"", retry_after="0"), answer())
    assert call().call.status == status
    assert len(call.server.seen) == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broken", [then_close(raw(b"")), reset], ids=["closed", "reset"])
def test_a_kept_connection_that_breaks_after_the_request_was_read_is_unknown_and_not_used_twice(
    stack: ExitStack, method: str, broken: Act
) -> None:
    call = Called(stack, answer(), broken, answer())
    request = Request("update", method, {}, path="/contacts/1", body=None if method in {"GET", "DELETE"} else b"{}")
    assert call(request).error_class is None
    result = call(request)
    assert (result.error_class, result.call.sent) == ("unknown", "unknown")
    assert [seen.connection for seen in call.server.seen] == [1, 1]
    assert call(request).error_class is None
    assert [seen.connection for seen in call.server.seen] == [1, 1, 2]


@pytest.mark.parametrize("later", [False, True], ids=["at once", "after the first was read"])
def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_calls(stack: ExitStack, later: bool) -> None:
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
    was_read, sent = threading.Event(), threading.Event()

    def two_answers(_: ScriptedServer, connection: socket.socket) -> None:
        connection.sendall(one + b"1" + (b"" if later else one + b"2"))
        if later and was_read.wait(5):
            connection.sendall(one + b"2")
        sent.set()

    call = Called(stack, two_answers, answer(200, b"3"))
    assert call().body == b"1"
    was_read.set()
    assert sent.wait(5)
    assert call().body == b"3"


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_the_environment_makes_no_certificate_good(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, str(CERTIFICATE))
    call = Called(stack, answer(), tls=True)
    assert (call().call.error or "").startswith("the certificate is not accepted")
    assert call.server.seen == []
