"""Alerts: one row per change for the worse or back, told and posted once."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from sqlalchemy import text

from inbox.config.model import Alerts
from inbox.config.types import Duration
from relay.delivery.alerts import Alert
from relay.delivery.outcome import Delivered, Failed
from relay.store import alerts
from relay.store.alert_conditions import Watch
from relay.store.claim import claim_suspect
from relay.store.database import FailedAlone
from relay.store.operator.selection import Selection
from relay.store.reap import reap
from tests.helpers.commanding import carry_out
from tests.store.conftest import POLICIES, FakeClock, Steps, an_event
from tests.store.test_replay import CONFIG

Receive = Callable[..., list[int | None]]
DONE = Delivered((), "forwarded")
HOPELESS = Failed((), "mapping", "email: no value")
WATCHED = msgspec.structs.replace(
    CONFIG,
    alerts=Alerts(backlog_after=Duration(600)),
    sources={"trivore": msgspec.structs.replace(CONFIG.sources["trivore"], silent_after=Duration(3600))},
)


def listed(steps: Steps) -> list[tuple[str, str, bool]]:
    rows = steps.rows("SELECT kind, subject, firing FROM alert ORDER BY id")
    return [(row["kind"], row["subject"], bool(row["firing"])) for row in rows]


def note(steps: Steps, *noted: Alert) -> None:
    with steps.database.write() as transaction:
        alerts.note(transaction, noted, transaction.lock_order())


def test_a_thousand_deaths_on_a_route_are_one_alert_until_none_is_dead(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 6)))
    for _ in range(4):
        steps.attempt(HOPELESS)
    watch = Watch()
    watch.look(steps.database, CONFIG)
    assert listed(steps) == [("delivery_dead", "strict", True)]
    carry_out(steps.database, CONFIG, "cancel", Selection(cause="mapping"), why="seen")
    watch.look(steps.database, CONFIG)
    watch.look(steps.database, CONFIG)
    assert listed(steps) == [("delivery_dead", "strict", True), ("delivery_dead", "strict", False)]
    steps.attempt(HOPELESS)
    assert listed(steps)[-1] == ("delivery_dead", "strict", True)


def test_a_death_by_crashes_is_an_alert_too(steps: Steps, clock: FakeClock) -> None:
    steps.arrive(an_event(1))
    for number in range(3):
        if number < 2:
            steps.claim()
        else:
            claim_suspect(steps.database, "r1", ["strict"])
        clock.advance(20)
        reap(steps.database, POLICIES, "r2")
    assert listed(steps) == [("delivery_dead", "strict", True)]


def test_a_route_is_behind_when_an_event_has_waited_for_too_long(steps: Steps, clock: FakeClock) -> None:
    steps.arrive(an_event(1), an_event(2))
    watch = Watch()
    clock.advance(600)
    watch.look(steps.database, WATCHED)
    assert listed(steps) == []
    clock.advance(5)
    watch.look(steps.database, WATCHED)
    clock.advance(5)
    Watch().look(steps.database, WATCHED)
    assert listed(steps) == [("backlog_old", "strict", True)]
    (row,) = steps.rows("SELECT detail FROM alert")
    assert row["detail"] == {"seq": 1, "age_seconds": 605}
    steps.attempt(DONE)
    steps.attempt(DONE)
    watch.look(steps.database, WATCHED)
    assert listed(steps)[1:] == [("backlog_old", "strict", False)]


def test_an_old_event_that_is_open_again_far_behind_is_seen_within_a_minute_and_by_no_relay_taken_for_none(
    steps: Steps, clock: FakeClock
) -> None:
    seconds = [0.0]
    steps.arrive(an_event(1))
    go_on_with_seq(steps, 50_000)
    steps.arrive(an_event(2))
    for _ in range(2):
        steps.attempt(DONE)
    watch, other = Watch(lambda: seconds[0]), Watch(lambda: seconds[0])
    other.look(steps.database, WATCHED)
    watch.look(steps.database, WATCHED)
    with steps.database.write() as transaction:
        transaction.connection.exec_driver_sql(OPEN_AGAIN)
    clock.advance(700)
    watch.look(steps.database, WATCHED)
    assert listed(steps) == [], "it begins where it came to"
    seconds[0] += 60
    watch.look(steps.database, WATCHED)
    seconds[0] -= 30
    other.look(steps.database, WATCHED)
    assert listed(steps) == [("backlog_old", "strict", True)]


OPEN_AGAIN = """
INSERT INTO open_delivery (seq, route, lane, occurred_at, state)
VALUES (1, 'strict', 'USER|u1', '2026-01-01 00:00:00.000000Z', 'received')
"""


def go_on_with_seq(steps: Steps, seq: int) -> None:
    with steps.database.write() as transaction:
        transaction.connection.exec_driver_sql(
            f"SELECT setval('inbox_seq_seq', {seq})"
            if steps.database.sql.is_postgres
            else f"UPDATE sqlite_sequence SET seq = {seq} WHERE name = 'inbox'"
        )


def test_dead_letters_are_no_backlog(steps: Steps, clock: FakeClock) -> None:
    steps.arrive(an_event(1))
    steps.attempt(HOPELESS)
    clock.advance(10_000)
    Watch().look(steps.database, WATCHED)
    assert ("backlog_old", "strict", True) not in listed(steps)


def test_a_source_is_silent_when_nothing_arrives_and_heard_again_when_something_does(
    steps: Steps, clock: FakeClock, receive: Receive
) -> None:
    receive(an_event(1))
    watch = Watch()
    watch.look(steps.database, WATCHED)
    clock.advance(3700)
    watch.look(steps.database, WATCHED)
    assert ("source_silent", "trivore", True) in listed(steps)
    receive(msgspec.structs.replace(an_event(2), received_at=clock.moment))
    watch.look(steps.database, WATCHED)
    assert listed(steps)[-1] == ("source_silent", "trivore", False)


def test_a_relay_that_starts_knows_for_how_long_a_source_has_been_silent(
    steps: Steps, clock: FakeClock, receive: Receive
) -> None:
    receive(an_event(1))
    clock.advance(3700)
    Watch().look(steps.database, WATCHED)
    assert ("source_silent", "trivore", True) in listed(steps)


def test_a_source_that_was_never_heard_is_silent_from_the_first_look_on(steps: Steps, clock: FakeClock) -> None:
    watch = Watch()
    watch.look(steps.database, WATCHED)
    clock.advance(3500)
    watch.look(steps.database, WATCHED)
    assert listed(steps) == []
    clock.advance(200)
    watch.look(steps.database, WATCHED)
    assert listed(steps) == [("source_silent", "trivore", True)]


def test_what_is_no_change_is_not_noted(steps: Steps) -> None:
    fire, recover = (Alert("retired", "destination crm", firing=firing) for firing in (True, False))
    note(steps, recover)
    note(steps, fire)
    note(steps, fire)
    note(steps, recover)
    note(steps, recover)
    assert [firing for _, _, firing in listed(steps)] == [True, False]


def test_each_alert_is_told_by_one_relay_in_their_order(steps: Steps) -> None:
    note(steps, Alert("retired", "destination a", firing=True), Alert("retired", "destination b", firing=True))
    assert [posted.alert.subject for posted in alerts.take_untold(steps.database)] == ["destination a", "destination b"]
    assert alerts.take_untold(steps.database) == []


def test_an_alert_is_posted_by_one_relay_and_again_after_a_minute_when_that_failed(
    steps: Steps, clock: FakeClock
) -> None:
    note(steps, Alert("retired", "destination a", firing=True), Alert("retired", "destination b", firing=True))
    (first,) = alerts.take_unsent(steps.database)
    (second,) = alerts.take_unsent(steps.database)
    assert [first.alert.subject, second.alert.subject] == ["destination a", "destination b"]
    assert alerts.take_unsent(steps.database) == []
    alerts.posted(steps.database, first.id)
    clock.advance(60)
    assert [posted.id for posted in alerts.take_unsent(steps.database)] == [second.id]
    alerts.posted(steps.database, second.id)
    clock.advance(3600)
    assert alerts.take_unsent(steps.database) == []


def test_one_that_could_not_be_posted_for_a_day_is_left(steps: Steps, clock: FakeClock) -> None:
    note(steps, Alert("retired", "destination a", firing=True))
    clock.advance(86_401)
    assert alerts.take_unsent(steps.database) == []


def test_why_an_alert_is_unsent_stands_beside_it_until_it_is_sent(steps: Steps, clock: FakeClock) -> None:
    note(steps, Alert("retired", "destination a", firing=True))
    (taken,) = alerts.take_unsent(steps.database)
    alerts.posted(steps.database, taken.id, "alert answered 503")
    assert [row["error"] for row in steps.rows("SELECT error FROM alert")] == ["alert answered 503"]
    clock.advance(60)
    (again,) = alerts.take_unsent(steps.database)
    alerts.posted(steps.database, again.id)
    assert [row["error"] for row in steps.rows("SELECT error FROM alert WHERE sent_at IS NOT NULL")] == [None]


def test_one_that_cannot_be_posted_is_not_tried_again_and_says_why(steps: Steps, clock: FakeClock) -> None:
    note(steps, Alert("retired", "destination a", firing=True))
    (taken,) = alerts.take_unsent(steps.database)
    alerts.posted(steps.database, taken.id, "it can't be worded: \x00\ud800", is_final=True)
    clock.advance(3600)
    assert alerts.take_unsent(steps.database) == []
    assert steps.rows("SELECT error FROM alert")[0]["error"] == "it can't be worded: \\x00\\ud800"


def test_kinds_of_a_newer_version_are_left_to_it(steps: Steps) -> None:
    insert = text("""
INSERT INTO alert (at, kind, subject, firing, detail) VALUES ('2026-01-01 00:00:00.000000Z', 'of_tomorrow', 'x', true, '{}')
""")
    with steps.database.engine.begin() as connection:
        connection.execute(insert)
    note(steps, Alert("retired", "destination a", firing=True))
    assert [posted.alert.kind for posted in alerts.take_untold(steps.database)] == ["retired"]
    assert [posted.alert.kind for posted in alerts.take_unsent(steps.database)] == ["retired"]
    assert alerts.of_newer_version(steps.database) == ["of_tomorrow"]


REFUSED = {
    "postgresql": """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no more alerts'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON alert FOR EACH ROW EXECUTE FUNCTION refuse()""",
    "sqlite": "CREATE TRIGGER refuse BEFORE INSERT ON alert BEGIN SELECT RAISE(ABORT, 'no more alerts'); END",
}
"""As a right that was taken away, or a sequence behind its table."""


def test_an_alert_that_is_refused_keeps_nothing_from_being_recorded(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, "u2", routes=["latest"]))
    with steps.database.engine.begin() as connection:
        connection.exec_driver_sql(REFUSED[connection.dialect.name])
    alone: list[FailedAlone] = []
    steps.database.on_failed_alone = alone.append
    steps.attempt(HOPELESS)
    steps.attempt(DONE, "latest")
    assert steps.kinds() == [(1, "dead"), (3, "delivered")]
    assert steps.rows("SELECT cause FROM dead_letter") == [{"cause": "mapping"}]
    assert (2, "strict", "ready") in steps.states()
    assert [(item.step, item.item) for item in alone] == [("log_alerts", "alert delivery_dead of strict")]
    assert "no more alerts" in alone[0].error
