"""Python handlers: the event they get, and the outcome of what they do."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from inbox.clock import steady
from inbox.config.model import PythonDestination
from inbox.config.model import Retry as RetryTable
from relay.delivery import facts
from relay.delivery.outcome import Outcome, Skipped
from relay.delivery.policy import RoutePolicy, Schedule, can_be_given_back, decide
from relay.handler import Event, GiveUp, Retry, Skip
from tests.destinations.handling import EVENT, MODULE, Act, Handled, Held
from tests.helpers.delivering import NOW, delivered, failed
from tests.helpers.waiting import until

CONCURRENCY = PythonDestination(function="x:y").concurrency
POLICY = RoutePolicy("strict", blocks_on_death=False, schedule=Schedule(RetryTable(), jitter=0))


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> Handled:
    return Handled(monkeypatch)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.let_go()


def raising(error: BaseException) -> Act:
    def function(_: Event) -> None:
        raise error

    return function


def nothing(_: Event) -> None:
    """All is well."""


def failure(outcome: Outcome) -> tuple[str, str, str]:
    """Its class, its error, and what is known of its one call."""
    (call,) = failed(outcome).calls
    return failed(outcome).error_class, failed(outcome).error, call.sent


def fact_of(outcome: Outcome) -> facts.AnyFact:
    return decide(EVENT, outcome, POLICY, NOW)


# --- what it is given


def test_a_function_that_returns_has_delivered_the_event(handled: Handled) -> None:
    outcome = delivered(handled(lambda _: "whatever it returns"))
    assert outcome.did == "handled"
    (call,) = outcome.calls
    assert (call.step, call.method, call.url, call.sent) == ("handle", "CALL", f"{MODULE}:on_event", "answered")


def test_it_is_given_all_that_is_known_of_the_event(handled: Handled) -> None:
    seen: list[Event] = []
    handled(seen.append)
    assert seen == [
        Event(
            seq=7,
            source="trivore",
            entity_type="USER",
            entity_id="u1",
            event_type="UPDATE",
            action="update",
            event_id="e1",
            occurred_at=NOW,
            received_at=NOW,
            headers={"x-request-id": "r1"},
            body={"id": "u1", "n": 1.1},
            raw=b'{"id": "u1", "n": 1.10}',
            attempt=2,
            idempotency_key=f"{EVENT.webhook_id}-1",
        )
    ]
    with pytest.raises(AttributeError):
        seen[0].seq = 8  # type: ignore[misc]  # it is frozen


@pytest.mark.parametrize(
    ("content_type", "raw", "body"),
    [
        ("application/json", b"[1]", [1]),
        ("application/x-www-form-urlencoded", b"a=1&b=%C3%A4", {"a": "1", "b": "ä"}),
        ("text/plain", b"hello", None),
        ("application/json", b"", None),
    ],
)
def test_the_body_is_parsed_when_it_can_be_and_there_as_it_came(
    handled: Handled, content_type: str, raw: bytes, body: object
) -> None:
    seen: list[Event] = []
    handled(seen.append, content_type=content_type, body=raw)
    assert (seen[0].body, seen[0].raw) == (body, raw)


def test_an_erased_event_is_skipped_without_a_call(handled: Handled) -> None:
    assert handled(raising(AssertionError()), body=None) == Skipped((), "the event's body was erased")


# --- what it raises


def test_skip_ends_it_and_the_log_says_why(handled: Handled) -> None:
    outcome = handled(raising(Skip("not one of ours")))
    assert isinstance(outcome, Skipped)
    assert outcome.why == "not one of ours"
    assert isinstance(fact_of(outcome), Skipped)


@pytest.mark.parametrize(("after", "delay"), [(None, 30), (600, 600), (1, 30), (Decimal(600), 600)])
def test_retry_is_tried_again_by_the_schedule_and_not_before_it_asked(
    handled: Handled,
    after: Any,  # noqa: ANN401  # whatever a handler gives
    delay: int,
) -> None:
    outcome = handled(raising(Retry("the CRM is closed", after=after)))
    assert failure(outcome) == ("handler_retry", "handle: the CRM is closed", "answered")
    fact = fact_of(outcome)
    assert isinstance(fact, facts.AttemptFailed)
    assert (fact.due_at, fact.counted) == (NOW + timedelta(seconds=delay), True)


def test_give_up_is_dead_at_once(handled: Handled) -> None:
    outcome = handled(raising(GiveUp("the customer has left")))
    assert failure(outcome) == ("handler_abort", "handle: the customer has left", "answered")
    fact = fact_of(outcome)
    assert isinstance(fact, facts.Dead)
    assert fact.cause == "handler_abort"


@pytest.mark.parametrize("error", [KeyError("s3cr3t"), SystemExit("s3cr3t"), KeyboardInterrupt("s3cr3t")])
def test_anything_else_is_a_bug_of_which_the_log_has_type_and_place_but_not_the_text(
    handled: Handled, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    with caplog.at_level(logging.ERROR):
        outcome = handled(raising(error))
    name = type(error).__name__
    assert failure(outcome) == ("crashed", f"handle: the function raised {name}", "answered")
    assert f"handler {MODULE}:on_event raised {name} at test_python.py:" in caplog.text
    assert "s3cr3t" not in caplog.text + repr(outcome)
    assert isinstance(fact_of(outcome), facts.AttemptFailed)


@pytest.mark.parametrize("after", [-1.0, float("nan")])
def test_a_retry_after_no_number_of_seconds_is_a_bug(handled: Handled, after: float) -> None:
    def function(_: Event) -> None:
        raise Retry("later", after=after)

    assert failure(handled(function))[:2] == ("crashed", "handle: the function raised ValueError")


def test_any_text_that_it_says_can_be_stored(handled: Handled) -> None:
    outcome = failed(handled(raising(GiveUp("\ud800" + "x" * 10_000))))
    assert len(outcome.error.encode()) < 600
    json.dumps(facts.detail_of(fact_of(outcome)), ensure_ascii=False).encode()


# --- what it takes too long for


def test_one_that_does_not_return_in_time_is_left_behind_and_what_it_did_is_unknown(
    handled: Handled, held: Held
) -> None:
    outcome = handled(held, extra='timeout = "10ms"')
    assert failure(outcome) == ("unknown", "handle: no return within 0.01 s", "unknown")
    held.let_go()
    until(lambda: handled.are_free(CONCURRENCY), "it has returned after all")


def test_one_whose_lease_ends_is_left_behind_and_has_a_fact_that_says_so(handled: Handled, held: Held) -> None:
    began = threading.Event()

    def hanging(event: Event) -> None:
        began.set()
        held(event)

    def lease() -> float:
        return 0.0 if began.is_set() else float("inf")

    outcome = handled(hanging, lease=lease)
    assert failure(outcome) == ("lease_lost", "handle: left behind: the lease ended", "unknown")
    assert not can_be_given_back(outcome)


def test_a_lease_that_ended_before_is_given_back_without_a_call(handled: Handled) -> None:
    outcome = handled(raising(AssertionError()), lease=lambda: 0.0)
    assert failure(outcome) == ("lease_lost", "handle: not called: the lease ended", "not_sent")
    assert can_be_given_back(outcome)


def test_a_lease_that_is_renewed_lets_it_run_on(handled: Handled) -> None:
    looks: list[float] = []
    enough = threading.Event()

    def lease() -> float:
        looks.append(steady())
        if len(looks) == 4:
            enough.set()
        return looks[-1] + 0.05

    delivered(handled(lambda _: enough.wait(30), lease=lease))


def test_when_as_many_as_the_concurrency_are_left_behind_nothing_more_is_called(handled: Handled, held: Held) -> None:
    short = 'timeout = "10ms"\nconcurrency = 2'
    for _ in range(2):
        assert failure(handled(held, extra=short))[0] == "unknown"
    why = "handle: not called: the calls before it, as many as the concurrency, have not returned yet"
    assert failure(handled(raising(AssertionError()), extra=short)) == ("not_sent", why, "not_sent")

    held.let_go()
    until(lambda: handled.are_free(2), "both have returned")
    delivered(handled(nothing, extra="concurrency = 2"))


def test_one_that_is_left_behind_leaves_room_for_others(handled: Handled, held: Held) -> None:
    handled(held, extra='timeout = "10ms"\nconcurrency = 2')
    for _ in range(3):
        delivered(handled(nothing, extra="concurrency = 2"))


def test_a_call_waits_for_room_while_others_still_work(handled: Handled, held: Held) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(handled, held, extra="concurrency = 1")
        held.began.acquire()
        second = pool.submit(handled, nothing, extra="concurrency = 1")
        held.let_go()
        delivered(first.result())
        delivered(second.result())


def test_a_call_that_finds_no_room_in_its_time_was_not_made(handled: Handled, held: Held) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(handled, held, extra="concurrency = 1")
        held.began.acquire()
        outcome = handled(raising(AssertionError()), extra='timeout = "20ms"\nconcurrency = 1')
        assert failure(outcome)[0] == "not_sent"
        held.let_go()
        delivered(first.result())


def test_a_system_without_threads_is_a_call_that_was_not_made(
    handled: Handled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert failure(handled(nothing))[0] == "not_sent"
    delivered(handled(nothing, extra="concurrency = 1"))  # its place is free again
