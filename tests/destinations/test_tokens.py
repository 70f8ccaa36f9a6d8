"""Bearer tokens by client credentials: got once, kept, renewed, and never seen."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from inbox.clock import steady
from inbox.config import Api, ApiOauth2, Config, Duration, Secret
from relay import tokens
from relay.answer import Answer
from relay.destinations.base import Caller, Clients
from relay.http import Limits, Request
from tests.destinations.scripted import ScriptedServer, answer, closed_port, hang, serving
from tests.destinations.syncing import NOW

ASKED = Request("fetch", "GET", {"Accept": "application/json"}, path="/user/1")
TOKEN, USER = "POST /token", "GET /user/1"
LIMITS = Limits(lambda: float("inf"), threading.Event(), lambda: NOW)


def token(value: str, **more: object) -> bytes:
    return json.dumps({"access_token": value, "token_type": "Bearer", **more}).encode()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    routes = {
        TOKEN: [answer(200, token(f"t0ken-{number}", expires_in=3600)) for number in (1, 2, 3)],
        USER: [answer(200, {"id": "1"})],
    }
    with serving(routes=routes) as made:
        yield made


def client(server: ScriptedServer, token_url: str | None = None, **more: str) -> Caller:
    auth = ApiOauth2(
        token_url=token_url or f"{server.url}/token",
        client_id=Secret("c1ient"),
        client_secret=Secret("s3cr3t:%"),
        **more,  # type: ignore[arg-type]  # scope and credentials
    )
    api = Api(base_url=server.url, auth=auth, allow_private=True, allow_http=True, timeout=Duration(0.5))
    return Clients(Config(apis={"identity": api})).api("identity")


def call(caller: Caller) -> Answer:
    try:
        return caller.call(ASKED, LIMITS)
    finally:
        caller.close()


def asked(server: ScriptedServer) -> list[str]:
    return [f"{seen.method} {seen.target}" for seen in server.seen]


def test_a_token_is_got_once_and_used_for_many_calls(server: ScriptedServer) -> None:
    caller = client(server)
    for _ in range(3):
        assert call(caller).error_class is None
    assert asked(server) == [TOKEN, USER, USER, USER]
    assert {seen.headers["authorization"] for seen in server.seen[1:]} == {"Bearer t0ken-1"}
    first = server.seen[0]
    assert first.headers["authorization"] == "Basic YzFpZW50OnMzY3IzdDol"
    assert first.body == b"grant_type=client_credentials"


def test_the_credentials_may_stand_in_the_form_and_a_scope_be_asked_for(server: ScriptedServer) -> None:
    call(client(server, credentials="body", scope="read write"))
    first = server.seen[0]
    assert "authorization" not in first.headers
    assert sorted(first.body.decode().split("&")) == [
        "client_id=c1ient",
        "client_secret=s3cr3t%3A%25",
        "grant_type=client_credentials",
        "scope=read+write",
    ]


def test_who_waits_too_long_for_anothers_token_gets_none(server: ScriptedServer) -> None:
    server.routes[TOKEN] = [hang]
    caller = client(server)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: caller.call(ASKED, LIMITS), range(2)))
    caller.close()
    # Who waits may get its turn in the last moment, and then has no more luck than the one before.
    assert {found.call.error for found in answers} <= {
        "no token: no whole answer within 0.5 s",
        "no token: others have waited for one too long",
    }


def test_an_answer_with_another_scope_is_taken(server: ScriptedServer) -> None:
    server.routes[TOKEN] = [answer(200, token("t0ken-9", scope="read"))]
    call(client(server, scope="read write"))
    assert server.seen[-1].headers["authorization"] == "Bearer t0ken-9"


def test_threads_that_start_together_share_one_token(server: ScriptedServer) -> None:
    caller = client(server)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: caller.call(ASKED, LIMITS), range(8)))
    caller.close()
    assert all(found.error_class is None for found in answers)
    assert asked(server).count(TOKEN) == 1


def test_a_token_is_renewed_before_it_ends(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = client(server)
    began = steady()
    call(caller)
    for later, got in ((3560, 1), (3571, 2)):
        monkeypatch.setattr(tokens, "steady", lambda later=later: began + later)
        call(caller)
        assert asked(server).count(TOKEN) == got


def test_a_call_that_is_refused_is_made_once_more_with_a_new_token(server: ScriptedServer) -> None:
    server.routes[USER] = [answer(401), answer(200, {"id": "1"})]
    assert call(client(server)).error_class is None
    assert asked(server) == [TOKEN, USER, TOKEN, USER]
    assert server.seen[-1].headers["authorization"] == "Bearer t0ken-2"


def test_and_then_it_is_refused(server: ScriptedServer) -> None:
    server.routes[USER] = [answer(401)]
    caller = client(server)
    assert call(caller).error_class == "auth"
    assert asked(server) == [TOKEN, USER, TOKEN, USER]


@pytest.mark.parametrize(
    ("status", "error_class", "error"),
    [(503, "server_error", "no token: answered 503"), (401, "auth", "no token: answered 401")],
)
def test_without_a_token_no_call_is_made(server: ScriptedServer, status: int, error_class: str, error: str) -> None:
    server.routes[TOKEN] = [answer(status, b"s3cr3t:%")]
    told = call(client(server))
    assert (told.error_class, told.call.error, told.call.excerpt) == (error_class, error, None)
    assert (told.call.step, told.call.url) == ("fetch", f"{server.url}/token")
    assert asked(server) == [TOKEN]


def test_a_token_url_that_is_down_is_not_sent(server: ScriptedServer) -> None:
    told = call(client(server, token_url=f"http://127.0.0.1:{closed_port()}/token"))
    assert told.error_class == "not_sent"
    assert asked(server) == []


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nonsense", b'{"error": "invalid_client"}', b'{"access_token": "t", "expires_in": "soon"}']
)
def test_an_answer_without_a_token_is_a_bad_answer(server: ScriptedServer, body: bytes) -> None:
    server.routes[TOKEN] = [answer(200, body)]
    told = call(client(server))
    assert (told.error_class, told.call.error) == ("bad_answer", "no token: the answer holds no token")


def test_a_token_that_is_echoed_is_not_in_the_log(server: ScriptedServer) -> None:
    server.routes[USER] = [answer(500, b"you sent t0ken-1, really")]
    assert call(client(server)).call.excerpt == "you sent ***, really"
