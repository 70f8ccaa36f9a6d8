"""Calls of sync routes to common APIs: headers, bodies, GraphQL, and OAuth tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.clock import steady
from inbox.config.model import Api, ApiOauth2, Config
from inbox.config.values import Duration, Secret
from inbox.errors import ConfigError, MappingError
from relay.delivery.outcome import Delivery, Outcome
from relay.destinations.base import Clients
from relay.http import client as http_client
from relay.http.client import HttpClient, Request
from relay.http.response import EXCERPT_BYTES, CallResult
from relay.sync.templates import HeaderTemplate
from tests.destinations.calling import DELETE, FOUND, SECOND, UPDATE, World, replace_in_sync
from tests.helpers.delivering import DELIVERY, a_delivery, as_delivered, as_failed, build, context, failure
from tests.helpers.scripted import Act, ScriptedServer, Seen, answer, find_closed_port, serving


def sent(world: World, asked: str) -> list[Seen]:
    return [seen for seen in world.server.seen if f"{seen.method} {seen.target}" == asked]


def bodies(world: World, asked: str) -> list[Any]:
    return [json.loads(seen.body) for seen in sent(world, asked)]


def with_update(more: str) -> str:
    return replace_in_sync(
        'update = { path = "/contacts/{target.id}" }', f'update = {{ path = "/contacts/{{target.id}}", {more} }}'
    )


# --- headers of one call


def test_each_call_has_its_own_headers_instead_of_those_of_its_endpoint_but_its_credentials(world: World) -> None:
    sync = with_update('headers = { "Idempotency-Key" = "{event.seq}", "content-type" = "application/scim+json" }')
    sync = sync.replace('/user/{event.entity_id}" }', '/user/{event.entity_id}", headers = { "X-Version" = "2022" } }')
    sync = sync.replace('pick = "items" }', 'pick = "items", headers = { accept = "text/x", "User-Agent" = "me" } }')
    as_delivered(world.deliver(sync=sync))
    fetch, find, update = (seen.headers for seen in world.server.seen)
    assert (fetch["accept"], fetch["x-version"]) == ("application/json", "2022")
    assert (find["accept"], "x-version" in find) == ("text/x", False)
    assert (find["user-agent"], find["authorization"]) == ("me", "Bearer crm-token")
    assert (update["idempotency-key"], update["content-type"]) == ("7", "application/scim+json")


NEVER_SET = (
    *("Host", "content-length", "Authorization", "Cookie", "Transfer-Encoding", "Connection", "Proxy-Authorization"),
    *("TE", "Webhook-Id", "Traceparent", "If-None-Match", "Accept-Encoding"),
)
"""Headers that frame the message or hold secrets."""


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        *((f'headers = {{ "{name}" = "x" }}', rf"create\.headers: '{name}' can't be set") for name in NEVER_SET),
        ('headers = { "X Y" = "x" }', "'X Y' is not a header name"),
        ('headers = { "X-A" = "1", "x-a" = "2" }', "'X-A' is given twice in different case"),
        ('headers = { "X-A" = "a\\nb" }', "the header's value .* has a line break"),
        ('headers = { "X-A" = "ä" }', "outside printable ASCII"),
        ('headers = { "X-A" = "" }', "is empty"),
        ('headers = { "X-A" = "ä{event.seq:text}" }', "has a line break, or a character outside printable ASCII"),
        ('headers = { "X-A" = "a{event.seq}" }', "name its form"),
        ('headers = { "X-A" = "{target.id}" }', "unknown name 'target'"),
        ('body = { id = "{event.seq}" }', r'create\.body: sends no mapped field; write "\{fields\}"'),
    ],
)
def test_a_mistake_in_a_call_is_seen_at_start(world: World, keys: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build(world.config(replace_in_sync('create = { path = "/contacts"', f'create = {{ path = "/contacts", {keys}')))


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "ä", "", " a", "x" * 5000, "\ud800"])
def test_a_value_that_no_header_can_hold_is_a_mapping_failure_without_a_call(world: World, value: str) -> None:
    sync = replace_in_sync('"/user/{event.entity_id}" }', '"/user/1", headers = { "X-Id" = "{event.event_id}" } }')
    error_class, error = failure(world.deliver(a_delivery(event_id=value), sync=sync))
    assert error_class == "mapping"
    assert error.startswith("routes.user-to-crm.sync.fetch.headers.X-Id: ")
    assert world.asked == []


@given(st.text())
def test_no_value_of_a_header_ends_its_line(value: str) -> None:
    template = HeaderTemplate("id {event.entity_id:text}", "here", ("event",))
    try:
        text = template.expand({"event": {"entity_id": value}})
    except MappingError:
        return
    assert text == f"id {value}"
    assert text.isascii()
    assert text.isprintable() or "\t" in text
    assert not {"\r", "\n", "\0"} & {*text}


def test_a_service_that_always_says_that_no_call_is_left_is_served_all_the_same(world: World) -> None:
    """Some services describe unlimited plans so. The gate is held, but the attempt goes on."""
    nothing_left = {"X_RateLimit_Limit": "0", "X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "9"}
    find = answer(200, {"items": [{"id": "c1", "external_id": "u1"}]}, **nothing_left)
    calls = as_delivered(world.deliver(find=find)).calls
    assert [(call.step, call.hold is None) for call in calls] == [("fetch", True), ("find", False), ("update", True)]


# --- custom bodies, and errors with the status 200


def test_a_body_of_its_own_holds_the_mapped_fields_where_it_says(world: World) -> None:
    body = 'body = { data = { attributes = "{fields}", id = "{target.id}" }, n = 1 }'
    as_delivered(world.deliver(sync=with_update(body)))
    fields = {"external_id": "u1", "name": "Ada", "phone": None}
    assert bodies(world, UPDATE) == [{"data": {"attributes": fields, "id": "c1"}, "n": 1}]
    assert sent(world, UPDATE)[0].headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("body", "error_class"),
    [
        ({"ok": False, "error": "no_such_channel"}, "rejected"),
        ({"ok": True}, None),
        ({"ok": True, "error": ""}, None),
        ({"error": "busy", "code": "slow_down"}, "throttled"),
    ],
)
def test_an_answer_may_say_error_despite_its_status(world: World, body: object, error_class: str | None) -> None:
    sync = with_update("""errors = "error", throttled = "code == 'slow_down'" """)
    outcome = world.deliver(sync=sync, update=answer(200, body))
    if error_class is None:
        as_delivered(outcome)
    else:
        assert as_failed(outcome).error_class == error_class
        assert as_failed(outcome).error.startswith("update: answered 200 with errors: ")


@pytest.mark.parametrize("body", [b"", b"<html>", b"{" * 70_000])
def test_an_answer_in_which_an_error_could_hide_is_a_bad_one(world: World, body: bytes) -> None:
    assert failure(world.deliver(sync=with_update('errors = "error"'), update=answer(200, body)))[0] == "bad_answer"


def test_an_error_that_repeats_the_secret_is_stored_without_it(world: World) -> None:
    told = {"error": ["crm-token is \u001b[31mwrong\0", "x" * 900]}
    outcome = as_failed(world.deliver(sync=with_update('errors = "error"'), update=answer(200, told)))
    assert outcome.error.startswith("update: answered 200 with errors: *** is \ufffd[31mwrong\ufffd; xxx")
    assert len(outcome.error) < 400
    call = outcome.calls[-1]
    assert "crm-token" not in f"{call.error}{call.excerpt}"
    assert (call.status, call.excerpt is not None) == (200, True)


# --- GraphQL

QUERY = "query ($id: ID!) { user(id: $id) { id name } }"
GRAPHQL = """
    map = { name = "entity.name", external_id = "event.entity_id" }
    [routes.user-to-crm.sync.fetch]
    api = "identity"
    path = "/graphql"
    graphql = "query ($id: ID!) { user(id: $id) { id name } }"
    body = { variables = { id = "{event.entity_id}" } }
    pick = "data.user"
    throttled = "errors[?extensions.code=='THROTTLED']"
    [routes.user-to-crm.sync.find]
    path = "/graphql"
    graphql = "query F { a }"
    body = { variables = { x = "{event.entity_id}" } }
    pick = "data.items"
    [routes.user-to-crm.sync.create]
    path = "/graphql"
    graphql = "mutation C { a }"
    body = { variables = { input = "{fields}" } }
    errors = "errors[].message || data.write.userErrors[].message"
    [routes.user-to-crm.sync.update]
    path = "/graphql"
    graphql = "mutation U { a }"
    body = { variables = { id = "{target.id}", input = "{fields}" } }
    errors = "errors[].message || data.write.userErrors[].message"
    [routes.user-to-crm.sync.delete]
    path = "/graphql"
    graphql = "mutation D { a }"
    body = { variables = { id = "{target.id}" } }
"""
GRAPHQL_FETCH, CALL = "POST /api/graphql", "POST /graphql"
ADA = answer(200, {"data": {"user": {"id": "u1", "name": "Ada"}}})
FOUND_ONE = answer(200, {"data": {"items": [{"id": "c1", "external_id": "u1"}]}})
FOUND_NONE = answer(200, {"data": {"items": []}})
DONE = answer(200, {"data": {"write": {"userErrors": []}}})


GRAPHQL_GONE = answer(200, {"data": {"user": None}})
REFUSED, SLOW = (
    answer(200, {"data": {"write": {"userErrors": [{"message": "Email taken"}, {"message": "Name too long"}]}}}),
    answer(200, {"errors": [{"message": "slow", "extensions": {"code": "THROTTLED"}}], "data": None}),
)
DENIED = answer(200, {"data": {"user": None}, "errors": [{"message": "denied"}]})
WITH_ERRORS = 'answered 200 with errors: {"message":"denied"}'


def graphql(world: World, fetch: Act, *calls: Act, delivery: Delivery = DELIVERY, sync: str = GRAPHQL) -> Outcome:
    world.server.routes[GRAPHQL_FETCH], world.server.routes[CALL] = [fetch], list(calls)
    return world.deliver(delivery, sync=sync)


def test_graphql_is_a_document_and_its_variables(world: World) -> None:
    assert as_delivered(graphql(world, ADA, FOUND_ONE, DONE)).did == "updated"
    assert bodies(world, GRAPHQL_FETCH) == [{"query": QUERY, "variables": {"id": "u1"}}]
    assert bodies(world, CALL) == [
        {"query": "query F { a }", "variables": {"x": "u1"}},
        {"query": "mutation U { a }", "variables": {"id": "c1", "input": {"name": "Ada", "external_id": "u1"}}},
    ]
    assert "idempotency-key" in sent(world, CALL)[1].headers
    assert as_delivered(graphql(world, GRAPHQL_GONE, FOUND_ONE, DONE, delivery=DELETE)).did == "deleted"
    assert bodies(world, CALL)[-1] == {"query": "mutation D { a }", "variables": {"id": "c1"}}


@pytest.mark.parametrize(
    ("delivery", "answers", "end"),
    [
        (DELIVERY, (ADA, FOUND_NONE, DONE), "created"),
        (DELIVERY, (GRAPHQL_GONE,), "not_found fetch: the response has null at data.user"),
        (SECOND, (GRAPHQL_GONE, FOUND_NONE), "nothing_to_delete"),
        (SECOND, (DENIED,), f"rejected fetch: {WITH_ERRORS}"),  # errors beside a null do not mean a deletion
        (DELIVERY, (SLOW,), "throttled fetch: answered 200 with errors: "),
        (DELIVERY, (ADA, FOUND_ONE, REFUSED), "rejected update: answered 200 with errors: Email taken; Name too long"),
    ],
)
def test_the_body_of_graphql_decides(world: World, delivery: Delivery, answers: tuple[Act, ...], end: str) -> None:
    outcome = graphql(world, *answers, delivery=delivery)
    if " " in end:
        assert " ".join(failure(outcome)).startswith(end)
    else:
        assert as_delivered(outcome).did == end


@pytest.mark.parametrize("delivery", [SECOND, DELETE])
@pytest.mark.parametrize(
    "body",
    [{}, {"data": None}, {"data": {}}, {"data": []}, {"a": 1}, [], None, {"data": {"user": []}}, {"data": {"user": {}}}],
)  # fmt: skip
def test_an_answer_without_an_explicit_null_deletes_nothing(world: World, delivery: Delivery, body: object) -> None:
    assert failure(graphql(world, answer(200, body), delivery=delivery))[0] == "bad_answer"


@pytest.mark.parametrize("body", [{"message": "Bad credentials"}, {"data": None}, {"errors": []}, {}, [], "ok", None])
def test_an_answer_that_is_no_response_of_graphql_is_no_success_of_a_write(world: World, body: object) -> None:
    error_class, error = failure(graphql(world, ADA, FOUND_ONE, answer(200, json.dumps(body).encode())))
    assert (error_class, error.partition(":")[0]) == ("bad_answer", "update")


def test_errors_of_the_whole_request_count_unless_the_configuration_lets_them_pass(world: World) -> None:
    named = "errors[].message || data.write.userErrors[].message"
    sync = GRAPHQL.replace(named, "data.write.userErrors[].message")
    assert failure(graphql(world, ADA, FOUND_ONE, DENIED, sync=sync)) == ("rejected", f"update: {WITH_ERRORS}")
    sync = GRAPHQL.replace(named, "errors[?message != 'denied']")
    assert as_delivered(graphql(world, ADA, FOUND_ONE, DENIED, sync=sync)).did == "updated"


def test_a_value_stays_a_variable_however_hostile_it_is_and_an_object_is_none(world: World) -> None:
    hostile = '") { id } } mutation { deleteAll } #'
    graphql(world, ADA, delivery=a_delivery(entity_id=hostile))
    assert bodies(world, GRAPHQL_FETCH)[0] == {"query": QUERY, "variables": {"id": hostile}}
    sync = GRAPHQL.replace('id = "{event.entity_id}"', 'id = "{event.body.id}"')
    assert failure(graphql(world, ADA, delivery=a_delivery(body=b'{"id": {"$ne": null}}'), sync=sync))[0] == "mapping"


def test_an_item_of_a_list_may_be_the_entity(world: World) -> None:
    sync = replace_in_sync(
        'path = "/user/{event.entity_id}" }', 'path = "/user/{event.entity_id}", pick = "users[0]" }'
    )
    assert as_delivered(world.deliver(sync=sync, fetch=answer(200, {"users": [{"id": "u1"}]}))).did == "updated"
    none = answer(200, {"users": []})
    assert as_delivered(world.deliver(SECOND, sync=sync, fetch=none, find=FOUND)).did == "deleted"
    assert failure(world.deliver(SECOND, sync=sync, fetch=answer(200, {"error": "x"})))[0] == "bad_answer"


# --- bearer tokens by client credentials


ASKED = Request("fetch", "GET", {"Accept": "application/json"}, path="/user/1")
TOKEN, GET_USER = "POST /token", "GET /user/1"


PLANTED = "t0ken-of-a-test"


def encode_token(**members: object) -> bytes:
    """Return a token response with other members; None omits one."""
    answered = {"access_token": PLANTED, "token_type": "Bearer", "note": PLANTED, **members}
    return json.dumps({name: value for name, value in answered.items() if value is not None}).encode()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    routes = {
        TOKEN: [answer(200, encode_token(access_token=f"t0ken-{number}", expires_in=3600)) for number in (1, 2, 3)],
        GET_USER: [answer(200, {"id": "1"})],
    }
    with serving(routes=routes) as made:
        yield made


def make_token_client(
    server: ScriptedServer, token_url: str | None = None, timeout: float = 30, **more: str
) -> HttpClient:
    auth = ApiOauth2(
        token_url=token_url or f"{server.url}/token",
        client_id=Secret("c1ient"),
        client_secret=Secret("s3cr3t:%"),
        **more,  # type: ignore[arg-type]  # scope and credentials
    )
    api = Api(base_url=server.url, auth=auth, allow_private=True, allow_http=True, timeout=Duration(timeout))
    return Clients(Config(apis={"identity": api})).api("identity")


def call_with_token(caller: HttpClient) -> CallResult:
    return caller.call(ASKED, context())


def test_a_token_is_got_once_and_used_for_many_calls(server: ScriptedServer) -> None:
    caller = make_token_client(server)
    for _ in range(3):
        assert call_with_token(caller).error_class is None
    assert server.asked == [TOKEN, GET_USER, GET_USER, GET_USER]
    assert {seen.headers["authorization"] for seen in server.seen[1:]} == {"Bearer t0ken-1"}
    first = server.seen[0]
    assert first.headers["authorization"] == "Basic YzFpZW50OnMzY3IzdDol"
    assert first.body == b"grant_type=client_credentials"


def test_the_credentials_may_stand_in_the_form_and_a_scope_be_asked_for(server: ScriptedServer) -> None:
    call_with_token(make_token_client(server, credentials="body", scope="read write"))
    first = server.seen[0]
    assert "authorization" not in first.headers
    assert sorted(first.body.decode().split("&")) == [
        "client_id=c1ient",
        "client_secret=s3cr3t%3A%25",
        "grant_type=client_credentials",
        "scope=read+write",
    ]


def test_threads_that_start_together_share_one_token(server: ScriptedServer) -> None:
    caller = make_token_client(server)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: caller.call(ASKED, context()), range(8)))
    assert all(found.error_class is None for found in answers)
    assert server.asked.count(TOKEN) == 1


def test_a_token_is_renewed_before_it_ends(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = make_token_client(server)
    began = steady()
    call_with_token(caller)
    for later, got in ((3560, 1), (3571, 2)):
        monkeypatch.setattr(http_client, "steady", lambda later=later: began + later)
        call_with_token(caller)
        assert server.asked.count(TOKEN) == got


def test_a_call_that_is_refused_is_made_once_more_with_a_new_token(server: ScriptedServer) -> None:
    server.routes[GET_USER] = [answer(401), answer(200, {"id": "1"})]
    assert call_with_token(make_token_client(server)).error_class is None
    assert server.asked == [TOKEN, GET_USER, TOKEN, GET_USER]
    assert server.seen[-1].headers["authorization"] == "Bearer t0ken-2"


@pytest.mark.parametrize(
    ("status", "error_class"),
    [(503, "server_error"), (429, "throttled"), *((each, "auth") for each in (400, 401, 403, 404, 409, 410, 412, 422))],
)
def test_without_a_token_no_call_is_made(server: ScriptedServer, status: int, error_class: str) -> None:
    server.routes[TOKEN] = [answer(status, b"s3cr3t:%")]
    found = call_with_token(make_token_client(server))
    assert (found.error_class, found.call.error, found.call.excerpt) == (
        error_class,
        f"no token: answered {status}",
        None,
    )
    assert (found.call.step, found.call.url) == ("fetch", f"{server.url}/token")
    assert (
        call_with_token(make_token_client(server, token_url=f"http://127.0.0.1:{find_closed_port()}/token")).error_class
        == "not_sent"
    )
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
        (encode_token(access_token=None, error="invalid_client"), "token: Object missing required field `access_token`"),
        *((encode_token(access_token=text), "- at `$.access_token`") for text in ([PLANTED], 7)),
        *(
            (encode_token(access_token=text), "- at `$.access_token`")
            for text in (
                "", f"{PLANTED}\n", f"{PLANTED}\r\nX: 1", f" {PLANTED}", f"{PLANTED} x", f"{PLANTED}\u0000",
                f"{PLANTED}\u00e9", f"{PLANTED}\u20ac", f"{PLANTED}\t", f"{PLANTED}\u007f",
            )
        ),
        *((encode_token(token_type=kind), "- at `$.token_type`") for kind in ("mac", "DPoP", "", ["Bearer"], 1, "Bearer ")),
        *((encode_token(expires_in=given_in), "- at `$.expires_in`") for given_in in _ODD_TIMES),
    ],
)  # fmt: skip
def test_an_unusable_token_is_hidden(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture, body: bytes, why: str
) -> None:
    server.routes[TOKEN] = [answer(200, body)]
    found = call_with_token(make_token_client(server))
    assert found.error_class == "bad_answer"
    assert (found.call.error or "").startswith("no token: the response ")
    assert (found.call.error or "").endswith(why)
    assert server.asked == [TOKEN]
    assert PLANTED not in repr(found) + caplog.text


@pytest.mark.parametrize(
    ("value", "members"),
    [
        ("aZ09-._~+/==", {"expires_in": 3600, "token_type": "bEARER"}),
        ("aZ09-._~+/==", {"expires_in": "3600", "token_type": None}),
        ("aZ09", {"scope": "another"}),
        ("00Dxx0000001gPL!AQ0AQDpEDKYsn7io.Kug2_aSmg", {}),  # characters outside of RFC 6750
        ("1234567890|wJalrXUtnFEMI-K7MDENG", {}),
    ],
)
def test_tokens_of_known_servers_are_accepted(server: ScriptedServer, value: str, members: dict[str, object]) -> None:
    server.routes[TOKEN] = [answer(200, encode_token(access_token=value, **members))]
    assert call_with_token(make_token_client(server, scope="read write")).error_class is None
    assert server.seen[-1].headers["authorization"] == f"Bearer {value}"


def test_a_token_that_ends_at_once_is_used_once(server: ScriptedServer) -> None:
    server.routes[TOKEN] = [answer(200, encode_token(expires_in=0))]
    caller = make_token_client(server)
    for _ in range(2):
        assert call_with_token(caller).error_class is None
    assert server.asked == [TOKEN, GET_USER, TOKEN, GET_USER]


@pytest.mark.parametrize("shown", [5, 20, 39, 40])
def test_an_excerpt_shows_no_part_of_an_echoed_token(server: ScriptedServer, shown: int) -> None:
    value = "A" * 20 + "b" * 20
    server.routes[TOKEN] = [answer(200, encode_token(access_token=value, expires_in=3600))]
    server.routes[GET_USER] = [answer(500, b"x" * (EXCERPT_BYTES - shown) + value.encode())]
    excerpt = call_with_token(make_token_client(server)).call.excerpt
    assert excerpt is not None
    assert set(excerpt) <= {"x", "*"}
