"""Alerts: one row per change for the worse or back, told and posted once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest

from inbox.config.model import Alerts
from inbox.config.values import Duration
from relay.delivery.alerts import Alert
from relay.operations.asks import Selection
from relay.store import alert_conditions, alerts
from relay.store.alert_conditions import Watch
from relay.store.claim import claim_suspect
from relay.store.database import Database
from relay.store.nodes import describe, heartbeat, read_nodes, stop_node
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, FakeClock, Steps, carry_out, work_of
from tests.helpers.storing import a_row, an_event

WATCHED = msgspec.structs.replace(
    CONFIG,
    alerts=Alerts(backlog_after=Duration(600)),
    sources={"trivore": msgspec.structs.replace(CONFIG.sources["trivore"], silent_after=Duration(3600))},
)


def listed(steps: Steps) -> list[tuple[str, str, bool]]:
    rows = steps.rows("SELECT kind, subject, firing FROM alert ORDER BY id")
    return [(row["kind"], row["subject"], bool(row["firing"])) for row in rows]


A, B = (Alert("endpoint_retired", f"destination {name}", firing=True) for name in "ab")


def note(steps: Steps, *noted: Alert) -> None:
    with steps.database.write() as transaction:
        alerts.note(transaction, noted, transaction.take_order_lock())


def test_a_relay_that_has_stopped_in_order_fails_at_nothing(steps: Steps) -> None:
    describe(work_of(steps.database, node="r1"), "host", 1, "0")
    heartbeat(steps.database, "r1", {"claim": "OperationalError: out of memory"})
    with steps.database.read() as transaction:
        assert [row["failing"] for row in read_nodes(transaction)] == [{"claim": "OperationalError: out of memory"}]
    stop_node(steps.database, "r1")
    with steps.database.read() as transaction:
        assert read_nodes(transaction) == []


def test_an_alert_whose_post_has_failed_for_good_is_not_tried_again(steps: Steps, clock: FakeClock) -> None:
    note(steps, A, B)
    for is_final in (True, False):
        (taken,) = alerts.take_unsent(steps.work)
        alerts.posted(steps.database, taken.id, "it can't be posted", is_final=is_final)
    clock.moment += alerts.POST_AGAIN_AFTER
    assert [posted.id for posted in alerts.take_unsent(steps.work)] == [2]


def test_a_thousand_deaths_on_a_route_are_one_alert_until_none_is_dead(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 6)))
    for _ in range(4):
        steps.attempt(HOPELESS)
    watch = Watch()
    watch.look(work_of(steps.database, config=CONFIG))
    assert listed(steps) == [("delivery_dead", "strict", True)]
    carry_out(steps.database, CONFIG, "cancel", Selection(cause="mapping"), why="seen")
    watch.look(work_of(steps.database, config=CONFIG))
    watch.look(work_of(steps.database, config=CONFIG))
    assert listed(steps) == [("delivery_dead", "strict", True), ("delivery_dead", "strict", False)]
    steps.attempt(HOPELESS)
    assert listed(steps)[-1] == ("delivery_dead", "strict", True)


def test_a_blocked_delivery_keeps_its_alert(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["blocking"]))
    steps.attempt(HOPELESS, "blocking")
    Watch().look(work_of(steps.database, config=CONFIG))
    assert listed(steps) == [("delivery_dead", "blocking", True)]


def between_look_and_store(monkeypatch: pytest.MonkeyPatch, name: str, happens: Callable[[], object]) -> None:
    """Let something happen after a look at all conditions, and before what it found is stored."""
    stores = getattr(alert_conditions, name)

    def meanwhile(database: Database, found: Sequence[Alert]) -> None:
        happens()
        stores(database, found)

    monkeypatch.setattr(alert_conditions, name, meanwhile)


def test_a_death_while_the_end_of_the_last_is_noticed_stays_alerted(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    steps.attempt(HOPELESS)
    carry_out(steps.database, CONFIG, "cancel", Selection(cause="mapping"), why="seen")
    with monkeypatch.context() as patched:
        between_look_and_store(patched, "_store", lambda: steps.attempt(HOPELESS))
        Watch().look(work_of(steps.database, config=CONFIG))
    assert listed(steps) == [("delivery_dead", "strict", True)]
    carry_out(steps.database, CONFIG, "cancel", Selection(cause="mapping"), why="seen")
    Watch().look(work_of(steps.database, config=CONFIG))
    assert listed(steps)[1:] == [("delivery_dead", "strict", False)]


def test_a_step_that_fails_while_its_recovery_is_noticed_is_alerted(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe(work_of(steps.database, node="r1"), "host", 1, "1.0")
    alerts.step_failed(steps.work, "reap", "no")
    with monkeypatch.context() as patched:
        between_look_and_store(patched, "_store", lambda: heartbeat(steps.database, "r1", {"reap": "no"}))
        Watch().look(work_of(steps.database, config=CONFIG))
    assert listed(steps) == [("step_failed", "reap", True)]
    heartbeat(steps.database, "r1")
    Watch().look(work_of(steps.database, config=CONFIG))
    assert listed(steps)[1:] == [("step_failed", "reap", False)]


def test_a_death_by_crashes_is_an_alert_too(steps: Steps) -> None:
    steps.arrive(an_event(1))
    for claimed in (steps.claim, steps.claim, lambda: claim_suspect(steps.work, ["strict"])):
        claimed()
        steps.advance(20)
        steps.reap("r2")
    assert listed(steps) == [("delivery_dead", "strict", True)]


def test_a_route_is_behind_when_an_event_has_waited_for_too_long(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    watch = Watch()
    steps.advance(600)
    watch.look(work_of(steps.database, config=WATCHED))
    assert listed(steps) == []
    steps.advance(5)
    watch.look(work_of(steps.database, config=WATCHED))
    steps.advance(5)
    Watch().look(work_of(steps.database, config=WATCHED))
    assert listed(steps) == [("backlog_old", "strict", True)]
    (row,) = steps.rows("SELECT detail FROM alert")
    assert row["detail"] == {"seq": 1, "age_seconds": 605}
    steps.attempt(DONE)
    steps.attempt(DONE)
    watch.look(work_of(steps.database, config=WATCHED))
    assert listed(steps)[1:] == [("backlog_old", "strict", False)]


def test_an_old_event_open_again_is_seen_within_a_minute_and_by_no_relay_taken_for_none(steps: Steps) -> None:
    seconds = [0.0]
    steps.arrive(an_event(1))
    steps.do(
        "SELECT setval('inbox_seq_seq', 50000)"
        if steps.database.sql.is_postgres
        else "UPDATE sqlite_sequence SET seq = 50000 WHERE name = 'inbox'"
    )
    steps.arrive(an_event(2))
    for _ in range(2):
        steps.attempt(DONE)
    watch, other = Watch(lambda: seconds[0]), Watch(lambda: seconds[0])
    other.look(work_of(steps.database, config=WATCHED))
    watch.look(work_of(steps.database, config=WATCHED))
    steps.do(a_row(1))
    steps.advance(700)
    watch.look(work_of(steps.database, config=WATCHED))
    assert listed(steps) == [], "it begins where it came to"
    seconds[0] += 60
    watch.look(work_of(steps.database, config=WATCHED))
    seconds[0] -= 30
    other.look(work_of(steps.database, config=WATCHED))
    assert listed(steps) == [("backlog_old", "strict", True)]


def test_a_source_is_silent_when_nothing_arrives_and_heard_when_something_does(steps: Steps, clock: FakeClock) -> None:
    steps.receive(an_event(1))
    watch = Watch()
    watch.look(work_of(steps.database, config=WATCHED))
    steps.advance(3700)
    Watch().look(work_of(steps.database, config=WATCHED))
    assert ("source_silent", "trivore", True) in listed(steps), "a relay that starts knows for how long"
    watch.look(work_of(steps.database, config=WATCHED))
    steps.receive(msgspec.structs.replace(an_event(2), received_at=clock.moment))
    watch.look(work_of(steps.database, config=WATCHED))
    assert listed(steps)[-1] == ("source_silent", "trivore", False)


def test_a_source_that_was_never_heard_is_silent_from_the_first_look_on(steps: Steps) -> None:
    watch = Watch()
    watch.look(work_of(steps.database, config=WATCHED))
    steps.advance(3500)
    watch.look(work_of(steps.database, config=WATCHED))
    assert listed(steps) == []
    steps.advance(200)
    watch.look(work_of(steps.database, config=WATCHED))
    assert listed(steps) == [("source_silent", "trivore", True)]


def test_a_step_recovers_when_it_works_again_while_others_of_its_relay_still_fail(steps: Steps) -> None:
    describe(work_of(steps.database, node="r1"), "host", 1, "0")
    names = ("claim", "reap", "renew")
    note(steps, *(Alert("step_failed", name, firing=True) for name in names))
    heartbeat(steps.database, "r1", dict.fromkeys(names, "it fails"))
    Watch().look(work_of(steps.database, config=CONFIG))
    assert [firing for _, _, firing in listed(steps)] == [True] * 3
    heartbeat(steps.database, "r1", dict.fromkeys(("claim", "renew"), "it fails"))
    Watch().look(work_of(steps.database, config=CONFIG))
    assert listed(steps)[3:] == [("step_failed", "reap", False)]


def test_each_alert_is_told_by_one_relay_in_their_order(steps: Steps) -> None:
    note(steps, A, B)
    assert [posted.alert.subject for posted in alerts.take_untold(steps.work)] == ["destination a", "destination b"]
    assert alerts.take_untold(steps.work) == []


def test_an_alert_is_posted_by_one_relay_and_again_after_a_minute_when_that_failed(steps: Steps) -> None:
    note(steps, A, B)
    (first,) = alerts.take_unsent(steps.work)
    (second,) = alerts.take_unsent(steps.work)
    assert [first.alert.subject, second.alert.subject] == ["destination a", "destination b"]
    assert alerts.take_unsent(steps.work) == []
    alerts.posted(steps.database, first.id)
    alerts.posted(steps.database, second.id, "alert answered 503")
    assert steps.rows("SELECT error FROM alert ORDER BY id") == [{"error": None}, {"error": "alert answered 503"}]
    steps.advance(60)
    assert [posted.id for posted in alerts.take_unsent(steps.work)] == [second.id]
    alerts.posted(steps.database, second.id)
    steps.advance(3600)
    assert alerts.take_unsent(steps.work) == []
    assert steps.rows("SELECT error FROM alert WHERE sent_at IS NOT NULL") == [{"error": None}] * 2


def test_the_end_of_a_condition_is_posted_after_its_begin_also_where_that_had_to_be_tried_twice(steps: Steps) -> None:
    note(steps, A)
    (begin,) = alerts.take_unsent(steps.work)
    alerts.posted(steps.database, begin.id, "no answer")
    note(steps, msgspec.structs.replace(A, firing=False), B)
    assert [posted.alert.subject for posted in alerts.take_unsent(steps.work)] == ["destination b"]
    assert alerts.take_unsent(steps.work) == []
    steps.advance(60)
    for firing in (True, False):
        (taken,) = [each for each in alerts.take_unsent(steps.work) if each.alert.subject == A.subject]
        assert taken.alert.firing is firing
        alerts.posted(steps.database, taken.id)


def test_kinds_of_a_newer_version_are_left_to_it(steps: Steps) -> None:
    steps.do(
        "INSERT INTO alert (at, kind, subject, firing, detail)"
        " VALUES ('2026-01-01 00:00:00.000000Z', 'of_tomorrow', 'x', true, '{}')"
    )
    note(steps, A)
    assert [posted.alert.kind for posted in alerts.take_untold(steps.work)] == ["endpoint_retired"]
    assert [posted.alert.kind for posted in alerts.take_unsent(steps.work)] == ["endpoint_retired"]
