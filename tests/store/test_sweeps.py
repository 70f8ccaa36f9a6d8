"""Turns of relays at a sweep, the comparison that a sweep makes, and its progress."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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

HOURLY, OTHERS = (sweeps.Turn("trivore", "USER", node, every=3600, again=300, lease=60) for node in ("r1", "r2"))


def take(database: Database, turn: sweeps.Turn) -> bool:
    """Take the turn; assert that the look without a lock agrees, since no other relay competes."""
    looked = sweeps.is_due(database, turn)
    assert sweeps.take(database, turn) == looked
    return looked


def finish(database: Database, turn: sweeps.Turn, until_second: float = 0, missed: int = 0) -> None:
    until = START + timedelta(seconds=until_second)
    sweeps.finish(
        work_of(database, node=turn.node), sweeps.SweepFindings("trivore", "USER", START, until, 10, missed, missed)
    )


def test_one_relay_is_at_a_sweep_and_the_next_is_due_after_every(database: Database, clock: FakeClock) -> None:
    assert take(database, HOURLY)
    assert not take(database, OTHERS)
    finish(database, HOURLY)
    clock.advance(3599)
    assert not take(database, OTHERS)
    clock.advance(1)
    assert take(database, OTHERS)


def test_of_many_that_want_it_at_once_one_gets_it(database: Database) -> None:
    be_patient(database.engine)
    turns = [msgspec.structs.replace(HOURLY, node=f"r{number}") for number in range(8)]
    with ThreadPoolExecutor(len(turns)) as pool:
        assert sum(pool.map(lambda turn: sweeps.take(database, turn), turns)) == 1


def test_a_failed_one_is_repeated_sooner_and_a_broken_one_at_once(database: Database, clock: FakeClock) -> None:
    assert take(database, HOURLY)
    sweeps.end_early(work_of(database), HOURLY, None)
    assert take(database, OTHERS)
    sweeps.end_early(work_of(database), OTHERS, "answered 503")
    clock.advance(299)
    assert not take(database, HOURLY)
    clock.advance(1)
    assert take(database, HOURLY)
    finish(database, HOURLY)
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
    finish(database, HOURLY)
    clock.advance(30)
    assert sweeps.keep(database, OTHERS), "what it had to say takes nobody's turn away"


def test_a_watermark_never_goes_back_and_what_was_missed_adds_up(database: Database) -> None:
    finish(database, HOURLY, until_second=20, missed=2)
    finish(database, HOURLY, until_second=10, missed=3)
    assert sweeps.read_watermark(database, "trivore", "USER") == START + timedelta(seconds=20)
    with database.read() as transaction:
        (row,) = transaction.connection.exec_driver_sql("SELECT missed, last_missed FROM sweep_watermark").all()
    assert tuple(row) == (5, 3)


@pytest.mark.parametrize(
    ("seconds", "lost"),
    [((5, 1), False), ((1, 5), False), ((1, 4), True), ((), True)],
    ids=["the newest by arrival is older", "told", "too old", "never heard of"],
)
def test_a_change_is_reported_by_an_event_from_its_second_on(
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
    return sweeps.find_missing(steps.database, "trivore", "USER", [listed], routes) == [listed]


@pytest.mark.parametrize(
    ("told", "lost"),
    [(5.1, True), (5.949, True), (5.95, False), (5.950999, False), (5, False)],
    ids=["earlier in its second", "a millisecond before", "cut to the millisecond", "later", "cut to the second"],
)
def test_times_with_fractions_tell_changes_of_one_second_apart(steps: Steps, told: float, lost: bool) -> None:
    steps.arrive(msgspec.structs.replace(an_event(1), occurred_at=START + timedelta(seconds=told)))
    assert is_missing(steps, Listed("u1", START + timedelta(seconds=5.9503))) == lost


TAKEN: tuple[tuple[list[str], str, bool], ...] = (
    *(([], "strict", True), (["latest"], "strict", True), (["strict"], "latest strict", True)),
    *((["latest", "strict"], "strict", False), ([], "", False), (["latest"], "", False)),
)


@pytest.mark.parametrize("newest", [True, False])
@pytest.mark.parametrize(("taken", "asked", "lost"), TAKEN)
def test_an_event_reports_for_its_routes(steps: Steps, newest: bool, taken: list[str], asked: str, lost: bool) -> None:
    """Covers both orders of arrival: the event is the newest, or an older one arrives after it."""
    steps.arrive(an_event(9, routes=taken), *([] if newest else [an_event(1, routes=asked.split())]))
    assert is_missing(steps, Listed("u1", START + timedelta(seconds=5)), asked.split()) == lost


@pytest.fixture
def directory() -> Directory:
    return Directory({f"u{n}": f"2026-01-01T00:00:{n:02}Z" for n in range(10)})


Sweeping = Callable[..., SweepFindings]


@pytest.fixture
def sweep(directory: Directory, engine: Engine, database_url: str) -> Iterator[Sweeping]:
    """Sweep the directory, three entities a page, with further lines of the sweep's table and of its source's."""
    with serving(directory) as server:

        def run(more: str = "", of_source: str = "") -> SweepFindings:
            config = config_text(database_url) + TABLE.format(url=server.url, count=3) + more
            config = config.replace('preset = "trivore"\n', f'preset = "trivore"\n{of_source}', 1)
            made = CompiledSweep(parse_config(config), "trivore", 0)
            *_, last = made.run(work_of(Database(engine)), without_lease(), START)
            return last

        yield run


def test_a_failed_page_is_read_again(sweep: Sweeping, directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_run, "FIRST_WAIT_SECONDS", 0)
    directory.statuses = [200, 503, 429, 200, 503]
    assert (sweep().compared, directory.pages) == (10, 6 + 3)
    for statuses in ([200, 503, 503, 503], [200, 401]):  # of which the second would not pass
        directory.statuses = statuses
        with pytest.raises(SweepFailed, match=f"answered {statuses[-1]}"):
            sweep()


def test_a_sweep_begins_before_the_watermark_by_its_overlap(database: Database, database_url: str) -> None:
    config = config_text(database_url) + TABLE.format(url="http://127.0.0.1:9", count=3)
    made = CompiledSweep(parse_config(config), "trivore", 0)
    assert made.find_start(database) == (sweep_run.EVERYTHING, None)
    finish(database, HOURLY, until_second=5)
    until = START + timedelta(seconds=5)
    assert made.find_start(database) == (until - timedelta(seconds=made.table.overlap), until)


def test_a_repeated_sweep_adds_nothing_twice(sweep: Sweeping, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep().added == 10
    assert sweep().missed == 0
    monkeypatch.setattr(sweeps, "find_missing", lambda *given: [*given[3]])  # as if none was there yet
    again = sweep()
    assert (again.missed, again.added, count(engine, "inbox")) == (10, 0, 10)


# --- bodies of the events that a sweep adds


def bodies(engine: Engine) -> dict[str, Any]:
    found = rows(engine, "SELECT entity_id, body FROM inbox JOIN inbox_payload USING (seq)")
    return {row["entity_id"]: json.loads(row["body"]) for row in found}


def swept(entity: str, second: int, **more: object) -> dict[str, object]:
    at = f"2026-01-01T00:00:{second:02}Z"
    return {"entity_type": "USER", "entity_id": entity, "modified": at, **more}


def test_a_sweeps_event_has_the_listed_entity(sweep: Sweeping, directory: Directory, engine: Engine) -> None:
    directory.more = {"u1": {"balance": 12345678901234567890.5, "name": "Ada"}}
    sweep()
    item = {"id": "u1", "meta": {"lastModified": "2026-01-01T00:00:01Z"}, **directory.more["u1"]}
    assert bodies(engine)["u1"] == {"sweep": swept("u1", 1, item=item)}
    assert len(bodies(engine)) == 10


def test_a_sweep_shapes_the_body_like_the_webhooks(sweep: Sweeping, directory: Directory, engine: Engine) -> None:
    directory.users = {"u1": "2026-01-01T00:00:01Z"}
    directory.more = {"u1": {"repo": "shop"}}
    sweep("""event_body = { issue = "@", repository.full_name = "join('/', ['acme', repo])", action = "'swept'" }\n""")
    item = {"id": "u1", "meta": {"lastModified": "2026-01-01T00:00:01Z"}, "repo": "shop"}
    shaped = {"issue": item, "repository": {"full_name": "acme/shop"}, "action": "swept"}
    assert bodies(engine) == {"u1": {**shaped, "sweep": swept("u1", 1)}}


def test_an_entity_larger_than_a_webhook_is_left_out(sweep: Sweeping, directory: Directory, engine: Engine) -> None:
    directory.more = {"u4": {"about": "x" * 2000}}
    found = sweep(of_source="max_body = 2000\n")
    assert (found.added, found.left_out) == (10, 1)
    left = bodies(engine)["u4"]["sweep"]
    assert left == swept("u4", 4, left_out=left["left_out"])
    assert left["left_out"].endswith("bytes, but the source accepts 2000")
    assert all("item" in body["sweep"] for entity, body in bodies(engine).items() if entity != "u4")


NO_ENTITY: tuple[object, ...] = (
    {"id": None},
    {"id": "x" * 5000},
    {"meta": {"lastModified": "yesterday"}},
    {"meta": {}},
    [],
)


@pytest.mark.parametrize("item", NO_ENTITY)
def test_an_item_without_an_entity_is_skipped(
    sweep: Sweeping, directory: Directory, engine: Engine, item: object
) -> None:
    directory.more = {"u4": item}
    with pytest.raises(SweepFailed, match="1 entities could not be compared or added, the first: "):
        sweep()
    assert sorted(bodies(engine)) == [f"u{n}" for n in range(10) if n != 4]


def test_large_bodies_are_split_up(sweep: Sweeping, directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_run, "MOST_BYTES_ADDED_AT_ONCE", 5000)
    directory.users = {f"u{n}": "2026-01-01T00:00:01Z" for n in range(3)}
    directory.more = {f"u{n}": {"about": "x" * size} for n, size in enumerate((2000, 2000, 20_000))}
    batches, append = [], intake.append

    def noting(connection: Connection, batch: Sequence[Event]) -> list[int | None]:
        batches.append([event.entity_id for event in batch])
        return append(connection, batch)

    monkeypatch.setattr(intake, "append", noting)
    assert sweep().added == 3
    assert batches == [["u0", "u1"], ["u2"]]
