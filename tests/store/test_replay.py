"""Replay: a person takes up again what is dead or ended, in its place in its lane."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from inbox.config.model import Config, When
from inbox.db.reads import Row
from relay.operations.asks import Selection
from relay.store.operator import commands, execution, selection, tasks
from relay.store.operator.changes import change
from relay.store.operator.plan import Bound, Plan, preview
from relay.store.operator.selection import Choice
from tests.helpers.commanding import carry_out
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, POLICIES, UNWELL, FakeClock, Steps
from tests.helpers.storing import START, an_event
from tests.store.verifying import differences


def replay_all(steps: Steps, selection: Selection, config: Config = CONFIG, *, force: bool = False) -> int:
    chosen = msgspec.structs.replace(selection, force=force)
    return carry_out(steps.database, config, "replay", chosen, why="mapping mended")


def plan(steps: Steps, selection: Selection, config: Config = CONFIG) -> Plan:
    return preview(steps.database, Choice("replay", selection, config), Bound(listed=1000))


def meant(steps: Steps, selection: Selection) -> list[tuple[int, str]]:
    return [(row["seq"], row["route"]) for row in plan(steps, selection).deliveries]


def row_of(steps: Steps, seq: int, route: str = "strict") -> Row:
    (row,) = steps.rows("SELECT * FROM open_delivery WHERE seq = :seq AND route = :route", seq=seq, route=route)
    return row


# --- what is meant


def test_since_picks_those_that_died_no_earlier(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    steps.attempt(HOPELESS)
    steps.advance(60)
    steps.attempt(HOPELESS)
    died = START + timedelta(seconds=60)
    assert meant(steps, Selection(since=died)) == [(2, "strict")]
    assert meant(steps, Selection(since=died + timedelta(seconds=1))) == []


# --- what happens


def test_a_dead_delivery_begins_a_new_run_with_who_and_why(steps: Steps, clock: FakeClock) -> None:
    steps.arrive(an_event(1))
    steps.attempt(UNWELL)
    steps.advance(6)
    steps.attempt(HOPELESS)
    assert row_of(steps, 1)["attempt"] == 2
    steps.advance(60)

    assert replay_all(steps, Selection(seq=1)) == 1

    row = row_of(steps, 1)
    assert (row["state"], row["run"], row["attempt"]) == ("ready", 1, 0)
    assert row["due_at"] == clock.moment
    *_, fact = steps.rows("SELECT * FROM delivery_log ORDER BY id")
    assert (fact["kind"], fact["attempt"], fact["relay_node"]) == ("replayed", 0, None)
    assert fact["detail"] == {"who": "kim", "why": "mapping mended"}
    assert fact["at"] == clock.moment
    steps.facts_agree()

    again = steps.attempt(DONE)
    assert (again.seq, again.run, again.attempt) == (1, 1, 1)
    assert steps.states() == []
    steps.facts_agree()


def test_a_superseded_event_is_delivered_when_nothing_newer_is_open(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["latest"]), an_event(2, routes=["latest"]))
    steps.attempt(DONE, "latest")

    assert replay_all(steps, Selection(seq=1), force=True) == 1
    assert steps.states() == [(1, "latest", "ready")]
    again = steps.attempt(DONE, "latest")
    assert (again.seq, again.late) == (1, True)
    steps.facts_agree()


def test_on_a_latest_route_a_newer_one_that_waits_stands_for_it(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["latest"]), an_event(2, routes=["latest"]))

    assert replay_all(steps, Selection(seq=1)) == 1
    assert steps.states() == [(2, "latest", "ready")]
    assert steps.kinds() == [(1, "superseded"), (1, "replayed"), (1, "superseded")]
    steps.facts_agree()


def test_a_replayed_event_takes_its_place_in_its_lane(steps: Steps) -> None:
    steps.arrive(*(an_event(n) for n in (1, 2, 3, 4)))
    steps.attempt(DONE)
    steps.attempt(HOPELESS)
    assert steps.states() == [(2, "strict", "dead"), (3, "strict", "ready"), (4, "strict", "waiting")]

    assert replay_all(steps, Selection(seq=2)) == 1
    assert steps.states() == [(2, "strict", "ready"), (3, "strict", "waiting"), (4, "strict", "waiting")]
    steps.facts_agree()
    assert [steps.attempt(DONE).seq for _ in range(3)] == [2, 3, 4]
    steps.facts_agree()


def test_a_blocked_event_becomes_the_head_and_then_its_lane_goes_on(steps: Steps) -> None:
    steps.arrive(*(an_event(n, routes=["blocking"]) for n in (1, 2)))
    steps.attempt(HOPELESS, "blocking")
    assert steps.states() == [(1, "blocking", "blocked"), (2, "blocking", "waiting")]

    assert replay_all(steps, Selection(everything=True)) == 1
    assert steps.states() == [(1, "blocking", "ready"), (2, "blocking", "waiting")]
    steps.facts_agree()
    assert [steps.attempt(DONE, "blocking").seq for _ in range(2)] == [1, 2]
    assert steps.states() == []
    steps.facts_agree()


# --- what does not


def test_what_is_open_is_left_as_it_is(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, "u3"))
    steps.claim()
    steps.receive(an_event(4))
    before = steps.rows("SELECT * FROM open_delivery ORDER BY seq")

    for seq in (1, 2, 3, 4):
        assert meant(steps, Selection(seq=seq)) == []
    with steps.database.write() as transaction:
        now, forced = transaction.take_order_lock(keeps_payloads=True), Choice("replay", Selection(force=True), CONFIG)
        every = [(1, "strict"), (2, "strict"), (3, "strict"), (4, "strict")]
        assert change(transaction, forced, every, now, who="kim", why="by mistake", policies=POLICIES) == 0
    assert steps.rows("SELECT * FROM open_delivery ORDER BY seq") == before
    assert steps.kinds() == []


def test_everything_of_a_route_is_what_it_has_taken_and_what_it_would_take_now(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]), an_event(3, "u3"), an_event(4, "u4"))
    steps.attempt(DONE)
    steps.attempt(HOPELESS)
    everything = Selection(route="strict", backfill=True)
    assert [(row["seq"], row["state"]) for row in plan(steps, everything).deliveries] == [
        (1, "delivered"),
        (2, "unrouted"),
        (3, "dead"),
    ]
    assert replay_all(steps, everything) == 3
    assert [(seq, state) for seq, route, state in steps.states() if route == "strict"] == [
        (1, "ready"),
        (2, "ready"),
        (3, "ready"),
        (4, "ready"),
    ]
    assert row_of(steps, 2)["run"] == 1
    steps.facts_agree()
    assert differences(steps.database) == []


def test_what_the_route_would_not_take_is_not_meant_by_everything(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=[]), an_event(2, "u2", routes=[]))
    for when, number in (
        (When(entity_type=["USER"]), 2),
        (When(entity_type=["GROUP"]), 0),
        (When(event_type=["UPDATE"], action=["update", "create"]), 2),
        (When(action=["delete"]), 0),
    ):
        picky = msgspec.structs.replace(CONFIG.routes["strict"], when=when)
        config = msgspec.structs.replace(CONFIG, routes={"strict": picky})
        assert plan(steps, Selection(route="strict", backfill=True), config).count == number
    since = Selection(route="strict", backfill=True, since=START + timedelta(seconds=1))
    assert plan(steps, since).count == 0


def test_each_fact_counts_the_attempts_used_when_it_happened_though_several_happen_at_once(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["latest"]))
    steps.attempt(DONE, "latest")
    steps.arrive(an_event(2, routes=["latest"]))
    steps.attempt(DONE, "latest")
    replay_all(steps, Selection(seq=1), force=True)
    steps.attempt(UNWELL, "latest")
    replay_all(steps, Selection(seq=2))
    rows = steps.rows("SELECT kind, attempt FROM delivery_log WHERE seq = 2 ORDER BY id")
    assert [(row["kind"], row["attempt"]) for row in rows] == [("delivered", 1), ("replayed", 0), ("took_over", 1)]


# --- a plan is what is done, to the row


def planned_and_done(steps: Steps, selection: Selection, config: Config = CONFIG) -> tuple[int | None, int]:
    return plan(steps, selection, config).count, replay_all(steps, selection, config)


def test_a_plan_counts_what_the_replay_takes_up_and_says_what_is_left_out(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, "u3"))
    for outcome in (HOPELESS, DONE, HOPELESS):
        steps.attempt(outcome)
    planned = plan(steps, Selection(everything=True))
    assert (planned.count, planned.left_out) == (1, {"overtaken": 1})
    assert [row["seq"] for row in planned.deliveries] == [3]
    assert [(group.route, group.state, group.cause, group.count) for group in planned.groups] == [
        ("strict", "dead", "mapping", 1)
    ]
    assert replay_all(steps, Selection(everything=True)) == 1


def test_a_plan_leaves_out_what_has_ended_on_a_route_that_was_removed(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["strict", "latest"]))
    steps.attempt(DONE)
    steps.attempt(DONE, "latest")
    without = msgspec.structs.replace(CONFIG, routes={"strict": CONFIG.routes["strict"]})
    planned = plan(steps, Selection(seq=1), without)
    assert (planned.count, planned.left_out) == (1, {"route_removed": 1})
    assert replay_all(steps, Selection(seq=1), without) == 1


def test_a_plan_is_what_is_done_when_the_last_delivered_is_replayed_in_an_earlier_batch(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest of the lane arrived first: its batch takes it up before the older ones are looked at."""
    monkeypatch.setattr(tasks, "BATCH", 1)
    steps.arrive(an_event(9))
    steps.attempt(DONE)
    for n in (1, 2, 3):
        steps.arrive(an_event(n))
        steps.attempt(HOPELESS)
    selection = Selection(route="strict", backfill=True)
    assert planned_and_done(steps, selection) == (4, 4)
    assert [steps.attempt(DONE).seq for _ in range(4)] == [2, 3, 4, 1]
    steps.facts_agree()


def test_what_an_earlier_batch_had_delivered_again_is_overtaken_by_nothing_older(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest of the lane arrived first, and a relay delivers it again before the older ones are looked at."""
    monkeypatch.setattr(tasks, "BATCH", 1)
    for n in (9, 1):
        steps.arrive(an_event(n))
        steps.attempt(DONE)
    number = commands.ask(
        steps.database, "replay", Selection(route="strict", backfill=True), who="kim", why="lost over there"
    )
    while (progress := commands.progress(steps.database, number)) and not progress.has_ended:
        execution.work_on(steps.work, number)
        steps.until_nothing_is_due()
    assert [delivery.seq for delivery in steps.deliverer.seen] == [1]
    steps.facts_agree()


def test_what_nobody_has_begun_yet_is_delivered_after_an_older_one_that_is_replayed(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    steps.attempt(HOPELESS)
    steps.attempt(DONE)
    assert planned_and_done(steps, Selection(everything=True)) == (0, 0)
    replay_all(steps, Selection(seq=2))
    assert planned_and_done(steps, Selection(everything=True)) == (1, 1)
    assert [steps.attempt(DONE).seq for _ in range(2)] == [1, 2]


def test_an_event_without_payload_is_not_replayed(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    steps.attempt(DONE)
    steps.attempt(DONE)
    steps.do("DELETE FROM inbox_payload WHERE seq = 1")
    assert plan(steps, Selection(seq=1)).left_out == {"payload_gone": 1}
    assert planned_and_done(steps, Selection(seq=1)) == (0, 0)
    assert planned_and_done(steps, Selection(seq=2)) == (1, 1)
    assert steps.states() == [(2, "strict", "ready")]


@pytest.mark.parametrize("page", [1, 2, 5, 6])
def test_a_backfill_looks_through_the_events_of_its_source_in_pages(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(selection, "_CANDIDATES", 1)
    steps.arrive(
        *(msgspec.structs.replace(an_event(n, f"u{n}"), source="trivore" if n % 2 else "billing") for n in range(1, 11))
    )
    choice = Choice("replay", Selection(route="strict", backfill=True), CONFIG)
    steps.record_all(steps.claim_due(10), DONE)
    found, after = [], 0
    while True:
        part = selection.page(steps.work, choice, after=after, most=page)
        found += [row["seq"] for row in part.rows]
        if part.upto is None:
            break
        assert part.upto > after
        after = part.upto
    assert found == [1, 3, 5, 7, 9]
