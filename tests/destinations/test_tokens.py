"""Bearer tokens by client credentials: got once, kept, renewed, and never seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from inbox.clock import steady
from inbox.config.model import Api, ApiOauth2, Config
from inbox.config.values import Duration, Secret
from relay.destinations.base import Clients
from relay.http import client as http_client
from relay.http.answer import EXCERPT_BYTES, Answer
from relay.http.client import HttpClient, Request
from tests.helpers.delivering import context
from tests.helpers.scripted import ScriptedServer, answer, closed_port, serving

ASKED = Request("fetch", "GET", {"Accept": "application/json"}, path="/user/1")
TOKEN, USER = "POST /token", "GET /user/1"


PLANTED = "t0ken-of-somebody"


def told(**members: object) -> bytes:
    """A token's answer with other members; one that is None is left out."""
    answered = {"access_token": PLANTED, "token_type": "Bearer", "note": PLANTED, **members}
    return json.dumps({name: value for name, value in answered.items() if value is not None}).encode()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    routes = {
        TOKEN: [answer(200, told(access_token=f"t0ken-{number}", expires_in=3600)) for number in (1, 2, 3)],
        USER: [answer(200, {"id": "1"})],
    }
    with serving(routes=routes) as made:
        yield made


def client(server: ScriptedServer, token_url: str | None = None, timeout: float = 30, **more: str) -> HttpClient:
    auth = ApiOauth2(
        token_url=token_url or f"{server.url}/token",
        client_id=Secret("c1ient"),
        client_secret=Secret("s3cr3t:%"),
        **more,  # type: ignore[arg-type]  # scope and credentials
    )
    api = Api(base_url=server.url, auth=auth, allow_private=True, allow_http=True, timeout=Duration(timeout))
    return Clients(Config(apis={"identity": api})).api("identity")


def call(caller: HttpClient) -> Answer:
    return caller.call(ASKED, context())


def test_a_token_is_got_once_and_used_for_many_calls(server: ScriptedServer) -> None:
    caller = client(server)
    for _ in range(3):
        assert call(caller).error_class is None
    assert server.asked == [TOKEN, USER, USER, USER]
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


def test_threads_that_start_together_share_one_token(server: ScriptedServer) -> None:
    caller = client(server)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: caller.call(ASKED, context()), range(8)))
    assert all(found.error_class is None for found in answers)
    assert server.asked.count(TOKEN) == 1


def test_a_token_is_renewed_before_it_ends(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = client(server)
    began = steady()
    call(caller)
    for later, got in ((3560, 1), (3571, 2)):
        monkeypatch.setattr(http_client, "steady", lambda later=later: began + later)
        call(caller)
        assert server.asked.count(TOKEN) == got


def test_a_call_that_is_refused_is_made_once_more_with_a_new_token(server: ScriptedServer) -> None:
    server.routes[USER] = [answer(401), answer(200, {"id": "1"})]
    assert call(client(server)).error_class is None
    assert server.asked == [TOKEN, USER, TOKEN, USER]
    assert server.seen[-1].headers["authorization"] == "Bearer t0ken-2"


@pytest.mark.parametrize(
    ("status", "error_class"),
    [(503, "server_error"), (429, "throttled"), *((each, "auth") for each in (400, 401, 403, 404, 409, 410, 412, 422))],
)
def test_without_a_token_no_call_is_made(server: ScriptedServer, status: int, error_class: str) -> None:
    server.routes[TOKEN] = [answer(status, b"s3cr3t:%")]
    told = call(client(server))
    assert (told.error_class, told.call.error, told.call.excerpt) == (error_class, f"no token: answered {status}", None)
    assert (told.call.step, told.call.url) == ("fetch", f"{server.url}/token")
    assert call(client(server, token_url=f"http://127.0.0.1:{closed_port()}/token")).error_class == "not_sent"
    assert server.asked == [TOKEN]


DEEP = b"[" * 100_000 + b"]" * 100_000


_ODD_TIMES: tuple[object, ...] = ("soon", -1, "-1", True, False, [], {}, 1e300, "", " 1", "9" * 30)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the response is not JSON"),
        (b"nonsense " + PLANTED.encode(), "the response is not JSON"),
        (b"access_token=" + PLANTED.encode(), "the response is not JSON"),
        (DEEP, "the response is not JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "the response is not JSON"),
        (b'{"access_token": "a", "access_token": "b"}', "the response is not JSON"),
        (b"\xff\xfe", "the response is not JSON"),
        (b'{"access_token": "t", "expires_in": 1e999}', "the response is not JSON"),
        (b'{"access_token": "t", "expires_in": Infinity}', "the response is not JSON"),
        (b'{"access_token": "t", "expires_in": ' + b"9" * 5000 + b"}", "the response is not JSON"),
        (b"[]", "the response has no usable token: Expected `object`, got `array`"),
        (told(access_token=None, error="invalid_client"), "token: Object missing required field `access_token`"),
        *((told(access_token=text), "- at `$.access_token`") for text in ([PLANTED], 7)),
        *(
            (told(access_token=text), "- at `$.access_token`")
            for text in (
                "", f"{PLANTED}\n", f"{PLANTED}\r\nX: 1", f" {PLANTED}", f"{PLANTED} x", f"{PLANTED}\u0000",
                f"{PLANTED}\u00e9", f"{PLANTED}\u20ac", f"{PLANTED}\t", f"{PLANTED}\u007f",
            )
        ),
        *((told(token_type=kind), "- at `$.token_type`") for kind in ("mac", "DPoP", "", ["Bearer"], 1, "Bearer ")),
        *((told(expires_in=given_in), "- at `$.expires_in`") for given_in in _ODD_TIMES),
    ],
)  # fmt: skip
def test_an_answer_without_a_usable_token_is_a_bad_answer_that_shows_nothing_of_it(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture, body: bytes, why: str
) -> None:
    server.routes[TOKEN] = [answer(200, body)]
    told = call(client(server))
    assert told.error_class == "bad_answer"
    assert (told.call.error or "").startswith("no token: the response ")
    assert (told.call.error or "").endswith(why)
    assert server.asked == [TOKEN]
    assert PLANTED not in repr(told) + caplog.text


@pytest.mark.parametrize(
    ("value", "members"),
    [
        ("aZ09-._~+/==", {"expires_in": 3600, "token_type": "bEARER"}),
        ("aZ09-._~+/==", {"expires_in": "3600", "token_type": None}),
        ("aZ09", {"scope": "another"}),
        ("00Dxx0000001gPL!AQ0AQDpEDKYsn7io.Kug2_aSmg", {}),  # of other characters than RFC 6750's
        ("1234567890|wJalrXUtnFEMI-K7MDENG", {}),
    ],
)
def test_a_token_as_servers_are_known_to_write_it_is_taken(
    server: ScriptedServer, value: str, members: dict[str, object]
) -> None:
    server.routes[TOKEN] = [answer(200, told(access_token=value, **members))]
    assert call(client(server, scope="read write")).error_class is None
    assert server.seen[-1].headers["authorization"] == f"Bearer {value}"


def test_a_token_that_ends_at_once_is_used_once(server: ScriptedServer) -> None:
    server.routes[TOKEN] = [answer(200, told(expires_in=0))]
    caller = client(server)
    for _ in range(2):
        assert call(caller).error_class is None
    assert server.asked == [TOKEN, USER, TOKEN, USER]


@pytest.mark.parametrize("shown", [5, 20, 39, 40])
def test_nothing_of_an_echoed_token_is_in_an_excerpt_nor_half_of_it_at_its_edge(
    server: ScriptedServer, shown: int
) -> None:
    value = "A" * 20 + "b" * 20
    server.routes[TOKEN] = [answer(200, told(access_token=value, expires_in=3600))]
    server.routes[USER] = [answer(500, b"x" * (EXCERPT_BYTES - shown) + value.encode())]
    excerpt = call(client(server)).call.excerpt
    assert excerpt is not None
    assert set(excerpt) <= {"x", "*"}
