"""Retry: a person makes attempts that wait due at once; nothing else about them changes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from inbox.events.timestamps import as_time
from relay.delivery.outcome import Call, Failed
from relay.operations.asks import Selection
from relay.store import record
from relay.store.operator import changes, commands, execution, selection, tasks
from relay.store.operator.changes import change
from relay.store.operator.plan import Bound, Plan, preview
from relay.store.operator.selection import Choice, keys_of
from tests.helpers.commanding import carry_out
from tests.helpers.relaying import CONFIG, DONE, POLICIES, UNWELL, Steps
from tests.helpers.storing import a_fact, an_event
from tests.store.verifying import differences

ALL = Selection(everything=True)
ANSWERED_503 = Failed(
    (Call("forward", "POST", "https://audit.example.com", "answered", 1.0, status=503),), "server_error", "Answered 503"
)
NO_ANSWER = Failed((Call("forward", "POST", "https://audit.example.com", "unknown", 1.0),), "unknown", "no answer")


def plan(steps: Steps, selection: Selection) -> Plan:
    return preview(steps.database, Choice("retry", selection, CONFIG), Bound(listed=1000))


def meant(steps: Steps, selection: Selection) -> list[int]:
    planned = plan(steps, selection)
    assert planned.count == len(planned.deliveries)
    return [row["seq"] for row in planned.deliveries]


def retry_all(steps: Steps, selection: Selection) -> int:
    planned = plan(steps, selection).count
    changed = carry_out(steps.database, CONFIG, "retry", selection, who="ann", why="the CRM is back")
    assert changed == planned
    return changed


def test_a_waiting_attempt_is_due_at_once_and_keeps_its_attempts_and_its_lane(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    steps.attempt(UNWELL)
    assert steps.claim_due() == []
    (before,) = steps.rows("SELECT * FROM open_delivery WHERE seq = 1")

    assert retry_all(steps, Selection(seq=1)) == 1

    (after,) = steps.rows("SELECT * FROM open_delivery WHERE seq = 1")
    assert after == {**before, "due_at": steps.clock.moment}
    assert steps.states() == [(1, "strict", "ready"), (2, "strict", "waiting")]
    (fact,) = steps.rows("SELECT detail, relay_node FROM delivery_log WHERE kind = 'rescheduled'")
    assert (fact["detail"]["who"], fact["detail"]["why"], fact["relay_node"]) == ("ann", "the CRM is back", None)
    assert as_time(fact["detail"]["was_due_at"]) == before["due_at"]
    assert differences(steps.database) == []
    assert steps.attempt(DONE).attempt == 2
    assert steps.states() == [(2, "strict", "ready")]
    steps.facts_agree()


def test_the_schedule_goes_on_where_it_was(steps: Steps) -> None:
    """A retry is no new run: the next failure has the next, longer delay."""
    steps.arrive(an_event(1))
    steps.attempt(UNWELL)
    retry_all(steps, ALL)
    steps.attempt(UNWELL)
    (row,) = steps.rows("SELECT attempt, run, due_at FROM open_delivery")
    delay = POLICIES["strict"].schedule.delay_after(2)
    assert delay is not None
    assert (row["attempt"], row["run"], row["due_at"]) == (2, 0, steps.clock.moment + delay)


def test_each_filter_picks_among_the_waiting(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"), an_event(2, "u2", routes=["latest"]))
    steps.record_all(steps.claim_due(), ANSWERED_503)
    steps.advance(2)
    failed_later = steps.clock.moment
    steps.arrive(an_event(3, "u3"))
    steps.record_all(steps.claim_due(), NO_ANSWER)

    assert meant(steps, ALL) == [1, 2, 3]
    for chosen, found in (
        (Selection(route="latest"), [2]),
        (Selection(source="trivore"), [1, 2, 3]),
        (Selection(source="github"), []),
        (Selection(destination="audit"), [1, 2, 3]),
        (Selection(entity_type="USER", entity_id="u3"), [3]),
        (Selection(event_type="UPDATE"), [1, 2, 3]),
        (Selection(event_type="DELETE"), []),
        (Selection(cause="server_error"), [1, 2]),
        (Selection(cause="unknown"), [3]),
        (Selection(status=503), [1, 2]),
        (Selection(status=500), []),
        (Selection(error="ANSWERED"), [1, 2]),
        (Selection(error="%"), []),
        (Selection(since=failed_later), [3]),
        (Selection(until=failed_later), [1, 2]),
        (Selection(cause="server_error", route="strict"), [1]),
    ):
        assert meant(steps, chosen) == found, chosen


def test_one_that_took_over_the_retries_of_an_older_one_has_the_cause_of_that_one(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["latest"]))
    steps.attempt(ANSWERED_503, "latest")
    steps.arrive(an_event(2, routes=["latest"]))
    assert steps.states() == [(2, "latest", "ready")]
    (found,) = plan(steps, Selection(cause="server_error", status=503)).deliveries
    assert (found["seq"], found["cause"], found["error"]) == (2, "server_error", "Answered 503")


@pytest.mark.parametrize("of", ["soon", "9" * 30, None, [1]])
def test_one_that_took_over_from_nothing_that_can_be_read_is_planned_without_a_cause(steps: Steps, of: object) -> None:
    steps.arrive(an_event(1, routes=["latest"]), an_event(2, "u2", routes=["latest"]))
    steps.record_all(steps.claim_due(2), ANSWERED_503)
    steps.arrive(an_event(3, routes=["latest"]))
    steps.do(a_fact("took_over", 3, "latest", of=of))
    planned = plan(steps, Selection(everything=True))
    assert [(row["seq"], row["cause"]) for row in planned.deliveries] == [(2, "server_error"), (3, None)]
    assert planned.left_out == {}


def test_a_plan_counts_by_route_and_cause_and_says_until_when_they_wait(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"), an_event(3, "u3", routes=["latest"]))
    steps.record_all(steps.claim_due(1, "strict"), ANSWERED_503)
    first = steps.rows("SELECT due_at FROM open_delivery WHERE seq = 1")[0]["due_at"]
    steps.advance(1)
    steps.record_all(steps.claim_due(1, "strict"), ANSWERED_503)
    steps.record_all(steps.claim_due(1, "latest"), NO_ANSWER)
    larger, smaller = plan(steps, ALL).groups
    assert (larger.route, larger.state, larger.cause, larger.count) == ("strict", "retrying", "server_error", 2)
    assert (larger.first_due_at, larger.last_due_at) == (first, first + timedelta(seconds=1))
    assert (smaller.route, smaller.cause, smaller.count) == ("latest", "unknown", 1)


def test_the_retries_of_a_mountain_leave_room_for_new_events(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "BATCH", 10)
    monkeypatch.setattr(changes, "MOST_OPEN", 20)
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 41)))
    steps.record_all(steps.claim_due(), UNWELL)
    number = commands.ask(steps.database, "retry", ALL, who="ann", why="back")
    while execution.work_on(steps.work, number):
        pass
    progress = commands.progress(steps.database, number)
    assert progress is not None
    assert (progress.state, progress.affected, progress.answer) == (
        "running",
        20,
        "waits: 20 deliveries are due on route strict",
    )
    steps.record_all(steps.claim_due(15))
    while execution.work_on(steps.work, number):
        steps.record_all(steps.claim_due())
    progress = commands.progress(steps.database, number)
    assert progress is not None
    assert (progress.state, progress.affected) == ("done", 40)
    steps.facts_agree()


def test_a_few_are_due_at_once_however_many_are_due_already(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MOST_OPEN", 5)
    steps.arrive(an_event(1, "u1"))
    steps.attempt(UNWELL)
    steps.arrive(*(an_event(n, f"u{n}") for n in range(2, 20)))
    number = commands.ask(steps.database, "retry", Selection(seq=1), who="ann", why="back")
    assert execution.work_on(steps.work, number) == 1


def test_one_that_became_due_or_was_claimed_since_it_was_found_stays_as_it_is(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    steps.claim()
    before = steps.rows("SELECT * FROM open_delivery ORDER BY seq")
    with steps.database.write() as transaction:
        now = transaction.take_order_lock()
        keys, said = [(1, "strict"), (2, "strict"), (3, "strict")], {"who": "ann", "why": "back"}
        assert change(transaction, Choice("retry", ALL, CONFIG), keys, now, **said, policies=POLICIES) == 0
    assert steps.rows("SELECT * FROM open_delivery ORDER BY seq") == before
    assert [kind for _, kind in steps.kinds()] == []


@pytest.mark.parametrize("most", [1, 2, 3, 5, 12])
def test_pages_have_each_selected_delivery_once_and_whole_events(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Whatever stands between them, and however few are looked up together, and in one page."""
    monkeypatch.setattr(selection, "_CANDIDATES", 2)
    monkeypatch.setattr(selection, "_MOST_LOOK_UPS", 2)
    monkeypatch.setattr(record, "OWN_TRANSACTION", 100)  # no breaker opens between the two routes
    steps.arrive(*(an_event(n, f"u{n}", routes=["latest", "strict"]) for n in range(1, 11)))
    steps.record([(claimed, NO_ANSWER if claimed.seq % 3 else ANSWERED_503) for claimed in steps.claim_due()])
    choice = Choice("retry", Selection(cause="server_error"), CONFIG)
    found: list[tuple[int, str]] = []
    after: int | None = 0
    while after is not None:
        page = selection.page(steps.work, choice, after=after, most=most)
        found += keys_of(page.rows)
        after = page.upto
    assert found == [(seq, route) for seq in (3, 6, 9) for route in ("latest", "strict")]
