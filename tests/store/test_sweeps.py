"""Turns of relays at a sweep, the comparison that a sweep makes, and its progress."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, Engine

from inbox.clock import SystemClock
from inbox.db import intake
from inbox.errors import SweepFailed
from inbox.events.event import Event
from inbox.loader.load import parse_config
from relay.destinations.base import without_lease
from relay.store import sweeps
from relay.store.database import Database
from relay.store.sweeps import Listed, SweepFindings
from relay.sweep import run as sweep_run
from relay.sweep.run import CompiledSweep
from tests.helpers.directory import TABLE, Directory
from tests.helpers.relaying import FakeClock, Steps, work_of
from tests.helpers.scripted import serving
from tests.helpers.storing import START, an_event
from tests.helpers.tables import count, rows
from tests.helpers.waiting import be_patient
from tests.helpers.webhooks import config_text

HOURLY = sweeps.Turn("trivore", "USER", "r1", every=3600, again=300, lease=60)
OTHERS = sweeps.Turn("trivore", "USER", "r2", every=3600, again=300, lease=60)


def take(database: Database, turn: sweeps.Turn) -> bool:
    """Take the turn; assert that the look without a lock agrees, since no other relay competes."""
    looked = sweeps.is_due(database, turn)
    assert sweeps.take(database, turn) == looked
    return looked


def ended(database: Database, turn: sweeps.Turn, until_second: float = 0, missed: int = 0) -> None:
    until = START + timedelta(seconds=until_second)
    sweeps.finish(
        work_of(database, node=turn.node), sweeps.SweepFindings("trivore", "USER", START, until, 10, missed, missed)
    )


def test_one_relay_is_at_a_sweep_and_the_next_is_due_after_every(database: Database, clock: FakeClock) -> None:
    assert take(database, HOURLY)
    assert not take(database, OTHERS)
    ended(database, HOURLY)
    clock.advance(3599)
    assert not take(database, OTHERS)
    clock.advance(1)
    assert take(database, OTHERS)


def test_of_many_that_want_it_at_once_one_gets_it(database: Database) -> None:
    be_patient(database.engine)
    turns = [msgspec.structs.replace(HOURLY, node=f"r{number}") for number in range(8)]
    with ThreadPoolExecutor(len(turns)) as pool:
        assert sum(pool.map(lambda turn: sweeps.take(database, turn), turns)) == 1


def test_one_that_failed_is_repeated_sooner_and_one_that_was_broken_off_at_once(
    database: Database, clock: FakeClock
) -> None:
    assert take(database, HOURLY)
    sweeps.end_early(work_of(database), HOURLY, None)
    assert take(database, OTHERS)
    sweeps.end_early(work_of(database), OTHERS, "answered 503")
    clock.advance(299)
    assert not take(database, HOURLY)
    clock.advance(1)
    assert take(database, HOURLY)
    ended(database, HOURLY)
    clock.advance(300)
    assert not take(database, HOURLY), "it did not fail"


def test_a_relay_that_dies_keeps_the_others_waiting_for_its_lease_alone(database: Database, clock: FakeClock) -> None:
    assert take(database, HOURLY)
    clock.advance(50)
    assert sweeps.keep(database, HOURLY)
    clock.advance(59)
    assert not take(database, OTHERS)
    clock.advance(1)
    assert take(database, OTHERS)
    assert not sweeps.keep(database, HOURLY), "it was not dead, and now knows"
    sweeps.end_early(work_of(database), HOURLY, None)
    ended(database, HOURLY)
    clock.advance(30)
    assert sweeps.keep(database, OTHERS), "what it had to say takes nobody's turn away"


def test_a_watermark_never_goes_back_and_what_was_missed_adds_up(database: Database) -> None:
    ended(database, HOURLY, until_second=20, missed=2)
    ended(database, HOURLY, until_second=10, missed=3)
    assert sweeps.compared_until(database, "trivore", "USER") == START + timedelta(seconds=20)
    with database.read() as transaction:
        (row,) = transaction.connection.exec_driver_sql("SELECT missed, last_missed FROM sweep_watermark").all()
    assert tuple(row) == (5, 3)


@pytest.mark.parametrize(
    ("seconds", "lost"),
    [((5, 1), False), ((1, 5), False), ((1, 4), True), ((), True)],
    ids=["the newest by arrival is older", "told", "too old", "never heard of"],
)
def test_a_change_is_told_by_any_event_as_late_as_it_or_cut_to_its_second(
    steps: Steps, seconds: tuple[int, ...], lost: bool
) -> None:
    steps.arrive(*(an_event(number, second=second) for number, second in enumerate(seconds, start=1)))
    listed = Listed("u1", START + timedelta(seconds=5.9))
    assert is_missing(steps, listed) == lost


def test_an_event_with_a_time_far_ahead_reports_no_change_after_its_arrival(steps: Steps) -> None:
    now = SystemClock().now()
    steps.arrive(msgspec.structs.replace(an_event(1), occurred_at=now + timedelta(hours=20)))
    assert is_missing(steps, Listed("u1", now + timedelta(hours=1)))
    assert not is_missing(steps, Listed("u1", now - timedelta(seconds=2)))


def is_missing(steps: Steps, listed: Listed, routes: Sequence[str] = ("strict",)) -> bool:
    return sweeps.missing(steps.database, "trivore", "USER", [listed], routes) == [listed]


def at(event: Event, seconds: float) -> Event:
    return msgspec.structs.replace(event, occurred_at=START + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("told", "lost"),
    [(5.1, True), (5.949, True), (5.95, False), (5.950999, False), (5, False)],
    ids=["earlier in its second", "a millisecond before", "cut to the millisecond", "later", "cut to the second"],
)
def test_an_earlier_event_in_the_second_of_a_change_is_of_another_change_where_times_have_fractions(
    steps: Steps, told: float, lost: bool
) -> None:
    steps.arrive(at(an_event(1), told))
    assert is_missing(steps, Listed("u1", START + timedelta(seconds=5.9503))) == lost


@pytest.mark.parametrize("newest", [True, False])
@pytest.mark.parametrize(
    ("taken", "asked", "lost"),
    [
        ([], ["strict"], True), (["latest"], ["strict"], True), (["strict"], ["latest", "strict"], True),
        (["latest", "strict"], ["strict"], False), ([], [], False), (["latest"], [], False),
    ],
)  # fmt: skip
def test_a_change_is_told_by_an_event_that_took_every_route_it_would_take(
    steps: Steps, newest: bool, taken: list[str], asked: list[str], lost: bool
) -> None:
    """Covers both orders of arrival: the event is the newest, or an older one arrives after it."""
    steps.arrive(an_event(9, routes=taken), *([] if newest else [an_event(1, routes=asked)]))
    assert is_missing(steps, Listed("u1", START + timedelta(seconds=5)), asked) == lost


@pytest.fixture
def directory() -> Directory:
    return Directory({f"u{n}": f"2026-01-01T00:00:{n:02}Z" for n in range(10)})


@contextmanager
def swept_by(directory: Directory, database_url: str, more: str = "", of_source: str = "") -> Iterator[CompiledSweep]:
    """Three a page."""
    with serving(directory) as server:
        config = config_text(database_url) + TABLE.format(url=server.url, count=3) + more
        config = config.replace('preset = "trivore"\n', f'preset = "trivore"\n{of_source}', 1)
        yield CompiledSweep(parse_config(config), "trivore", 0)


@pytest.fixture
def sweeping(directory: Directory, database_url: str) -> Iterator[CompiledSweep]:
    with swept_by(directory, database_url) as made:
        yield made


def run(sweeping: CompiledSweep, engine: Engine) -> SweepFindings:
    *_, last = sweeping.run(work_of(Database(engine)), without_lease(), START)
    return last


@pytest.mark.parametrize("more", ['items = "length(`1`)"', 'errors = "resources"'])
def test_a_page_that_can_not_be_read_fails_the_sweep(
    directory: Directory, engine: Engine, database_url: str, more: str
) -> None:
    with swept_by(directory, database_url, more) as made, pytest.raises(SweepFailed):
        run(made, engine)


def test_a_page_that_can_not_be_had_is_asked_for_again_and_not_the_whole_listing(
    sweeping: CompiledSweep, directory: Directory, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_run, "FIRST_WAIT_SECONDS", 0)
    directory.statuses = [200, 503, 429, 200, 503]
    assert (run(sweeping, engine).compared, directory.pages) == (10, 6 + 3)
    for statuses in ([200, 503, 503, 503], [200, 401]):  # of which the second would not pass
        directory.statuses = statuses
        with pytest.raises(SweepFailed, match=f"answered {statuses[-1]}"):
            run(sweeping, engine)


def test_a_sweep_begins_with_everything_and_then_before_the_watermark_by_the_overlap(
    sweeping: CompiledSweep, database: Database
) -> None:
    assert sweeping.begins(database) == (sweep_run.EVERYTHING, None)
    assert take(database, HOURLY)
    ended(database, HOURLY, until_second=5)
    until = START + timedelta(seconds=5)
    assert sweeping.begins(database) == (until - timedelta(seconds=sweeping.table.overlap), until)


def test_what_is_found_again_by_a_sweep_that_begins_again_is_not_added_twice(
    sweeping: CompiledSweep, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(sweeping, engine).added == 10
    assert run(sweeping, engine).missed == 0

    def everything(_: Database, __: str, ___: str, listed: Sequence[Listed], *____: object) -> list[Listed]:
        """As if none was there yet."""
        return list(listed)

    monkeypatch.setattr(sweeps, "missing", everything)
    again = run(sweeping, engine)
    assert (again.missed, again.added, count(engine, "inbox")) == (10, 0, 10)


# --- bodies of the events that a sweep adds


def bodies(engine: Engine) -> dict[str, Any]:
    found = rows(engine, "SELECT entity_id, body FROM inbox JOIN inbox_payload USING (seq)")
    return {row["entity_id"]: json.loads(row["body"]) for row in found}


def swept(entity: str, second: int, **more: object) -> dict[str, object]:
    at = f"2026-01-01T00:00:{second:02}Z"
    return {"entity_type": "USER", "entity_id": entity, "modified": at, **more}


def test_the_event_of_a_sweep_has_the_listed_entity_marked_as_swept(
    sweeping: CompiledSweep, directory: Directory, engine: Engine
) -> None:
    directory.more = {"u1": {"balance": 12345678901234567890.5, "name": "Ada"}}
    run(sweeping, engine)
    item = {"id": "u1", "meta": {"lastModified": "2026-01-01T00:00:01Z"}, **directory.more["u1"]}
    assert bodies(engine)["u1"] == {"sweep": swept("u1", 1, item=item)}
    assert len(bodies(engine)) == 10


def test_a_sweep_shapes_the_body_like_that_of_the_webhook(
    directory: Directory, database_url: str, engine: Engine
) -> None:
    shape = """event_body = { issue = "@", repository.full_name = "join('/', ['acme', repo])", action = "'swept'" }\n"""
    directory.users = {"u1": "2026-01-01T00:00:01Z"}
    directory.more = {"u1": {"repo": "shop"}}
    with swept_by(directory, database_url, shape) as sweeping:
        run(sweeping, engine)
    item = {"id": "u1", "meta": {"lastModified": "2026-01-01T00:00:01Z"}, "repo": "shop"}
    shaped = {"issue": item, "repository": {"full_name": "acme/shop"}, "action": "swept"}
    assert bodies(engine) == {"u1": {**shaped, "sweep": swept("u1", 1)}}


def test_an_entity_that_is_larger_than_a_webhook_may_be_is_left_out_of_its_event_and_the_others_are_not(
    directory: Directory, database_url: str, engine: Engine
) -> None:
    directory.more = {"u4": {"about": "x" * 2000}}
    with swept_by(directory, database_url, of_source="max_body = 2000\n") as sweeping:
        found = run(sweeping, engine)
    assert (found.added, found.left_out) == (10, 1)
    left = bodies(engine)["u4"]["sweep"]
    assert left == swept("u4", 4, left_out=left["left_out"])
    assert left["left_out"].endswith("bytes, and the source takes 2000")
    assert all("item" in body["sweep"] for entity, body in bodies(engine).items() if entity != "u4")


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ({"id": None}, "no id where it is said to be"),
        ({"id": "x" * 5000}, "can't be stored"),
        ({"meta": {"lastModified": "yesterday"}}, "has to be RFC 3339"),
        ({"meta": {}}, "no time of its last change"),
        ([], "no id where it is said to be"),
    ],
)
def test_an_item_that_names_no_entity_keeps_no_other_from_being_taken_in(
    sweeping: CompiledSweep, directory: Directory, engine: Engine, item: object, why: str
) -> None:
    directory.more = {"u4": item}
    with pytest.raises(SweepFailed, match=f"1 entities could not be taken in, the first: .*{why}"):
        run(sweeping, engine)
    assert sorted(bodies(engine)) == [f"u{n}" for n in range(10) if n != 4]


@pytest.mark.parametrize(
    ("unit", "modified"),
    [("s", 1767225605), ("s", 1767225605.9), ("ms", 1767225605000), ("rfc3339", "2026-01-01T02:00:05+02:00")],
)
def test_the_time_of_a_change_may_be_a_number_since_1970(
    directory: Directory, database_url: str, engine: Engine, unit: str, modified: object
) -> None:
    directory.users = {"u1": "2026-01-01T00:00:01Z"}
    directory.more = {"u1": {"meta": {"lastModified": modified}}}
    with swept_by(directory, database_url, f'time_unit = "{unit}"\n') as sweeping:
        assert run(sweeping, engine).until.replace(microsecond=0) == START.replace(second=5)


def test_large_bodies_are_stored_a_few_at_a_time(
    sweeping: CompiledSweep, directory: Directory, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_run, "MOST_BYTES_ADDED_AT_ONCE", 5000)
    directory.users = {f"u{n}": "2026-01-01T00:00:01Z" for n in range(3)}
    directory.more = {"u0": {"about": "x" * 2000}, "u1": {"about": "x" * 2000}, "u2": {"about": "x" * 20_000}}
    batches, append = [], intake.append

    def noting(connection: Connection, batch: Sequence[Event]) -> list[int | None]:
        batches.append([event.entity_id for event in batch])
        return append(connection, batch)

    monkeypatch.setattr(intake, "append", noting)
    assert run(sweeping, engine).added == 3
    assert batches == [["u0", "u1"], ["u2"]]
