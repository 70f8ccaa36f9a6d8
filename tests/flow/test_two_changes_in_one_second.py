"""Two changes of one entity within one second, whose webhooks are the same byte for byte: the second is not lost.

The real receiver on its port, the real daemon in a thread, on both databases.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from relay.daemon.loop import Relay
from tests.destinations.syncing import FETCH, FIND, UPDATE
from tests.helpers.daemon import kinds
from tests.helpers.evidence import facts, open_states
from tests.helpers.in_step import Flow, in_seconds, relaying, user
from tests.helpers.reading import count
from tests.helpers.scripted import Act, ScriptedServer, answer
from tests.helpers.waiting import until


@pytest.fixture
def relay(flow: Flow, engine: Engine) -> Iterator[Relay]:
    with relaying(engine, flow.config) as made:
        yield made


@pytest.fixture
def this_second() -> datetime:
    return SystemClock().now()


def delivered(engine: Engine, times: int) -> None:
    until(lambda: kinds(engine).count("delivered") == times, f"{times} deliveries")
    until(lambda: not open_states(engine), "nothing is open")


def judged(engine: Engine) -> None:
    until(lambda: count(engine, "duplicate_request WHERE handled_at IS NOT NULL") == 1, "the repeat is judged")


@pytest.mark.usefixtures("relay")
def test_a_second_change_whose_webhook_is_the_same_is_downstream_in_the_end(
    flow: Flow, engine: Engine, this_second: datetime
) -> None:
    flow.script(fetch=user("first"))
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


class Held:
    """An act that waits: `has_come` is set when it was asked, and it answers after `go`."""

    def __init__(self, act: Act) -> None:
        self.has_come, self.go = threading.Event(), threading.Event()
        self._act = act

    def __call__(self, server: ScriptedServer, connection: socket.socket) -> None:
        self.has_come.set()
        self.go.wait(30)
        self._act(server, connection)


@pytest.mark.usefixtures("relay")
def test_it_is_so_too_when_the_second_comes_while_the_first_is_still_being_written(
    flow: Flow, engine: Engine, this_second: datetime
) -> None:
    update = Held(answer())
    flow.script(fetch=user("first"), update=update)
    try:
        flow.tell(this_second)
        assert update.has_come.wait(10), "the first state is on its way"
        flow.script(fetch=user("second"))
        assert flow.tell(this_second)["status"] == "duplicate"
        assert count(engine, "duplicate_request WHERE handled_at IS NULL") == 1
    finally:
        update.go.set()
    delivered(engine, 2)
    assert [sent["name"] for sent in flow.sent()] == ["first", "second"]
    assert kinds(engine) == ["delivered", "rearmed", "delivered"]


@pytest.mark.usefixtures("relay")
def test_a_repeat_whose_second_state_was_the_same_writes_it_once_more_and_no_third_time(
    flow: Flow, engine: Engine, this_second: datetime
) -> None:
    """A sender that merely sends twice costs a call, never a change."""
    flow.script(fetch=user("only"))
    for _ in range(2):
        flow.tell(this_second)
    judged(engine)
    until(lambda: not open_states(engine), "nothing is open")
    assert {sent["name"] for sent in flow.sent()} == {"only"}
    assert len(flow.sent()) <= 2


def certainly_seen(by: str, moment: datetime) -> tuple[datetime, Act]:
    """The time of the event, and the second state: fetched long after it, or with a time of its own that says so."""
    if by == "the time of the fetch":
        return moment - timedelta(minutes=5), user("second")
    return moment - timedelta(seconds=2), user("second", in_seconds(moment))


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize("by", ["the time of the fetch", "its own last change"])
def test_nothing_more_is_called_when_the_first_delivery_has_certainly_seen_the_second_state(
    flow: Flow, engine: Engine, this_second: datetime, by: str
) -> None:
    at, second = certainly_seen(by, this_second)
    flow.script(fetch=second)
    flow.tell(at)
    delivered(engine, 1)
    assert flow.tell(at) == {"status": "duplicate", "seq": 1}
    judged(engine)

    assert [fact["kind"] for fact in facts(engine)] == ["delivered"]
    assert flow.asked == [FETCH, FIND, UPDATE]
    assert [sent["name"] for sent in flow.sent()] == ["second"]
    assert open_states(engine) == {}
