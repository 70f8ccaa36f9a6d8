"""Whatever is locked or at fault, and whenever: in a lane on `strict` nothing is sequenced before what is known to be left."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Collection, Mapping
from typing import Any

import pytest

from relay.store import sequence
from relay.store.database import Database
from relay.store.turns import BackOffs
from tests.helpers.relaying import POLICIES, Monotonic, Steps
from tests.helpers.standing_still import locked_by_a_person
from tests.helpers.storing import an_event
from tests.store.test_setting_aside import refuse

ACTS = 60
LOCKABLE = ("received", "ready", "waiting")
Rows = Mapping[int, Mapping[str, Any]]


class Trouble:
    """Two relays, a person who locks rows, and rows at fault, in an order that is drawn."""

    def __init__(self, steps: Steps, seed: int) -> None:
        self.steps = steps
        self.draw = random.Random(seed)
        self.clock = Monotonic()
        self.relays = [steps.database, Database(steps.database.engine)]
        for relay in self.relays:
            relay.back_offs = BackOffs(self.clock)
            relay._thread.hasty_until = float("inf")  # so that each wait for a row is short
        self.person = contextlib.ExitStack()
        self.number = 0
        steps.do("CREATE TABLE at_fault (seq bigint)")
        for table, event in (("open_delivery", "UPDATE"), ("delivery_log", "INSERT")):
            refuse(steps, table, "EXISTS (SELECT 1 FROM at_fault WHERE at_fault.seq = NEW.seq)", event=event)

    def rows(self) -> Rows:
        found = self.steps.rows("SELECT seq, route, lane, occurred_at, state FROM open_delivery")
        return {row["seq"]: row for row in found}

    def act(self) -> None:
        self.draw.choices((self.arrive, self.lock, self.spoil, self.wait, self.sequence), weights=(35, 10, 10, 10, 35))[
            0
        ]()

    def arrive(self) -> None:
        for _ in range(self.draw.randint(1, 6)):
            self.number += 1
            entity, second = f"u{self.draw.randint(1, 4)}", self.draw.randrange(60)
            route = self.draw.choice(("strict", "strict", "latest"))
            self.steps.receive(an_event(self.number, entity, second=second, routes=[route]))

    def lock(self) -> None:
        self.person.close()
        if chosen := self._some_in(self.draw.choice((LOCKABLE, ("received",))), self.draw.randint(0, 4)):
            numbers = ", ".join(map(str, chosen))
            statement = f"SELECT 1 FROM open_delivery WHERE seq IN ({numbers}) FOR UPDATE"
            if self.steps.database.sql.is_postgres:
                self.person.enter_context(locked_by_a_person(self.steps.database.engine, statement))

    def spoil(self) -> None:
        self.steps.do(
            "DELETE FROM at_fault", *(f"INSERT INTO at_fault VALUES ({n})" for n in self._some_in(("received",), 1))
        )

    def wait(self) -> None:
        self.clock.seconds += self.draw.choice((0.05, 0.3, 2, 8))

    def sequence(self) -> None:
        relay, batch = self.draw.choice(self.relays), self.draw.choice((2, 3, 5, 500))
        known, before = relay.arrivals.rows, self.rows()
        if sequence.any_received(relay, POLICIES):
            sequence.sequence(relay, POLICIES, "r1", batch)
        after = self.rows()
        stay = {seq for seq, _ in known & relay.arrivals.rows if is_received(after, seq)}
        for seq in stay:
            assert [later for later in before if is_after(before, later, seq) and has_gone(before, after, later)] == []

    def end(self) -> None:
        """End all trouble, and let one relay go on."""
        self.person.close()
        self.steps.do("DELETE FROM at_fault")
        for _ in range(ACTS):
            self.clock.seconds += 8
            if sequence.any_received(self.relays[0], POLICIES):
                sequence.sequence(self.relays[0], POLICIES, "r1", batch=5)

    def _some_in(self, states: Collection[str], number: int) -> list[int]:
        found = sorted(seq for seq, row in self.rows().items() if row["state"] in states)
        return self.draw.sample(found, min(number, len(found)))


def is_after(rows: Rows, later: int, seq: int) -> bool:
    one, other = rows[seq], rows[later]
    same_lane = (one["route"], one["lane"]) == (other["route"], other["lane"])
    comes_later: bool = (other["occurred_at"], later) > (one["occurred_at"], seq)
    return one["route"] == "strict" and same_lane and comes_later


def has_gone(before: Rows, after: Rows, seq: int) -> bool:
    return is_received(before, seq) and not is_received(after, seq)


def is_received(rows: Rows, seq: int) -> bool:
    """Return whether it still is: another relay may have sequenced or superseded it."""
    return seq in rows and bool(rows[seq]["state"] == "received")


@pytest.mark.parametrize("seed", range(6))
def test_what_is_left_goes_first_in_its_lane_and_at_last_all_is_sequenced(steps: Steps, seed: int) -> None:
    trouble = Trouble(steps, seed)
    for _ in range(ACTS):
        trouble.act()
    trouble.end()
    assert [row for row in trouble.rows().values() if row["state"] == "received"] == []
