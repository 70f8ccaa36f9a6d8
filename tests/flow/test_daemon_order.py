"""The daemon itself, in a thread: claims while arrivals can't be ordered, and leases whose rows are locked.

On SQLite a relay that can't order can't claim either.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from sqlalchemy import Engine, text
from tests.helpers.databases import ON_POSTGRES
from tests.helpers.tables import rows

from inbox.clock import SystemClock
from relay.daemon.generation import PreparedConfig
from relay.daemon.leases import RENEW_EVERY_SECONDS, TRUSTED_SECONDS, Leases
from relay.daemon.loop import Relay
from relay.observe import Observer
from relay.steps import LASTS_SECONDS, run_beside
from relay.store import alerts
from relay.store.alert_conditions import Watch
from relay.store.database import Database
from relay.store.deliveries import claim_of
from relay.store.sequence import sequence
from relay.store.work import Work
from tests.bulkheads.test_steps import LOCKED
from tests.helpers.daemon import Rig
from tests.helpers.relaying import CONFIG, POLICIES, FakeClock, Steps, work_of
from tests.helpers.storing import an_event
from tests.helpers.waiting import stand_still, until
from tests.helpers.webhooks import ROUTE


@contextlib.contextmanager
def no_relay_can_order(engine: Engine) -> Iterator[None]:
    """Another relay stands still in a transaction that has the order lock."""
    with engine.connect() as connection:
        stand_still(connection)
        connection.execute(text("SELECT id FROM order_lock FOR UPDATE"))
        connection.execute(text("SELECT route FROM route_lock FOR UPDATE"))
        yield


def could_not_order(relay: Relay) -> bool:
    return "sequence" in {*relay._steps.failing, *relay._rests.texts()}


@pytest.fixture
def _an_older_one_has_come(rig: Rig) -> None:
    """A head is due, and an older event of its entity is not ordered yet."""
    steps = Steps(rig.engine)
    steps.receive(an_event(1, second=2, routes=[ROUTE]))
    sequence(work_of(rig.database, {ROUTE: POLICIES["strict"]}, node="another"))
    steps.receive(an_event(2, second=1, routes=[ROUTE]))


@pytest.mark.usefixtures("_an_older_one_has_come")
def test_while_nothing_can_be_ordered_nothing_is_claimed_and_the_older_one_goes_first(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()

    def held_up(*given: Any) -> int:  # noqa: ANN401  # passed on
        if not let_go.is_set():
            raise LOCKED
        return sequence(*given)

    monkeypatch.setattr("relay.store.sequence.sequence", held_up)
    with rig.relay() as relay:
        until(lambda: could_not_order(relay), "it can't be ordered")
        let_go.set()
        rig.until_left()
    assert rig.calls == [2, 1]


@ON_POSTGRES
@pytest.mark.usefixtures("_an_older_one_has_come")
def test_a_route_whose_lock_another_step_gets_first_is_not_claimed_from_before_it_is_ordered(rig: Rig) -> None:
    with rig.database.write() as earlier:
        earlier.take_order_lock([ROUTE])  # so that the route has its row
    with contextlib.ExitStack() as trouble:
        trouble.enter_context(no_relay_can_order(rig.engine))
        with rig.relay() as relay:
            until(lambda: could_not_order(relay), "it can't be ordered")
            trouble.close()
            with relay._database.write() as another_step:
                another_step.take_order_lock([ROUTE])
            relay.wake()
            rig.until_left()
    assert rig.calls == [2, 1]


def test_a_round_without_a_look_for_what_has_arrived_does_not_make_a_failing_step_well(rig: Rig) -> None:
    """Else claims would wait 15 s for it again and again, and its alert would never come."""
    with rig.relay() as relay:
        pass
    relay._steps.run("sequence", lambda: 1 // 0, 0)
    relay._steps.monotonic = lambda: time.monotonic() + LASTS_SECONDS  # its next try is due
    relay._scans.is_behind, relay._is_idle, relay._claimer.ran_short = True, False, False
    relay._cycle()
    assert could_not_order(relay)


def test_a_relay_that_looks_just_behind_an_alert_of_a_failing_step_does_not_end_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = alerts.step_failed

    def then_another_looks(work: Work, step: str, error: str) -> None:
        stores(work, step, error)
        Watch().look(work)

    monkeypatch.setattr(alerts, "step_failed", then_another_looks)
    with rig.relay() as relay:
        until(lambda: rows(rig.engine, "SELECT 1 FROM relay_node"), "it has started")
        relay._steps.run("sweep", lambda: 1 // 0, 0, subject="crm USER")
        found = rows(rig.engine, "SELECT firing FROM alert WHERE kind = 'step_failed'")
    assert [bool(row["firing"]) for row in found] == [True]


# --- leases


class Moments:
    """In place of the event that ends the loop: what happens at each wait, and then the end."""

    def __init__(self, *happens: Callable[[], object]) -> None:
        self._happens = iter(happens)

    def wait(self, _seconds: float) -> bool:
        happen = next(self._happens, None)
        if happen is None:
            return True
        happen()
        return False


def renewed(engine: Engine) -> list[int]:
    since = "SELECT seq FROM open_delivery WHERE lease_until > '2026-01-01 00:00:01.000000Z' ORDER BY seq"
    return [row["seq"] for row in rows(engine, since)]


@ON_POSTGRES
def test_a_lease_whose_row_is_locked_is_renewed_in_the_next_round(engine: Engine) -> None:
    steps = Steps(engine, clock=FakeClock(SystemClock().now()))
    steps.arrive(an_event(1, "a"), an_event(2, "b"))
    claimed = [claim_of(steps.claim()) for _ in range(2)]
    steps.do("UPDATE open_delivery SET lease_until = '2026-01-01 00:00:00.000000Z'")
    relay = Relay(Database(engine), PreparedConfig(CONFIG), grace_seconds=0)
    relay._leases.granted(claimed, relay._leases.began_asking())
    seen: list[list[int]] = []
    with engine.connect() as other:

        def lock() -> None:
            stand_still(other)
            other.execute(text("SELECT 1 FROM open_delivery WHERE seq = 1 FOR UPDATE"))

        def let_go() -> None:
            seen.append(renewed(engine))
            other.rollback()

        moments = Moments(lock, let_go, lambda: seen.append(renewed(engine)))
        ended = cast(threading.Event, moments)  # all that is asked of it
        run_beside("leases", relay._renew, every=RENEW_EVERY_SECONDS, stop=ended, observer=Observer()).join(60)
    assert seen == [[2], [1, 2]]
    assert 2 * RENEW_EVERY_SECONDS < TRUSTED_SECONDS, "it is asked for twice more before its calls are cut"


def test_a_lease_that_is_forgotten_while_it_is_renewed_is_not_trusted_again_nor_is_any_after_a_revocation() -> None:
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
    leases.revoke()
    leases.renewed([open_still], leases.began_asking())
    assert (leases.trusted(), leases.held(), leases.trusted_until(open_still)) == ([], [], 0)
