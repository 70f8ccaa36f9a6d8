"""Relays at work while the database's clock is set again and again: all is delivered, and who lives loses no lease.

On SQLite alone: what is tried are the rules of clocks, which are the same on both. The statements run on both elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, text

from inbox.db import engine as engines
from inbox.db.dialect import SQLITE, Sql
from relay.daemon.leases import Leases
from relay.delivery.outcome import Delivery
from relay.store import leases as reaping
from relay.store.claim import Room, claim
from relay.store.database import Database
from relay.store.deliveries import claim_of
from relay.store.leases import DatabaseClock, reap, renew
from relay.store.sequence import sequence
from tests.helpers.relaying import DONE, UNWELL, FakeClock, record, work_of
from tests.helpers.storing import Intake, an_event
from tests.proofs.planting import changed
from tests.store.verifying import differences

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
"""Events of so long ago may be deleted, so that one database does for all runs."""
TICK = 5.0
"""Seconds after which every relay renews, and looks for what ran out."""
ROUNDS = 14
"""Enough for all that is left: a lease, what a step makes a relay wait for, and one retry."""

STEPS = st.sampled_from([0.0, -3600.0, -20.0, -6.0, -0.9, 0.9, 3.0, 14.0, 16.0, 3600.0, 100000.0])
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "claim 0", "claim 1", "end 0", "end 1", "fail 0", "fail 1", "die 1"]),
        STEPS,
        st.sampled_from(["", "tick", "tick"]),
    ),
    min_size=2,
    max_size=5,
)
"""Actions, each with the step of the clock after it, and whether time passes."""


class Relay:
    """State of one relay process."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.world = world
        self.leases = Leases(world.own)
        self.clock = DatabaseClock(world.own)
        self.held: list[Delivery] = []
        self.maintain()

    def maintain(self) -> None:
        reap(work_of(self.world.database, node=self.name), self.leases.trusted(), self.clock)

    def claim(self) -> None:
        sequence(work_of(self.world.database, node=self.name))
        began = self.leases.began_asking()
        claimed = claim(work_of(self.world.database, node=self.name), [Room(["strict"], 2)])
        self.leases.granted(map(claim_of, claimed), began)
        self.held += claimed

    def renew(self) -> None:
        began = self.leases.began_asking()
        self.leases.renewed(renew(self.world.database, self.leases.held()), began)

    def end(self, *, well: bool) -> None:
        outcomes = [(delivery, DONE if well or delivery.attempt > 1 else UNWELL) for delivery in self.held]
        recorded = record(work_of(self.world.database, node=self.name), outcomes)
        assert all(result.fact is not None for result in recorded), "a result of a relay that lives is discarded"
        self.leases.forget(map(claim_of, self.held))
        self.held = []


class World:
    """A database, its clock, and two relays."""

    def __init__(self, engine: Engine, url: str) -> None:
        self.clock = FakeClock(LONG_AGO)
        self.seconds = 0.0
        self.database = Database(engine, self.clock)
        self.database.sql.pause_after_write = 0.0
        self._intake = Intake(url)
        self._sent = 0
        with engine.begin() as connection:
            for table in ("open_delivery", "lane", "inbox", "delivery_log", "gate", "alert"):
                connection.execute(text(f"DELETE FROM {table}"))
        self.dead: set[str] = set()
        self.relays = [Relay(self, "r0"), Relay(self, "r1")]

    def own(self) -> float:
        return self.seconds

    def act(self, act: str) -> None:
        what, _, which = act.partition(" ")
        relay = self.relays[int(which or 0)]
        match what:
            case "arrive":
                self.arrive()
            case "claim":
                relay.claim()
            case "die":
                self.replace(relay)
            case _:
                relay.end(well=what == "end")

    def arrive(self) -> None:
        self._sent += 1
        self._intake.append(an_event(self._sent, f"u{self._sent % 3}"))

    def tick(self) -> None:
        self.seconds += TICK
        self.clock.advance(TICK)
        for relay in self.relays:
            relay.maintain()
        for relay in self.relays:
            relay.renew()

    def replace(self, relay: Relay) -> None:
        """It dies; another process begins when the others have renewed: it has seen no step itself."""
        self.relays.remove(relay)
        self.dead.add(relay.name)
        self.tick()
        self.relays.append(Relay(self, f"r{len(self.dead) + 1}"))

    def holds(self) -> None:
        """Nothing was taken from a relay that lives, and no delivery has two that trust in it."""
        trusted = [key[:2] for relay in self.relays for key in relay.leases.trusted()]
        assert len(trusted) == len(set(trusted)), "two trust a lease of one delivery"
        with self.database.read() as transaction:
            rows = transaction.execute(
                text("SELECT detail ->> 'relay_node' AS node FROM delivery_log WHERE kind = 'abandoned'")
            )
        assert {row.node for row in rows} <= self.dead, "taken from one that lives"

    def finish(self) -> None:
        """Let an operator retry what a clock that ran ahead has made due later, and the relays do all there is."""
        with self.database.write() as transaction:
            due = "UPDATE open_delivery SET due_at = :now WHERE state = 'ready' AND due_at > :now"
            transaction.execute(text(due))
        for _ in range(ROUNDS):
            for relay in self.relays:
                relay.end(well=True)
                relay.claim()
            self.tick()
            self.holds()
        for relay in self.relays:
            relay.end(well=True)
        with self.database.read() as transaction:
            left = transaction.execute(text("SELECT seq, state FROM open_delivery"))
            delivered = transaction.execute(text("SELECT DISTINCT seq FROM delivery_log WHERE kind = 'delivered'"))
        assert left == [], "it is not delivered"
        assert len(delivered) == self._sent
        assert differences(self.database) == []


@pytest.fixture
def place(sqlite_database_url: str) -> Iterator[tuple[Engine, str]]:
    engine = engines.connect(sqlite_database_url, application="tests")
    event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous = OFF"))  # no power is cut here
    yield engine, sqlite_database_url
    engine.dispose()


def play(place: tuple[Engine, str], acts: list[tuple[str, float, str]]) -> None:
    world = World(*place)
    for act, step, passing in [("arrive", 0.0, ""), ("arrive", 0.0, ""), ("claim 0", 0.0, ""), *acts]:
        world.act(act)
        world.clock.advance(step)
        if passing:
            world.tick()
        world.holds()
    world.finish()


def test_all_is_delivered_and_nothing_is_taken_from_a_relay_that_lives(place: tuple[Engine, str]) -> None:
    @settings(
        max_examples=12, derandomize=True, database=None, deadline=None, phases=[Phase.generate], print_blob=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )  # fmt: skip
    @given(ACTS)
    def whatever_happens(acts: list[tuple[str, float, str]]) -> None:
        play(place, acts)

    whatever_happens()


def test_without_a_look_at_the_clock_leases_are_taken_from_those_who_live(
    place: tuple[Engine, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = [("arrive", 16.0, "tick")]
    play(place, acts)
    monkeypatch.setattr(DatabaseClock, "is_settled", lambda _: True)
    with pytest.raises(AssertionError, match="taken from one that lives"):
        play(place, acts)


def test_without_a_limit_of_leases_one_of_a_dead_relay_waits_for_the_clock_to_come_there_again(
    place: tuple[Engine, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = [("die 0", -3600.0, "tick")]
    play(place, acts)
    limit, none = (Sql(SQLITE).plus_seconds(":at", str(seconds)) for seconds in (reaping.TOO_LONG_SECONDS, 7200))
    changed(reaping, "_EXPIRED", (limit, none))(monkeypatch)
    monkeypatch.setattr(reaping, "TOO_LONG_SECONDS", 7200)
    with pytest.raises(AssertionError, match="it is not delivered"):
        play(place, acts)
