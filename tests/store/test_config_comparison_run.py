"""A comparison of configurations over stored events: pages, bounds, missing payloads and bad rows, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, text

from inbox.loader.load import parse_config
from relay.comparison.compare import Comparison, RoutedEvent
from relay.comparison.differences import ConfigDifference
from relay.comparison.reading import Arrived
from relay.comparison.run import ConfigComparison, PlanOptions, Result
from relay.store import arrived
from relay.store.arrived import ArrivalFilter
from relay.store.database import Database
from tests.helpers.comparing import CONFIG, RECEIVED, changed, events_of, order
from tests.helpers.kinds import ON_SQLITE
from tests.helpers.storing import Intake

OLD = parse_config(CONFIG)
OTHER_TEXT = changed(("{event.body.state}", "{event.body.status}"))


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrived, "_NUMBERS", 4)
    monkeypatch.setattr(arrived, "_BYTES", 150)


@pytest.fixture
def stored(database_url: str) -> None:
    """Ten paid orders; the last one has no state, and is a day younger."""
    bodies = [order(n, second=n, state="new", status="new") for n in range(1, 10)] + [order(10, second=10)]
    events = [*events_of(OLD, bodies)]
    events[-1] = msgspec.structs.replace(events[-1], received_at=RECEIVED + timedelta(days=1))
    Intake(database_url).append(*events)


def run(database: Database, new: str, **options: object) -> Result:
    reached: list[int] = []
    comparison = ConfigComparison(database, (OLD, parse_config(new)), PlanOptions(**options))  # type: ignore[arg-type]
    result = comparison.run(reached.append)
    assert reached == sorted(reached, reverse=True)
    return result


def found(result: Result) -> list[tuple[object, ...]]:
    return [(each.kind, each.name, each.count, each.first_seq, each.last_seq) for each in result.groups.in_order()]


@pytest.mark.usefixtures("stored")
def test_every_event_is_compared_once_and_nothing_is_written(database: Database, engine: Engine) -> None:
    result = run(database, changed(("is {event.body.state}", "was {event.body.state}")))
    assert result.counts.events == 10
    assert found(result) == [("value", "destination.text", 9, 1, 9)]
    assert (result.counts.fails_in_both.count, result.counts.fails_in_both.seq) == (1, 10)
    assert len(run(database, CONFIG).groups) == 0
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM delivery_log")).scalar_one() == 0


@pytest.mark.usefixtures("stored")
def test_the_newest_few_those_since_a_time_and_those_of_an_entity(database: Database) -> None:
    new = changed(("is {event.body.state}", "was {event.body.state}"))
    assert run(database, new, limit=6).counts.events == 6
    assert found(run(database, new, limit=6)) == [("value", "destination.text", 5, 5, 9)]
    chosen = {
        "of a day": (ArrivalFilter(since=RECEIVED + timedelta(hours=1)), 1),
        "of an entity": (ArrivalFilter(entity_type="ORDER", entity_id="3"), 1),
        "of another source": (ArrivalFilter(source="other"), 0),
    }
    for name, (events, number) in chosen.items():
        assert run(database, new, events=events).counts.events == number, name
    assert found(run(database, new, route="orders-to-erp")) == []


@pytest.mark.usefixtures("stored")
def test_events_without_their_payload_are_counted_and_the_others_compared(database: Database, engine: Engine) -> None:
    with engine.begin() as connection:
        for table in ("open_delivery", "inbox_payload"):  # as retention finds them
            connection.execute(text(f"DELETE FROM {table} WHERE seq IN (2, 9)"))
    result = run(database, changed(("is {event.body.state}", "was {event.body.state}")))
    assert found(result) == [("value", "destination.text", 7, 1, 8)]
    assert (result.counts.without_payload.count, result.counts.without_payload.seq) == (2, 9)


@pytest.mark.usefixtures("stored")
def test_a_row_that_cant_be_read_is_told_and_costs_no_other(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    readable = arrived._readable

    def failing(row: object) -> dict[str, object]:
        if row.seq == 5:  # type: ignore[attr-defined]
            raise ValueError("no such time")
        return readable(row)

    monkeypatch.setattr(arrived, "_readable", failing)
    result = run(database, changed(("is {event.body.state}", "was {event.body.state}")))
    assert found(result) == [("value", "destination.text", 8, 1, 9)]
    assert (result.counts.unreadable.count, result.counts.unreadable.seq) == (1, 5)


@ON_SQLITE
@pytest.mark.usefixtures("stored")
def test_a_size_that_is_no_number_costs_no_other(database: Database, engine: Engine) -> None:
    with engine.begin() as connection:
        triggers = connection.execute(
            text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'inbox'")
        )
        for name in triggers.scalars().all():
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        connection.exec_driver_sql("UPDATE inbox SET body_bytes = 'many' WHERE seq = 5")
    result = run(database, changed(("is {event.body.state}", "was {event.body.state}")))
    assert found(result) == [("value", "destination.text", 8, 1, 9)]
    assert (result.counts.unreadable.count, result.counts.unreadable.seq) == (1, 5)


@pytest.mark.usefixtures("stored")
def test_events_that_need_their_payload_keep_their_place_among_the_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The values of a difference are those of the newest event."""
    compared: list[int] = []
    compare = Comparison.compare

    def noting(self: Comparison, event: Arrived, *given: Any) -> Iterator[ConfigDifference | RoutedEvent]:  # noqa: ANN401
        compared.append(event.seq)
        return compare(self, event, *given)

    monkeypatch.setattr(Comparison, "compare", noting)
    monkeypatch.setattr(Comparison, "needs_payload", lambda _, event: event.seq % 3 == 0)
    run(database, changed(("is {event.body.state}", "was {event.body.state}")))
    assert compared == [*range(10, 0, -1)]


@pytest.mark.usefixtures("stored")
def test_a_value_that_nothing_expects_costs_no_other(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = Comparison.compare

    def failing(self: Comparison, event: Arrived, *given: Any) -> Iterator[ConfigDifference | RoutedEvent]:  # noqa: ANN401
        if event.seq == 7:
            raise TypeError("a list is no text")
        return compare(self, event, *given)

    monkeypatch.setattr(Comparison, "compare", failing)
    result = run(database, changed(("is {event.body.state}", "was {event.body.state}")))
    assert found(result) == [("value", "destination.text", 8, 1, 9)]
    assert (result.counts.unreadable.count, result.counts.unreadable.seq) == (1, 7)


@pytest.mark.usefixtures("stored")
def test_a_gap_of_billions_of_numbers_and_a_day_are_found_at_once(
    database: Database, engine: Engine, database_url: str
) -> None:
    far = 2**40
    with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.execute(text("UPDATE sqlite_sequence SET seq = :far WHERE name = 'inbox'"), {"far": far - 1})
        else:
            connection.execute(text("SELECT setval('inbox_seq_seq', :far, false)"), {"far": far})
    late = [*events_of(OLD, [order(11, second=11, state="new")])]
    Intake(database_url).append(*(msgspec.structs.replace(e, received_at=RECEIVED + timedelta(days=2)) for e in late))
    new = changed(("is {event.body.state}", "was {event.body.state}"))
    result = run(database, new)
    assert (result.counts.events, found(result)) == (11, [("value", "destination.text", 10, 1, far)])
    since = ArrivalFilter(since=RECEIVED + timedelta(hours=25))
    assert found(run(database, new, events=since)) == [("value", "destination.text", 1, far, far)]
    assert arrived.bounds(database, since.since) == (far, far)


def test_an_empty_inbox_makes_no_difference(database: Database) -> None:
    result = run(database, changed(('["paid"]', '["sent"]')))
    assert (result.counts.events, len(result.groups)) == (0, 0)
