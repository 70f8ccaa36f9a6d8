"""Conditional fetches and rate limits from the webhook to the counterpart: real receiver, both databases, services scripted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from tests.destinations.syncing import FETCH, FIND, UPDATE, USER, changed
from tests.helpers.evidence import facts, open_states
from tests.helpers.in_step import Flow, SyncSteps, flowing, relaying
from tests.helpers.reading import rows
from tests.helpers.scripted import Act, answer
from tests.helpers.waiting import until

CONDITIONAL = changed('path = "/user/{event.entity_id}" }', 'path = "/user/{event.entity_id}", conditional = true }')
SAME = answer(304)


def state(name: str, etag: str) -> Act:
    return answer(200, {**USER, "name": name}, etag=etag)


@pytest.fixture
def flow(database_url: str) -> Iterator[Flow]:
    with flowing(database_url, sync=CONDITIONAL) as made:
        yield made


@pytest.fixture
def steps(engine: Engine, flow: Flow) -> Iterator[SyncSteps]:
    made = SyncSteps(engine, flow)
    yield made
    made.close()


def conditions(flow: Flow) -> list[str | None]:
    return [seen.headers.get("if-none-match") for seen in flow.server.seen if seen.target == FETCH.split()[1]]


def test_an_entity_that_did_not_change_costs_one_call(flow: Flow, steps: SyncSteps, engine: Engine) -> None:
    flow.script(fetch=[state("Ada", '"v1"'), SAME])
    steps.tell()
    steps.later()
    steps.tell()
    assert flow.asked == [FETCH, FIND, UPDATE, FETCH]
    assert conditions(flow) == [None, '"v1"']
    assert [fact["kind"] for fact in facts(engine)] == ["delivered", "unchanged"]
    flow.script(fetch=state("Grace", '"v2"'))
    steps.later()
    steps.tell()
    assert flow.sent()[-1]["name"] == "Grace"
    assert rows(engine, "SELECT etag FROM lane") == [{"etag": '"v2"'}]
    assert steps.left() == {}


def test_an_entity_that_returns_to_its_earlier_state_after_a_write_in_doubt_is_sent_again(
    flow: Flow, steps: SyncSteps
) -> None:
    flow.script(
        fetch=[state("Ada", '"v1"'), state("Grace", '"v2"'), state("Ada", '"v1"')],
        update=[answer(), answer(500), answer()],
    )
    steps.tell()
    steps.later()
    steps.tell()
    steps.later()
    assert [sent["name"] for sent in flow.sent()] == ["Ada", "Grace", "Ada"], "the 500 may have come after the write"
    assert conditions(flow) == [None, '"v1"', None]
    assert steps.left() == {}


def test_a_rate_limit_of_the_source_delays_and_opens_no_breaker(flow: Flow, engine: Engine) -> None:
    used_up = answer(403, b"", x_ratelimit_remaining="0", x_ratelimit_reset="1")
    flow.script(fetch=[used_up, state("Ada", '"v1"')])
    with relaying(engine, flow.config):
        flow.tell(SystemClock().now())
        until(lambda: [fact["kind"] for fact in facts(engine)] == ["attempt_failed"], "it was asked to wait")
        (gate,) = rows(engine, "SELECT kind, name, breaker, hold_reason FROM gate WHERE held_until IS NOT NULL")
        until(lambda: not open_states(engine), "it is delivered")
    assert gate == {
        "kind": "api", "name": "identity", "breaker": "closed", "hold_reason": "fetch answered 403: X-RateLimit-Remaining is 0"
    }  # fmt: skip
    failed, last = facts(engine)
    assert (failed["detail"]["error_class"], failed["detail"]["counted"]) == ("throttled", False)
    assert (last["kind"], last["attempt"]) == ("delivered", 1)
