"""A sync route with the real receiver and daemon: two changes whose webhooks are the same, and a source that refuses us."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine
from tests.helpers.databases import ON_BOTH
from tests.helpers.tables import count, facts, open_states, rows

from inbox.clock import SystemClock
from relay.delivery import policy
from relay.delivery.gates import BreakerLimits, Gate
from relay.store.database import Database
from relay.store.operator import commands
from tests.destinations.syncing import FETCH, FIND, UPDATE
from tests.helpers.daemon import BASIC, Flow, flowing, in_seconds, kinds, relaying, user
from tests.helpers.scripted import Act, answer
from tests.helpers.waiting import until

TOKEN_CALL = "POST /token"
OAUTH2 = '{ kind = "oauth2", token_url = "{url}/token", client_id = "c1ient", client_secret = "s3cr3t" }'
A_TOKEN = answer(200, {"access_token": "t0ken", "token_type": "Bearer"})


def delivered(engine: Engine, times: int) -> None:
    until(lambda: kinds(engine).count("delivered") == times, f"{times} deliveries")
    until(lambda: not open_states(engine), "nothing is open")


@ON_BOTH
def test_a_second_change_in_one_second_whose_webhook_is_the_same_is_downstream_in_the_end(
    flow: Flow, engine: Engine
) -> None:
    this_second = SystemClock().now()
    flow.script(fetch=user("first"))
    with relaying(engine, flow.config):
        assert flow.tell(this_second) == {"status": "accepted", "seq": 1}
        delivered(engine, 1)
        flow.script(fetch=user("second"))
        assert flow.tell(this_second) == {"status": "duplicate", "seq": 1}
        delivered(engine, 2)
    assert [sent["name"] for sent in flow.sent()] == ["first", "second"]
    assert kinds(engine) == ["delivered", "rearmed", "delivered"]
    assert count(engine, "inbox") == 1
    keys = {seen.headers["idempotency-key"] for seen in flow.server.seen if seen.method == "PATCH"}
    assert len(keys) == 2, "the other service takes the second for a call of its own"


def test_nothing_more_is_called_when_the_first_delivery_has_certainly_seen_the_second_state(
    flow: Flow, engine: Engine
) -> None:
    now = SystemClock().now()
    at = now - timedelta(seconds=2)
    flow.script(fetch=user("second", in_seconds(now)))
    with relaying(engine, flow.config):
        flow.tell(at)
        delivered(engine, 1)
        assert flow.tell(at) == {"status": "duplicate", "seq": 1}
        until(lambda: count(engine, "duplicate_request WHERE handled_at IS NOT NULL") == 1, "the repeat is judged")
    assert kinds(engine) == ["delivered"]
    assert flow.asked == [FETCH, FIND, UPDATE]


@pytest.mark.parametrize(
    ("auth", "refused"),
    [(BASIC, {FETCH: answer(403)}), (OAUTH2, {TOKEN_CALL: answer(401)})],
    ids=["403", "401 instead of a token"],
)
def test_a_source_that_refuses_us_is_not_called_until_it_is_resumed_and_no_attempt_is_used(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, auth: str, refused: dict[str, Act]
) -> None:
    monkeypatch.setattr(policy, "BREAKER", BreakerLimits(calls=2))
    breaker = 'breaker = { open_for = "10m" }'
    with flowing(database_url, auth=auth, api=breaker, schedule=("100ms",) * 20) as flow:
        flow.server.routes[TOKEN_CALL] = [A_TOKEN]
        well = {call: list(flow.server.routes[call]) for call in refused}
        flow.server.routes.update({call: [act] for call, act in refused.items()})
        with relaying(engine, flow.config):
            flow.tell(SystemClock().now())
            until(lambda: count(engine, "gate WHERE kind = 'api' AND breaker = 'open'"), "the breaker opens")
            until(lambda: open_states(engine) == {"ready": 1}, "it waits")
            calls = len(flow.server.seen)
            flow.server.routes.update(well)
            flow.tell(SystemClock().now(), "EDIT")
            until(lambda: count(engine, "open_delivery WHERE state <> 'received'") >= 1, "it is kept")
            assert len(flow.server.seen) == calls
            commands.ask(Database(engine), "resume", Gate(api="identity"), who="kim", why="they know us again")
            until(lambda: not open_states(engine), "all is delivered")
    told = rows(engine, "SELECT kind, subject, firing FROM alert ORDER BY id")
    assert [(row["kind"], row["subject"], bool(row["firing"])) for row in told] == [
        ("breaker_open", "api identity", True),
        ("breaker_open", "api identity", False),
    ]
    assert {fact["detail"]["counted"] for fact in facts(engine) if fact["kind"] == "attempt_failed"} == {False}
    assert {fact["attempt"] for fact in facts(engine) if fact["kind"] == "delivered"} == {1}
    assert "dead" not in kinds(engine)
