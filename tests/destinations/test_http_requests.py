"""Requests of the client, and the connections that carry them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from inbox.config.model import ApiBasic, ApiBearer, ApiHeader
from inbox.config.values import Duration, Secret
from inbox.errors import ConfigError
from relay.http import connection
from relay.http.client import Request
from relay.http.target import header_value
from tests.destinations.calling import GET, Called, client_of
from tests.helpers.delivering import context
from tests.helpers.patience import Stopwatch
from tests.helpers.scripted import answer, closed_port, drip, then_close

# --- connections


def test_a_connection_is_kept_for_the_next_call(stack: ExitStack) -> None:
    call = Called(stack, answer(200, b"one"))
    for _ in range(3):
        call()
    assert [seen.connection for seen in call.server.seen] == [1, 1, 1]


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Called(stack, answer())
    call()
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.0)
    call()
    assert [seen.connection for seen in call.server.seen] == [1, 2]


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


# --- what is sent


def test_a_large_body_arrives_whole(stack: ExitStack) -> None:
    body = bytes(range(256)) * 8192
    call = Called(stack, answer())
    assert call(Request("forward", "POST", {}, body=body)).error_class is None
    assert call.server.seen[0].body == body


def test_the_environment_sets_no_proxy_and_no_credentials(
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,  # noqa: ANN401
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    call = Called(stack, answer())
    assert call().error_class is None
    assert "authorization" not in call.server.seen[0].headers


def test_a_configured_proxy_is_used_with_its_credentials(stack: ExitStack) -> None:
    call = Called(stack, answer(200, b"through"))
    client = client_of("http://crm.example:8080/api", proxy=f"http://me:pw@127.0.0.1:{call.server.port}")
    assert client.call(GET, context()).body == b"through"
    seen = call.server.seen[0]
    assert seen.target == "http://crm.example:8080/api/user/1"
    assert seen.headers["proxy-authorization"] == "Basic bWU6cHc="


def test_a_proxy_that_refuses_the_tunnel_leaves_the_call_unsent(stack: ExitStack) -> None:
    call = Called(stack, answer(403))
    client = client_of("https://crm.example/api", proxy=f"http://127.0.0.1:{call.server.port}")
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
    [
        ("application/json; charset=utf-8", "application/json; charset=utf-8"),
        ("100 %", "100 %"),
        ("Euro € 5%", "Euro %E2%82%AC 5%25"),
        ("a\r\nInjected: 1", "a%0D%0AInjected: 1"),
        ("nul\x00", "nul%00"),
        ("line\n", "line%0A"),
    ],
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
        ("https://me:pw@crm.example", {}, "must not hold a user"),
        ("ftp://crm.example", {}, "must begin with https"),
        ("crm.example/x", {}, "can't be used"),
        ("https://", {}, "can't be used"),
        ("https://crm.example", {"headers": {"Host": "x"}}, "'Host' is not a header"),
        ("https://crm.example", {"headers": {"a b": "x"}}, "'a b' is not a header"),
        ("https://crm.example", {"ca_file": "/nowhere.pem"}, "ca_file"),
        ("https://crm.example", {"proxy": "socks5://127.0.0.1"}, "proxy: must be"),
        ("https://10.1.2.3", {"proxy": "http://proxy", "allow_private": False}, "10.1.2.3 is private"),
    ],
)
def test_an_endpoint_that_can_not_work_is_refused_before_any_call(
    url: str, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=f"destinations.crm.*{problem}"):
        client_of(url, **options)


def test_a_dripping_tunnel_is_cut_at_the_deadline(stack: ExitStack) -> None:
    call = Called(stack, drip(b"HTTP/1.1 200 OK\r\n", b"X-Drop: 1\r\n"))
    client = client_of("https://crm.example", proxy=f"http://127.0.0.1:{call.server.port}", timeout=Duration(0.4))
    with Stopwatch() as watch:
        assert client.call(GET, context()).error_class == "not_sent"
    assert watch.seconds < 0.9
