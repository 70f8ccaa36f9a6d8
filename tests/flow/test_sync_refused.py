"""A source that refuses us, or whose tokens can't be got: the api is left alone, somebody is told, and no event is given up.

The real receiver on its port, the real daemon in a thread, on both databases.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from relay.delivery import policy
from relay.delivery.gates import BreakerLimits, Gate
from relay.store.database import Database
from relay.store.operator import commands
from tests.destinations.syncing import FETCH, FIND, UPDATE
from tests.helpers.evidence import facts, open_states
from tests.helpers.in_step import BASIC, Flow, flowing, relaying, user
from tests.helpers.reading import Row, rows
from tests.helpers.scripted import Act, answer, closed_port
from tests.helpers.waiting import until

TOKEN_CALL = "POST /token"
OAUTH2 = '{ kind = "oauth2", token_url = "{url}/token", client_id = "c1ient", client_secret = "s3cr3t" }'
NOBODY_THERE = OAUTH2.replace("{url}", f"http://127.0.0.1:{closed_port()}")
FOR_LONG = 'breaker = { open_for = "10m" }'
FOR_A_MOMENT = 'breaker = { open_for = "200ms" }'
A_TOKEN = answer(200, {"access_token": "t0ken", "token_type": "Bearer"})


@pytest.fixture
def auth() -> str:
    """Return the settings by which the api authenticates the relay."""
    return BASIC


@pytest.fixture
def breaker() -> str:
    return FOR_LONG


@pytest.fixture(autouse=True)
def _opens_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "BREAKER", BreakerLimits(calls=2))


@pytest.fixture
def flow(database_url: str, auth: str, breaker: str) -> Iterator[Flow]:
    delays = ("100ms",) * 20
    with flowing(database_url, auth=auth, api=breaker, schedule=delays) as made:
        made.server.routes[TOKEN_CALL] = [A_TOKEN]
        yield made


def breakers(engine: Engine) -> list[Row]:
    return rows(engine, "SELECT kind, name, breaker, breaker_cause FROM gate WHERE breaker <> 'closed'")


def alerts(engine: Engine) -> list[str]:
    """Whom it was about, oldest first."""
    found = rows(engine, "SELECT kind, subject, firing FROM alert ORDER BY id")
    return [f"{row['kind']} {row['subject']} {'begins' if row['firing'] else 'is over'}" for row in found]


def resume(engine: Engine) -> None:
    commands.ask(Database(engine), "resume", Gate(api="identity"), who="kim", why="they know us again")


def goes_on(flow: Flow, engine: Engine) -> None:
    """All is delivered, a later event of the same entity too."""
    until(lambda: not open_states(engine), "all is delivered")
    flow.script(fetch=user("Grace"))
    flow.tell(SystemClock().now(), "EDIT")
    until(lambda: flow.sent() and flow.sent()[-1]["name"] == "Grace", "a later event is delivered")
    until(lambda: not open_states(engine), "nothing is left")
    assert "dead" not in {fact["kind"] for fact in facts(engine)}
    assert breakers(engine) == []


@pytest.mark.parametrize(
    ("auth", "refused", "cause"),
    [
        pytest.param(BASIC, {FETCH: answer(403)}, "fetch: answered 403 Forbidden", id="403"),
        pytest.param(BASIC, {FETCH: answer(401)}, "fetch: answered 401 Unauthorized", id="401"),
        pytest.param(OAUTH2, {FETCH: answer(403)}, "fetch: answered 403 Forbidden", id="403 to a token"),
        pytest.param(OAUTH2, {TOKEN_CALL: answer(401)}, "fetch: no token: answered 401", id="401 instead of a token"),
    ],
)
def test_a_source_that_refuses_us_is_not_called_until_it_is_resumed_and_no_attempt_is_used(
    flow: Flow, engine: Engine, refused: dict[str, Act], cause: str
) -> None:
    well = {call: list(flow.server.routes[call]) for call in refused}
    flow.server.routes.update({call: [act] for call, act in refused.items()})
    with relaying(engine, flow.config):
        flow.tell(SystemClock().now())
        until(lambda: breakers(engine), "the breaker opens")
        assert breakers(engine) == [{"kind": "api", "name": "identity", "breaker": "open", "breaker_cause": cause}]
        assert alerts(engine) == ["breaker_open api identity begins"]
        until(lambda: open_states(engine) == {"ready": 1}, "it waits")
        calls = len(flow.server.seen)
        flow.server.routes.update(well)
        flow.tell(SystemClock().now(), "EDIT")
        until(lambda: len(rows(engine, "SELECT 1 FROM inbox")) == 2, "what arrives is kept")
        assert len(flow.server.seen) == calls
        resume(engine)
        goes_on(flow, engine)
    assert alerts(engine) == ["breaker_open api identity begins", "breaker_open api identity is over"]
    assert {fact["detail"]["counted"] for fact in facts(engine) if fact["kind"] == "attempt_failed"} == {False}
    assert {fact["attempt"] for fact in facts(engine) if fact["kind"] == "delivered"} == {1}


@pytest.mark.parametrize("breaker", [FOR_A_MOMENT])
@pytest.mark.parametrize("auth", [OAUTH2])
@pytest.mark.parametrize(
    ("broken", "error_class"),
    [(answer(503), "server_error"), (answer(429), "throttled"), (answer(200, b"<html>"), "bad_answer")],
    ids=["503", "429", "no JSON"],
)
def test_while_tokens_can_not_be_got_the_source_is_not_asked_and_afterwards_all_is_delivered(
    flow: Flow, engine: Engine, broken: Act, error_class: str
) -> None:
    """The breaker hears of those that are signs of illness; an answer that is no token is tried again by the schedule."""
    flow.server.routes[TOKEN_CALL] = [broken]
    opens = error_class != "bad_answer"
    with relaying(engine, flow.config):
        flow.tell(SystemClock().now())
        until(lambda: flow.asked.count(TOKEN_CALL) >= 3, "it is tried again")
        if opens:
            until(lambda: alerts(engine), "somebody is told")
        assert set(flow.asked) == {TOKEN_CALL}, "no call without a token"
        flow.server.routes[TOKEN_CALL] = [A_TOKEN]
        goes_on(flow, engine)
    failed = [fact["detail"] for fact in facts(engine) if fact["kind"] == "attempt_failed"]
    assert {detail["error_class"] for detail in failed} == {error_class}
    told = ["breaker_open api identity begins", "breaker_open api identity is over"]
    assert alerts(engine) == (told if opens else [])
    assert flow.asked[-3:] == [FETCH, FIND, UPDATE]
    assert flow.server.seen[-3].headers["authorization"] == "Bearer t0ken"


@pytest.mark.parametrize("auth", [NOBODY_THERE])
def test_where_nobody_gives_tokens_the_breaker_opens_and_what_waits_uses_no_attempt(flow: Flow, engine: Engine) -> None:
    with relaying(engine, flow.config):
        for entity in ("u1", "u2", "u3"):
            flow.tell(SystemClock().now(), entity=entity)
        until(lambda: breakers(engine), "the breaker opens")
        until(lambda: open_states(engine) == {"ready": 3}, "what was in hand has come back")
        flow.tell(SystemClock().now(), entity="u4")
        until(lambda: open_states(engine) == {"ready": 4}, "all wait")
    (opened,) = breakers(engine)
    assert (opened["kind"], opened["name"], opened["breaker"]) == ("api", "identity", "open")
    assert opened["breaker_cause"] == "fetch: no token: Connection refused"
    assert alerts(engine) == ["breaker_open api identity begins"]
    assert flow.asked == []
    failed = [fact for fact in facts(engine) if fact["kind"] == "attempt_failed"]
    assert {fact["detail"]["error_class"] for fact in failed} == {"not_sent"}
    assert 4 not in {fact["seq"] for fact in failed}
    used = {row["seq"]: row["attempt"] for row in rows(engine, "SELECT seq, attempt FROM open_delivery")}
    assert used[4] == 0
    counted = [fact["seq"] for fact in failed if fact["detail"].get("counted", True)]
    assert used == {seq: counted.count(seq) for seq in used}, "those that it opened by, none that came after"
