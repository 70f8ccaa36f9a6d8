"""Turns of relays at a sweep, the comparison that a sweep makes, and its progress."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import msgspec
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from tenacity import wait_none

from inbox.db import intake
from inbox.db.engine import LOCK_TIMEOUT_SECONDS
from inbox.errors import SweepFailed
from inbox.events.event import Event, swept_key
from inbox.events.timestamps import to_nanoseconds
from inbox.loader.load import parse_config
from relay.destinations.base import without_lease
from relay.store import sweeps
from relay.store.database import Database
from relay.store.sweeps import SweepFindings
from relay.sweep import pages
from relay.sweep.run import CompiledSweep
from relay.sync.cursor import Listed
from tests.helpers.directory import TABLE, Directory
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.reading import count
from tests.helpers.relaying import FakeClock, Steps
from tests.helpers.scripted import serving
from tests.helpers.storing import START, an_event
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
    sweeps.finish(database, sweeps.SweepFindings("trivore", "USER", START, until, 10, missed, missed), turn.node)


def test_one_relay_is_at_a_sweep_and_the_next_is_due_after_every(database: Database, clock: FakeClock) -> None:
    assert take(database, HOURLY)
    assert not take(database, OTHERS)
    ended(database, HOURLY)
    clock.advance(3599)
    assert not take(database, OTHERS)
    clock.advance(1)
    assert take(database, OTHERS)


def test_of_many_that_want_it_at_once_one_gets_it(database: Database) -> None:
    turns = [msgspec.structs.replace(HOURLY, node=f"r{number}") for number in range(8)]
    with ThreadPoolExecutor(len(turns)) as pool:
        assert sum(pool.map(lambda turn: sweeps.take(database, turn), turns)) == 1


def test_one_that_failed_is_repeated_sooner_and_one_that_was_broken_off_at_once(
    database: Database, clock: FakeClock
) -> None:
    assert take(database, HOURLY)
    sweeps.give_back(database, HOURLY)
    assert take(database, OTHERS)
    sweeps.fail(database, OTHERS, "answered 503", [])
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
    sweeps.give_back(database, HOURLY)
    ended(database, HOURLY)
    clock.advance(30)
    assert sweeps.keep(database, OTHERS), "what it had to say takes nobody's turn away"


def test_another_every_is_heeded_at_once(database: Database, clock: FakeClock) -> None:
    assert take(database, HOURLY)
    ended(database, HOURLY)
    clock.advance(10)
    assert not take(database, HOURLY)
    assert take(database, sweeps.Turn("trivore", "USER", "r1", every=10, again=10, lease=60))


def test_types_of_entities_have_turns_of_their_own(database: Database) -> None:
    assert take(database, HOURLY)
    assert take(database, sweeps.Turn("trivore", "GROUP", "r2", every=3600, again=300, lease=60))


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
        ([], ["strict"], True),
        (["latest"], ["strict"], True),
        (["strict"], ["latest", "strict"], True),
        (["latest", "strict"], ["strict"], False),
        ([], [], False),
        (["latest"], [], False),
    ],
)
def test_a_change_is_told_by_an_event_that_took_every_route_it_would_take(
    steps: Steps, newest: bool, taken: list[str], asked: list[str], lost: bool
) -> None:
    """Covers both orders of arrival: the event is the newest, or an older one arrives after it."""
    steps.arrive(an_event(9, routes=taken), *([] if newest else [an_event(1, routes=asked)]))
    assert is_missing(steps, Listed("u1", START + timedelta(seconds=5)), asked) == lost


def test_what_a_sweep_has_added_is_there_though_a_route_has_come_since(steps: Steps) -> None:
    listed = Listed("u1", START + timedelta(seconds=5))
    key = swept_key("USER", "u1", to_nanoseconds(listed.modified))
    steps.arrive(msgspec.structs.replace(an_event(5), dedup_key=key))
    assert not is_missing(steps, listed, ["strict", "latest"])


@pytest.fixture
def directory() -> Directory:
    return Directory({f"u{n}": f"2026-01-01T00:00:{n:02}Z" for n in range(10)})


@pytest.fixture
def sweeping(directory: Directory, database_url: str) -> Iterator[CompiledSweep]:
    """Three a page."""
    with serving(directory) as server:
        config = config_text(database_url) + TABLE.format(url=server.url, count=3)
        made = CompiledSweep(parse_config(config), "trivore", 0)
        yield made
        made.close()


def run(sweeping: CompiledSweep, engine: Engine) -> SweepFindings:
    *_, last = sweeping.run(Database(engine), without_lease(), START)
    return last


@ON_POSTGRES
def test_a_key_that_another_has_not_committed_yet_is_waited_for_once(
    sweeping: CompiledSweep, database: Database
) -> None:
    listed = [Listed(f"u{n}", START) for n in range(100)]
    uncommitted = sweeping._event(listed[40], None, START)
    began = time.monotonic()
    with database.engine.connect() as another:
        another.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        intake.append(another, [uncommitted])
        with pytest.raises(DBAPIError, match="lock timeout"):
            sweeping._add(database, listed, {}, START, [])
    assert count(database.engine, "inbox") == 99
    assert time.monotonic() - began < 3 * LOCK_TIMEOUT_SECONDS


def test_a_page_that_can_not_be_had_is_asked_for_again_and_not_the_whole_listing(
    sweeping: CompiledSweep, directory: Directory, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "WAIT", wait_none())
    directory.statuses = [200, 503, 429, 200, 503]
    assert (run(sweeping, engine).compared, directory.pages) == (10, 6 + 3)
    directory.statuses = [200, 503, 503, 503]
    with pytest.raises(SweepFailed, match="answered 503"):
        run(sweeping, engine)


def test_an_entity_that_is_changed_while_it_is_listed_hides_no_other(
    sweeping: CompiledSweep, directory: Directory, engine: Engine
) -> None:
    """It leaves its place for the end of the listing, and those behind it come one closer."""

    def change(page: int) -> None:
        if page in {2, 3}:
            directory.users[f"u{page}"] = f"2026-01-01T00:01:0{page}Z"

    directory.before_page = change
    swept = run(sweeping, engine)
    assert count(engine, "(SELECT DISTINCT entity_id FROM inbox) AS entities") == 10
    assert swept.until.isoformat() == "2026-01-01T00:01:03+00:00"


def test_a_listing_that_shrinks_while_it_is_read_comes_to_its_end(
    sweeping: CompiledSweep, directory: Directory, engine: Engine
) -> None:
    gone = iter([f"u{n}" for n in (0, 1, 2, 9, 8)])
    directory.before_page = lambda _: (directory.users.pop(next(gone, ""), None), None)[1]
    run(sweeping, engine)
    assert count(engine, "inbox WHERE entity_id IN ('u3', 'u4', 'u5', 'u6', 'u7')") == 5, "those that are still there"


def test_a_listing_that_is_another_one_each_time_is_an_error(
    sweeping: CompiledSweep, directory: Directory, engine: Engine
) -> None:
    def change(page: int) -> None:
        directory.users = {f"{page}-{n}": "2026-01-01T00:00:00Z" for n in range(10)}

    directory.before_page = change
    with pytest.raises(SweepFailed, match="don't connect"):
        run(sweeping, engine)


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
