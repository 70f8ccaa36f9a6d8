"""Deliveries that a past success covers, dead ones that are healed, and those that a duplicate makes necessary again."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.events.event import Event, swept_key
from inbox.events.timestamps import as_time, to_nanoseconds
from relay.delivery.outcome import Call, Delivered, Failed, Outcome
from relay.operations.asks import Selection
from relay.store.duplicates import Judged, judge_duplicates
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, FakeClock, Steps, carry_out, fetching, work_of
from tests.helpers.storing import START, a_fact, a_row, an_event
from tests.store.conftest import differences

LATEST = ["latest"]


def deliver_fetched(second: float, last_modified: float | None = None) -> Delivered:
    """Delivered, with a fetch that began in this second."""
    modified = None if last_modified is None else START + timedelta(seconds=last_modified)
    return Delivered((), "updated", START + timedelta(seconds=second), modified)


def judge(steps: Steps, config: Config = CONFIG) -> Judged:
    return judge_duplicates(work_of(steps.database, fetching(config), config=config))


# --- covered deliveries


def test_an_event_with_a_time_far_ahead_supersedes_none_that_arrives_after_it(steps: Steps) -> None:
    """While the route is paused: the newest by arrival is sent, also where times have no fractions."""
    ahead = SystemClock().now() + timedelta(hours=3)
    steps.arrive(msgspec.structs.replace(an_event(1, routes=LATEST), occurred_at=ahead))
    now = SystemClock().now()
    for number, told in enumerate((now.replace(microsecond=0), now), start=2):
        steps.arrive(msgspec.structs.replace(an_event(number, routes=LATEST), occurred_at=told))
    assert steps.kinds() == [(1, "superseded"), (2, "superseded")]
    assert steps.states() == [(3, "latest", "ready")]


def late(steps: Steps, first: Event, outcome: Outcome, *then: Event) -> None:
    """The first arrives and is delivered with this outcome, then the others arrive."""
    steps.arrive(first)
    steps.attempt(outcome, first.enrolments[0].route)
    steps.arrive(*then)


def test_an_event_is_dropped_when_what_was_fetched_after_it_was_delivered(steps: Steps) -> None:
    late(steps, an_event(2, second=2, routes=LATEST), deliver_fetched(9), an_event(1, second=1, routes=LATEST))
    assert steps.states() == []
    assert steps.kinds() == [(1, "delivered"), (2, "superseded")]
    (fact,) = steps.rows("SELECT detail FROM delivery_log WHERE seq = 2")
    assert fact["detail"] == {"by": 1, "because": "covered"}
    assert differences(steps.database) == []


@pytest.mark.parametrize(
    ("began", "second", "dropped"),
    [(7.9, 2, False), (8.0, 2, False), (8.1, 2, True), (1.4, 1, False)],
    ids=["too soon for its second and the skew", "just not", "late enough", "between two changes in one second"],
)
def test_a_fetch_covers_after_the_second_and_the_skew(steps: Steps, began: float, second: int, dropped: bool) -> None:
    late(steps, an_event(1, second=1, routes=LATEST), deliver_fetched(began), an_event(2, second=second, routes=LATEST))
    assert steps.states() == ([] if dropped else [(2, "latest", "ready")])


def test_fetched_data_that_says_that_it_is_as_new_covers_whenever_the_fetch_began(steps: Steps) -> None:
    others = (an_event(2, second=2, routes=LATEST), an_event(3, "u2", second=2, routes=LATEST))
    late(steps, an_event(1, second=1, routes=LATEST), deliver_fetched(2, last_modified=3), *others)
    assert steps.states() == [(3, "latest", "ready")]


@pytest.mark.parametrize(
    ("second", "dropped"),
    [(3, True), (4, False), (9, False), (10, False)],
    ids=["surely older", "perhaps by its second and the skew", "perhaps by the skew", "perhaps not even by the second"],
)
def test_without_a_fetch_only_a_surely_older_event_is_dropped(steps: Steps, second: int, dropped: bool) -> None:
    """The clock of another host of the sender may be behind: then it is the newer one, and must not be lost."""
    last = an_event(2, second=10, routes=LATEST)
    last = msgspec.structs.replace(last, received_at=last.occurred_at)
    late(steps, last, DONE, an_event(1, second=second, routes=LATEST))
    assert (steps.states() == []) == dropped
    if not dropped:
        assert steps.claim("latest").late == (second < 10)
    assert differences(steps.database) == []


def test_without_a_fetch_a_repeat_of_what_was_delivered_before_the_last_is_not_delivered_after_it(steps: Steps) -> None:
    """It would undo the newer one: the two arrived in the order of their times."""
    first = an_event(1, second=1, routes=LATEST)
    late(steps, first, DONE, an_event(2, second=2, routes=LATEST))
    steps.attempt(DONE, "latest")
    steps.intake.repeat(first)
    assert judge(steps) == Judged(handled=1, rearmed=0)
    assert steps.states() == []


def test_nothing_is_dropped_on_a_strict_route(steps: Steps) -> None:
    late(steps, an_event(2, second=2), deliver_fetched(100), an_event(1, second=1))
    assert steps.states() == [(2, "strict", "ready")]


# --- changes that a sweep has reported


def swept(event: Event) -> Event:
    """Return the event that a sweep adds for this event's change, if the sweep's table has the event's type."""
    key = swept_key(event.entity_type or "", event.entity_id or "", to_nanoseconds(event.occurred_at))
    return msgspec.structs.replace(event, dedup_key=key)


def test_the_late_webhook_of_a_change_that_a_sweep_has_told_is_not_delivered_again(steps: Steps) -> None:
    late(steps, swept(an_event(1, second=5)), DONE, an_event(2, second=5))
    assert steps.states() == []
    (fact,) = steps.rows("SELECT seq, kind, detail FROM delivery_log WHERE seq = 2")
    assert (fact["kind"], fact["detail"]) == ("superseded", {"by": 1, "because": "swept"})
    (shown,) = steps.rows("SELECT state, superseded_by FROM delivery WHERE seq = 2")
    assert shown == {"state": "superseded", "superseded_by": 1}
    assert differences(steps.database) == []


def test_one_sweeps_event_stands_for_one_webhook_and_a_second_change_of_its_instant_is_delivered(steps: Steps) -> None:
    late(steps, swept(an_event(1, second=5)), DONE, an_event(2, second=5), an_event(3, second=5))
    assert steps.states() == [(3, "strict", "ready")]
    steps.attempt(DONE)
    steps.arrive(an_event(4, second=5))
    assert steps.states() == [(4, "strict", "ready")]
    told = steps.rows("SELECT seq, detail FROM delivery_log WHERE kind = 'superseded'")
    assert told == [{"seq": 2, "detail": {"by": 1, "because": "swept"}}]
    assert differences(steps.database) == []


def test_a_fact_whose_winner_is_no_number_stops_no_late_webhook(steps: Steps) -> None:
    late(steps, swept(an_event(1, second=5)), DONE, an_event(2, second=5))
    for by in ("none", "1" * 30, "", " 1"):
        steps.do(a_fact("superseded", 2, by=by, because="swept"))
    steps.arrive(an_event(3, second=5), an_event(4, "u4", second=6))
    assert steps.states() == [(3, "strict", "ready"), (4, "strict", "ready")]


def test_a_sweeps_event_stands_for_a_webhook_on_each_route_by_itself(steps: Steps) -> None:
    steps.arrive(swept(an_event(1, second=5, routes=["strict", "blocking"])), an_event(2, second=9))
    steps.attempt_each(DONE, DONE)
    steps.arrive(an_event(3, second=5, routes=["strict", "blocking"]))
    assert steps.states() == [(1, "blocking", "ready"), (3, "blocking", "waiting")], "nothing was delivered there yet"


OTHERS = {
    "another instant": an_event(2, second=4),
    "another type": msgspec.structs.replace(an_event(2, second=5), event_type="DELETE", action="delete"),
    "another entity": an_event(2, "u2", second=5),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_any_other_event_is_delivered(steps: Steps, other: Event) -> None:
    steps.arrive(swept(an_event(1, second=5)), an_event(9, second=9), an_event(8, "u2", second=9))
    steps.attempt_each(DONE, DONE, DONE)
    steps.arrive(other)
    assert steps.states() == [(4, "strict", "ready")]


def test_two_webhooks_whose_keys_differ_are_two_events_whatever_else_they_share(steps: Steps) -> None:
    late(steps, an_event(1, second=5), DONE, an_event(2, second=5))
    assert steps.states() == [(2, "strict", "ready")]


def test_in_latest_what_a_sweep_has_told_says_nothing_of_a_second_change_in_its_second(steps: Steps) -> None:
    late(steps, swept(an_event(1, second=5, routes=LATEST)), deliver_fetched(5.4), an_event(2, second=5, routes=LATEST))
    assert steps.states() == [(2, "latest", "ready")]


def test_a_late_row_whose_event_is_gone_delays_no_other(steps: Steps) -> None:
    """As `relay verify` would find it: `no_event`."""
    steps.arrive(an_event(1, second=5))
    steps.attempt(DONE)
    steps.do(a_row(999))
    steps.arrive(an_event(2, second=6))
    assert steps.states() == [(2, "strict", "waiting"), (999, "strict", "ready")]


def test_an_operator_who_asks_for_it_again_gets_it_all_the_same(steps: Steps) -> None:
    late(steps, swept(an_event(1, second=5)), DONE, an_event(2, second=5))
    carry_out(steps.database, CONFIG, "replay", Selection(seq=2), why="the other side has lost it")
    steps.sequence()
    assert steps.states() == [(2, "strict", "ready")]
    assert differences(steps.database) == []


# --- dead letters that heal


def test_a_later_success_ends_the_dead_of_its_lane(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=LATEST), an_event(2, "u2", routes=LATEST))
    steps.attempt(HOPELESS, "latest")
    steps.attempt(HOPELESS, "latest")
    steps.arrive(an_event(3, routes=LATEST))
    steps.attempt(deliver_fetched(9), "latest")
    assert steps.states() == [(2, "latest", "dead")]
    (fact,) = steps.rows("SELECT detail FROM delivery_log WHERE seq = 1 AND kind = 'superseded'")
    assert fact["detail"] == {"by": 3, "because": "healed"}
    assert differences(steps.database) == []


def test_an_earlier_success_heals_nothing(steps: Steps) -> None:
    late(steps, an_event(5, second=5, routes=LATEST), HOPELESS, an_event(1, second=1, routes=LATEST))
    steps.attempt(deliver_fetched(2), "latest")
    assert steps.states() == [(1, "latest", "dead")]


def test_on_a_strict_route_the_dead_wait_for_a_person(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    steps.attempt(HOPELESS)
    steps.attempt(deliver_fetched(9))
    assert steps.states() == [(1, "strict", "dead")]


# --- repeats


def test_a_repeat_makes_the_delivery_again_when_the_change_may_not_be_in_it(steps: Steps) -> None:
    event = an_event(1, second=1, routes=LATEST)
    steps.arrive(event)
    steps.attempt(deliver_fetched(1.4), "latest")
    steps.intake.repeat(event)

    assert judge(steps) == Judged(handled=1, rearmed=1)
    assert judge(steps) == Judged(handled=0, rearmed=0)

    (row,) = steps.rows("SELECT state, attempt, run FROM open_delivery")
    assert row == {"state": "ready", "attempt": 0, "run": 1}
    assert steps.attempt(deliver_fetched(9), "latest").run == 1
    assert steps.kinds() == [(1, "delivered"), (1, "rearmed"), (1, "delivered")]
    assert differences(steps.database) == []


OPEN = [(1, "latest", "ready")]
REPEATED: dict[str, tuple[Outcome | None, int, list[tuple[int, str, str]]]] = {
    "certainly applied": (deliver_fetched(9), 0, []),
    "still to be fetched": (None, 0, OPEN),
    "a dead letter": (HOPELESS, 1, OPEN),
}


@pytest.mark.parametrize("case", REPEATED)
def test_a_repeat_takes_up_what_is_dead_and_nothing_else(steps: Steps, case: str) -> None:
    came_to, rearmed, left = REPEATED[case]
    event = an_event(1, second=1, routes=LATEST)
    steps.arrive(event)
    if came_to is not None:
        steps.attempt(came_to, "latest")
    steps.intake.repeat(event)
    assert judge(steps) == Judged(handled=1, rearmed=rearmed)
    assert steps.states() == left


def test_on_a_strict_route_a_repeat_is_the_same_event(steps: Steps) -> None:
    event = an_event(1, second=1)
    steps.arrive(event)
    steps.attempt(DONE)
    steps.intake.repeat(msgspec.structs.replace(event, body=b'{"other": true}', body_sha256=b"0" * 32))
    assert judge(steps) == Judged(handled=1, rearmed=0)
    assert steps.states() == []
    (row,) = steps.rows("SELECT body FROM duplicate_request")
    assert row["body"] is not None, "the other body can be seen"


# --- Bugs that the model found, or that its construction revealed: each test is as short as possible


STALE = Failed((Call("fetch", "GET", "https://id/", "answered", 1.0, 200),), "stale", "older than its event")


def test_a_replayed_delivery_is_no_dead_letter_of_its_cause_any_more(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    steps.attempt_each(HOPELESS, HOPELESS)
    carry_out(steps.database, CONFIG, "replay", Selection(seq=1), why="mended")
    assert carry_out(steps.database, CONFIG, "cancel", Selection(cause="mapping"), why="not needed") == 1
    assert [(seq, state) for seq, _, state in steps.states()] == [(1, "ready")]


def test_a_late_success_without_a_fetch_does_not_cover_what_is_newer(steps: Steps, clock: FakeClock) -> None:
    """An update is fetched, an older delete comes late, and then an update from between the two, which neither has in it."""
    steps.advance(11)
    steps.arrive(an_event(1, second=10, routes=["latest"]))
    steps.attempt(Delivered((), "updated", fetch_began_at=clock.now()), "latest")
    steps.arrive(an_event(2, second=8, routes=["latest"]))
    assert steps.attempt(Delivered((), "deleted"), "latest").late
    (lane,) = steps.rows("SELECT seq, fetch_began_at FROM lane")
    assert (lane["seq"], as_time(lane["fetch_began_at"])) == (1, clock.now())
    steps.arrive(an_event(3, second=9, routes=["latest"]))
    assert [state for _, _, state in steps.states()] == ["ready"]


def test_one_that_was_put_off_and_not_counted_is_not_due_sooner_because_an_older_one_came(steps: Steps) -> None:
    steps.arrive(an_event(2))
    delivery = steps.claim()
    steps.record([(delivery, STALE)])
    steps.arrive(an_event(1))
    carry_out(steps.database, CONFIG, "cancel", Selection(seq=2), why="it is the older one")
    steps.advance(0.5)
    assert steps.claim_due(1, "strict") == []
    steps.facts_agree()
