"""A call, its connection and its response; a call is never repeated."""

from __future__ import annotations

import errno
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inbox.config.model import ApiBasic, ApiBearer, ApiHeader
from inbox.config.values import Duration, Secret
from inbox.errors import ConfigError
from relay.delivery.outcome import RateHold
from relay.http import connection, guard
from relay.http.client import MAX_ANSWER, Request
from relay.http.response import REQUEST_BYTES, parse_retry_after
from relay.http.target import header_value
from tests.destinations.calling import GET, POST, Called, make_client
from tests.helpers.delivering import NOW, context
from tests.helpers.scripted import (
    CERTIFICATE,
    Act,
    ScriptedServer,
    answer,
    find_closed_port,
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
    call = Called(stack, answer(status, body))
    result = call()
    assert (result.error_class, result.call.status, result.call.sent) == (error_class, status, "answered")
    assert len(call.server.seen) == 1, "it is left to the schedule to call again"


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (reset, "Connection reset by peer"),
        (then_close(raw(b"")), "the connection was closed without a response"),
        (then_close(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive")), "the response was incomplete"),
        (
            then_close(raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")),
            "the response was incomplete",
        ),
        (then_close(raw(b"\x00\x01garbage\r\n\r\n")), "not an HTTP response: expected HTTP/, RTSP/ or ICE/"),
        (then_close(raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")), "the response was incomplete"),
    ],
)
def test_a_request_that_left_and_got_no_whole_answer_is_unknown(stack: ExitStack, act: Act, error: str) -> None:
    call = Called(stack, act)
    result = call()
    assert (result.error_class, result.call.sent, result.call.error) == ("unknown", "unknown", error)
    assert len(call.server.seen) == 1  # it was not repeated


def test_a_refused_connection_was_not_sent() -> None:
    result = make_client(f"http://127.0.0.1:{find_closed_port()}", timeout=Duration(30)).call(POST, context())
    assert (result.error_class, result.call.sent, result.call.error) == ("not_sent", "not_sent", "Connection refused")


@pytest.mark.parametrize(
    ("number", "tls"), [(errno.ECONNRESET, True), (errno.EPIPE, False), (errno.ECONNREFUSED, False)]
)
def test_a_broken_connect_was_not_sent(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, number: int, tls: bool
) -> None:
    call = Called(stack, answer(), tls=tls, timeout=Duration(30), ca_file=str(CERTIFICATE) if tls else None)

    def refuse(*_: Any) -> socket.socket:  # noqa: ANN401  # the guard's arguments
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
    result = make_client("http://nowhere.example").call(POST, context())
    assert result.error_class == "not_sent"
    assert result.call.error == "the host name can't be resolved: Name or service not known"


@pytest.mark.parametrize("name", ["NOTHING", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_no_call_is_sent_to_an_untrusted_server(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, str(CERTIFICATE))
    call = Called(stack, answer(), tls=True)
    result = call()
    assert result.error_class == "not_sent"
    assert (result.call.error or "").startswith("the certificate is not valid: self-signed certificate")
    assert call.server.seen == []


def test_a_certificate_for_another_name_was_not_sent(stack: ExitStack) -> None:
    server = stack.enter_context(serving(answer(), tls=True))
    client = make_client(f"https://127.0.0.1:{server.port}", ca_file=str(CERTIFICATE))
    assert "IP address mismatch" in (client.call(POST, context()).call.error or "")


# --- parts of a response that are read and logged


def test_an_answer_of_exactly_64_kib_is_whole(stack: ExitStack) -> None:
    result = Called(stack, answer(200, b"x" * MAX_ANSWER))()
    assert (result.whole, len(result.body)) == (True, MAX_ANSWER)


def test_an_encoded_answer_is_not_decoded_and_a_cookie_is_not_kept(stack: ExitStack) -> None:
    bomb = b"\x1f\x8b\x08not really gzip"
    call = Called(stack, answer(200, bomb, content_encoding="gzip", set_cookie="session=1; Path=/"))
    assert [call().body, call().body] == [bomb, bomb]
    assert call.server.seen[1].headers["accept-encoding"] == "identity"
    assert "cookie" not in call.server.seen[1].headers


def test_an_excerpt_shows_no_secret_and_nothing_that_steers_a_terminal(stack: ExitStack) -> None:
    body = b'{"error": "bad key s3cr3t-key", "access_token": "abc\\"d", "n": 1}\x00\x1b[2J'
    auth = ApiBearer(Secret("s3cr3t-key"))
    excerpt = Called(stack, answer(400, body), auth=auth)().call.excerpt or ""
    assert excerpt == '{"error": "bad key ***", "access_token": ***, "n": 1}\ufffd\ufffd[2J'


def test_a_failed_attempt_quotes_the_beginning_of_its_request_without_secrets(stack: ExitStack) -> None:
    secret, size = "s3cr3t-key", 2**25
    called = Called(stack, answer(400), auth=ApiBearer(Secret(secret)))
    for at in range(REQUEST_BYTES - len(secret), REQUEST_BYTES + 1):
        body = b"x" * at + secret.encode()
        failed = called(msgspec.structs.replace(POST, body=body + b"x" * (size if at == REQUEST_BYTES else 9)))
        began = time.thread_time()
        quoted = failed.as_failed((failed.call,)).calls[-1].request or ""
        assert set(quoted) <= {"x", "*"}, "no part of a secret at the cut is shown"
        assert len(quoted) <= REQUEST_BYTES
        assert time.thread_time() - began < 0.1, "only the beginning of a large body is searched"
    assert called(msgspec.structs.replace(POST, body=None)).as_failed((failed.call,)).calls[-1].request is None


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


# --- a call is repeated by the schedule alone, and does not depend on the environment


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broken", [then_close(raw(b"")), reset], ids=["closed", "reset"])
def test_a_reused_connection_that_breaks_is_unknown_and_closed(stack: ExitStack, method: str, broken: Act) -> None:
    call = Called(stack, answer(), broken, answer())
    request = Request("update", method, {}, path="/contacts/1", body=None if method in {"GET", "DELETE"} else b"{}")
    assert call(request).error_class is None
    result = call(request)
    assert (result.error_class, result.call.sent) == ("unknown", "unknown")
    assert [seen.connection for seen in call.server.seen] == [1, 1]
    assert call(request).error_class is None
    assert [seen.connection for seen in call.server.seen] == [1, 1, 2]


def test_an_unrequested_response_is_not_taken_for_that_of_the_next_call(stack: ExitStack) -> None:
    """Not even one that comes after the first was read; test_bad_downstream.py has those that come at once."""
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
    was_read, sent = threading.Event(), threading.Event()

    def two_answers(_: ScriptedServer, connection: socket.socket) -> None:
        connection.sendall(one + b"1")
        was_read.wait(5)
        connection.sendall(one + b"2")
        sent.set()

    call = Called(stack, two_answers, answer(200, b"3"))
    assert call().body == b"1"
    was_read.set()
    assert sent.wait(5)
    assert call().body == b"3"


# --- connections


def test_a_connection_is_reused_unless_it_was_idle_for_long(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Called(stack, answer())
    call()
    call()
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.0)
    call()
    assert [seen.connection for seen in call.server.seen] == [1, 1, 2]


def test_a_connection_that_the_server_closed_is_not_used_again(stack: ExitStack) -> None:
    call = Called(stack, then_close(answer()))
    for _ in range(3):
        assert call().error_class is None
        assert call.server.ended.acquire(timeout=60)


def test_each_thread_has_its_own_connection_and_closes_it_when_it_ends(stack: ExitStack) -> None:
    call = Called(stack, answer())
    together = threading.Barrier(4)

    def work() -> None:
        together.wait()
        assert call().error_class is None
        together.wait()

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            future.result()
    assert sorted(seen.connection for seen in call.server.seen) == [1, 2, 3, 4]
    assert all(call.server.ended.acquire(timeout=60) for _ in range(4))


# --- requests


def test_the_environment_changes_no_request(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{find_closed_port()}")
    body = bytes(range(256)) * 8192
    call = Called(stack, answer())
    assert call(Request("forward", "POST", {}, body=body)).error_class is None
    assert call.server.seen[0].body == body
    assert "authorization" not in call.server.seen[0].headers


def test_a_configured_proxy_is_used_with_its_credentials(stack: ExitStack) -> None:
    call = Called(stack, answer(200, b"through"))
    client = make_client("http://crm.example:8080/api", proxy=f"http://me:pw@127.0.0.1:{call.server.port}")
    assert client.call(GET, context()).body == b"through"
    seen = call.server.seen[0]
    assert seen.target == "http://crm.example:8080/api/user/1"
    assert seen.headers["proxy-authorization"] == "Basic bWU6cHc="


def test_a_proxy_that_refuses_the_tunnel_leaves_the_call_unsent(stack: ExitStack) -> None:
    call = Called(stack, answer(403))
    client = make_client("https://crm.example/api", proxy=f"http://127.0.0.1:{call.server.port}")
    result = client.call(GET, context())
    assert (result.error_class, result.call.error) == ("not_sent", "the proxy refused the call")
    assert call.server.seen[0].target == "crm.example:443"


@pytest.mark.parametrize(
    ("auth", "name", "value"),
    [
        (ApiBasic(Secret("me"), Secret("pä")), "authorization", "Basic bWU6cMOk"),
        (ApiBearer(Secret("abc")), "authorization", "Bearer abc"),
        (ApiHeader("x-api-key", Secret("abc")), "x-api-key", "abc"),
    ],
)
def test_authentication_is_sent(stack: ExitStack, auth: Any, name: str, value: str) -> None:  # noqa: ANN401
    call = Called(stack, answer(), auth=auth, headers={"accept": "application/vnd.api+json"})
    call(Request("fetch", "GET", {"Accept": "application/json"}))
    assert call.server.seen[0].headers[name] == value
    assert call.server.seen[0].headers["accept"] == "application/vnd.api+json"


@pytest.mark.parametrize(
    ("text", "sent"),
    [("100 %", "100 %"), ("Euro € 5%", "Euro %E2%82%AC 5%25"), ("a\r\nInjected: 1\x00", "a%0D%0AInjected: 1%00")],
)
def test_a_header_value_is_printable_ascii_or_percent_encoded(text: str, sent: str) -> None:
    assert header_value(text) == sent


def test_the_log_shows_no_query_value(stack: ExitStack) -> None:
    call = Called(stack, answer(500))
    result = call(Request("find", "GET", {}, "/contacts", "externalId=secret-id&q=x&bare"))
    assert result.call.url == f"{call.server.url}/contacts?externalId=…&q=…&…"
    assert call.server.seen[0].target == "/contacts?externalId=secret-id&q=x&bare"


@pytest.mark.parametrize(
    ("url", "options", "problem"),
    [
        ("http://crm.example", {"allow_http": False}, "plain http"),
        ("https://me:pw@crm.example", {}, "must not contain a user"),
        ("ftp://crm.example", {}, "must begin with https"),
        ("crm.example/x", {}, "is not a valid URL"),
        ("https://", {}, "is not a valid URL"),
        ("https://crm.example", {"headers": {"Host": "x"}}, "'Host' can't be set here"),
        ("https://crm.example", {"headers": {"a b": "x"}}, "'a b' can't be set here"),
        ("https://crm.example", {"ca_file": "/nowhere.pem"}, "ca_file"),
        ("https://crm.example", {"proxy": "socks5://127.0.0.1"}, "proxy: must be"),
        ("https://10.1.2.3", {"proxy": "http://proxy", "allow_private": False}, "10.1.2.3 is private"),
    ],
)
def test_an_unusable_endpoint_is_refused_before_any_call(url: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"destinations.crm.*{problem}"):
        make_client(url, **options)


USED_UP = {"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": str(int(NOW.timestamp()) + 900)}
ASKED = RateHold(60.0, "Retry-After")


@pytest.mark.parametrize(
    ("act", "error_class", "hold"),
    [
        (
            answer(403, b"API rate limit exceeded", **USED_UP),
            "throttled",
            RateHold(900.0, "X-RateLimit-Remaining is 0"),
        ),
        (answer(403, b"", x_ratelimit_remaining="7", x_ratelimit_reset="900"), "auth", None),
        (answer(403, b"", retry_after="60"), "throttled", ASKED),
        (answer(429, b"", retry_after="60"), "throttled", ASKED),
        *((answer(status, b"", retry_after="60"), None, ASKED) for status in (200, 204)),
    ],
)
def test_rate_limits_hold_calls(stack: ExitStack, act: Act, error_class: str | None, hold: RateHold | None) -> None:
    result = Called(stack, act)()
    assert (result.error_class, result.call.hold) == (error_class, hold)


CA = str(CERTIFICATE)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[str, str]:
    """Files of the certificate and its key."""
    whole = CERTIFICATE.read_text()
    key = whole[whole.index("-----BEGIN PRIVATE KEY") : whole.index("-----END PRIVATE KEY") + 26]
    files = tmp_path / "client.pem", tmp_path / "client.key"
    files[0].write_text(whole.replace(key, ""))
    files[1].write_text(key)
    return str(files[0]), str(files[1])


def test_a_client_certificate_is_shown_to_a_server_that_requires_it(stack: ExitStack, parts: tuple[str, str]) -> None:
    certificate, key = parts
    for files in ({"cert_file": CA}, {"cert_file": certificate, "key_file": key}):
        assert Called(stack, answer(200, b"known"), tls="mutual", ca_file=CA, **files)().body == b"known"
    call = Called(stack, answer(), tls="mutual", ca_file=CA)
    assert call().error_class in {"not_sent", "unknown"}, "TLS 1.3 tells a client of it after its request has left"
    assert call.server.seen == []


@pytest.mark.parametrize(
    ("files", "mistake"),
    [
        ({"cert_file": "/nowhere.pem"}, "can't use cert_file /nowhere.pem"),
        ({"key_file": CA}, "key_file needs cert_file"),
        ({"cert_file": CA, "key_file": "/nowhere.key"}, "can't use cert_file"),
        ({"cert_file": "without its key"}, "can't use cert_file"),
    ],
)
def test_an_unusable_certificate_is_a_mistake(files: dict[str, str], mistake: str, parts: tuple[str, str]) -> None:
    files = {name: parts[0] if file == "without its key" else file for name, file in files.items()}
    with pytest.raises(ConfigError, match=mistake):
        make_client("https://localhost", ca_file=CA, **files)
