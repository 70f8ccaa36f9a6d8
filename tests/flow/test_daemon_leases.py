"""Renewal of a relay's leases while other sessions lock their rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import cast

from sqlalchemy import Connection, Engine, text

from inbox.clock import SystemClock
from relay.daemon.generation import PreparedConfig
from relay.daemon.leases import RENEW_EVERY_SECONDS, TRUSTED_SECONDS, Leases
from relay.daemon.loop import Relay
from relay.observe import Observer
from relay.steps import run_beside
from relay.store.database import Database
from relay.store.deliveries import Claimed, claim_of
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.patience import stand_still
from tests.helpers.relaying import CONFIG, FakeClock, Steps
from tests.helpers.storing import an_event

LOCK = text("SELECT 1 FROM open_delivery WHERE seq = 1 FOR UPDATE")


class Moments:
    """In place of the event that ends the loop: what happens at each wait, and then the end."""

    def __init__(self, *happens: Callable[[], object]) -> None:
        self._happens = iter(happens)
        self.waited: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.waited.append(round(seconds, 3))
        happen = next(self._happens, None)
        if happen is None:
            return True
        happen()
        return False


def lock(other: Connection) -> None:
    stand_still(other)
    other.execute(LOCK)


def nothing() -> None:
    """Time passes."""


def keeping(engine: Engine, moments: Moments) -> list[float]:
    """Hold two leases while this happens. Returns how long was waited each time."""
    steps = Steps(engine, clock=FakeClock(SystemClock().now()))
    steps.arrive(an_event(1, "a"), an_event(2, "b"))
    claimed: Sequence[Claimed] = [claim_of(steps.claim()) for _ in range(2)]
    with engine.begin() as connection:
        connection.execute(text("UPDATE open_delivery SET lease_until = '2026-01-01 00:00:00.000000Z'"))
    relay = Relay(Database(engine), PreparedConfig(CONFIG), grace_seconds=0)
    relay._leases.granted(claimed, relay._leases.began_asking())
    ended = cast(threading.Event, moments)  # all that is asked of it
    run_beside("leases", relay._renew, every=RENEW_EVERY_SECONDS, stop=ended, observer=Observer()).join(60)
    return moments.waited


def renewed(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        since = "SELECT seq FROM open_delivery WHERE lease_until > '2026-01-01 00:00:01.000000Z' ORDER BY seq"
        return [row.seq for row in connection.execute(text(since))]


@ON_POSTGRES
def test_a_lease_whose_row_is_locked_is_renewed_in_the_next_round(engine: Engine) -> None:
    seen: list[list[int]] = []
    with engine.connect() as other:

        def let_go() -> None:
            seen.append(renewed(engine))
            other.rollback()

        waited = keeping(engine, Moments(lambda: lock(other), let_go, lambda: seen.append(renewed(engine))))
    assert seen == [[2], [1, 2]]
    assert waited == [0, *[RENEW_EVERY_SECONDS] * 3]
    assert 2 * RENEW_EVERY_SECONDS < TRUSTED_SECONDS, "it is asked for twice more before its calls are cut"


def test_a_lease_that_is_lost_is_not_asked_for_again_before_the_next_round(engine: Engine) -> None:
    def lose() -> None:
        with engine.begin() as connection:
            connection.execute(text("UPDATE open_delivery SET lease_token = 7 WHERE seq = 1"))

    assert keeping(engine, Moments(lose)) == [0, RENEW_EVERY_SECONDS]
    assert renewed(engine) == [2]


def test_a_lease_that_is_forgotten_while_it_is_renewed_is_not_trusted_again() -> None:
    recorded, open_still = (1, "strict", 7), (2, "strict", 7)
    seconds = [100.0]
    leases = Leases(lambda: seconds[0])
    leases.granted([recorded, open_still], leases.began_asking())
    seconds[0] += 5
    asked_at = leases.began_asking()
    leases.forget([recorded])
    leases.renewed([recorded, open_still], asked_at)
    assert (leases.trusted(), leases.held()) == ([open_still], [open_still])
    assert leases.trusted_until(recorded) == 0
    assert leases.trusted_until(open_still) == 105 + TRUSTED_SECONDS
