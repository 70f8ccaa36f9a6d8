"""A call is made once: nothing below the schedule repeats it, and the environment does not change where or how."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack

import pytest

from relay.http.client import Request
from tests.destinations.calling import Called
from tests.destinations.scripted import CERTIFICATE, Act, ScriptedServer, answer, raw, reset, then_close

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
