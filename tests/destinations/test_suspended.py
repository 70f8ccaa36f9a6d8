"""A machine that is suspended with deliveries in hand makes no call under a lease that it lost meanwhile."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import ExitStack

import pytest

from inbox import clock
from inbox.config.values import Duration
from relay.daemon.generation import FinishedAttempt, WorkerPool
from relay.daemon.leases import TRUSTED_SECONDS, Leases
from relay.delivery.outcome import Delivered, Delivery, Outcome
from relay.destinations.base import Context
from relay.store.deliveries import claim_of
from tests.destinations.calling import Called
from tests.helpers.delivering import DELIVERY, ROUTE, a_delivery, context
from tests.helpers.scripted import answer

SUSPENDED = 20.0

pytestmark = pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system's clocks all stand still then")


class Machine:
    """Its clock of the time since it was started goes on while it is suspended; the others stand still."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept = 0.0
        real = time.clock_gettime
        monkeypatch.setattr(
            time, "clock_gettime", lambda which: real(which) + (self.slept if which == time.CLOCK_BOOTTIME else 0)
        )

    def suspend(self) -> None:
        self.slept += SUSPENDED


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_the_steady_clock_goes_on(machine: Machine) -> None:
    before = clock.steady()
    machine.suspend()
    assert clock.steady() - before > SUSPENDED


def test_no_call_is_begun_under_a_lease_that_ended_meanwhile(stack: ExitStack, machine: Machine) -> None:
    call = Called(stack, answer())
    leases = Leases()
    key = claim_of(DELIVERY)
    leases.granted([key], leases.began_asking())
    assert leases.trusted() == [key]
    machine.suspend()
    result = call(within=context(lambda: leases.trusted_until(key)))
    assert (result.error_class, result.call.sent) == ("lease_lost", "not_sent")
    assert call.server.seen == []
    assert leases.trusted() == []


def test_a_call_that_runs_is_cut_afterwards(stack: ExitStack, machine: Machine) -> None:
    leases = Leases()
    key = claim_of(DELIVERY)
    leases.granted([key], leases.began_asking())

    def sleep_in_mid_call(server: object, _: object) -> None:
        machine.suspend()
        server.closing.wait(30)  # type: ignore[attr-defined]  # a ScriptedServer

    result = Called(stack, sleep_in_mid_call, timeout=Duration(300))(within=context(lambda: leases.trusted_until(key)))
    assert (result.error_class, result.call.sent) == ("lease_lost", "unknown")
    assert SUSPENDED * 1000 < result.call.milliseconds < (SUSPENDED + TRUSTED_SECONDS) * 1000, (
        "at once, and not after 14 s"
    )


def test_of_what_a_worker_has_in_hand_one_call_at_most_goes_out(machine: Machine) -> None:
    """The one that was past its look at the lease when the machine was suspended."""
    leases = Leases()
    made: list[int] = []

    class Calling:
        def __call__(self, delivery: Delivery, context: object) -> Outcome:
            if clock.steady() < context.lease():  # type: ignore[attr-defined]  # a Context
                machine.suspend()
                made.append(delivery.seq)
            return Delivered((), "forwarded")

    finished: queue.SimpleQueue[FinishedAttempt] = queue.SimpleQueue()
    stop = threading.Event()

    def context_of(delivery: Delivery) -> Context:
        return Context(lambda: leases.trusted_until(claim_of(delivery)), stop, lambda: DELIVERY.occurred_at)

    pool = WorkerPool("audit", 1, {ROUTE: Calling()}, context_of=context_of, finished=finished.put)
    kept = [a_delivery(seq=seq) for seq in (1, 2, 3)]
    leases.granted(map(claim_of, kept), leases.began_asking())
    for delivery in kept:
        pool.submit(delivery)
    for _ in kept:
        finished.get(timeout=60)
    pool.close()
    assert made == [1]
