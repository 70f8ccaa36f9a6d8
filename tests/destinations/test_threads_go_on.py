"""No exception ends a thread of the relay, and unexpected ones are logged with type and place alone."""

from __future__ import annotations

import asyncio
import logging
import queue
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from inbox.config.values import Duration
from inbox.observe.logs import without_message
from relay.daemon.alerts import post
from relay.daemon.generation import FinishedAttempt, WorkerPool
from relay.daemon.leases import TRUSTED_SECONDS, Leases
from relay.delivery.alerts import Alert, Posted
from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome
from relay.destinations.base import without_lease
from relay.observe import Observer
from relay.store.deliveries import lease_key_of
from tests.destinations.calling import POST, Called, make_client
from tests.helpers.delivering import DELIVERY, NOW, ROUTE, context
from tests.helpers.scripted import ScriptedServer, answer, hang, raw, then_close

SECRET = "s3cr3t-of-a-test"  # it is planted
SUSPENDED = 20.0
BUGS = [ValueError(SECRET), SystemExit(SECRET), asyncio.CancelledError(SECRET), KeyboardInterrupt(SECRET)]
ALERT = Posted(1, NOW, Alert("step_failed", "x", firing=True))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
def test_a_worker_goes_on_after_a_bug(bug: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        bugs = [bug]  # noqa: RUF012  # reset for each test

        def __call__(self, _delivery: Delivery, _context: object) -> Outcome:
            if self.bugs:
                raise self.bugs.pop()
            return Delivered((), "forwarded")

    finished: queue.SimpleQueue[FinishedAttempt] = queue.SimpleQueue()
    context = without_lease()
    pool = WorkerPool("audit", 1, {ROUTE: Broken()}, context_of=lambda _: context, finished=finished.put)
    for _ in range(2):
        pool.submit(DELIVERY)
    first, second = (finished.get(timeout=60).outcome for _ in range(2))
    pool.close()
    assert isinstance(first, Failed)
    assert (first.error_class, isinstance(second, Delivered)) == ("crashed", True)
    assert len(caplog.records) == 1
    assert "in __call__" in caplog.text
    assert caplog.text.rstrip().endswith(type(bug).__name__)
    assert SECRET not in repr(first) + caplog.text


def test_an_alert_that_is_answered_with_a_negative_chunk_is_followed_by_the_next(stack: ExitStack) -> None:
    hostile = then_close(raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n"))
    called = Called(stack, hostile, answer())
    errors = [post(ALERT, called.client, "json", context())[0] for _ in range(2)]
    assert errors == ["alert: not an HTTP response: invalid character in chunk size", None]


def test_a_call_with_an_unreadable_lease_is_cut(stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    broken = Called(stack, hang, timeout=Duration(20))

    def lease() -> float:
        if broken.server.seen:
            raise LookupError(SECRET)
        return float("inf")

    result = broken(within=context(lease))
    assert (result.error_class, result.call.sent) == ("lease_lost", "unknown")
    assert Called(stack, hang, timeout=Duration(1))().error_class == "unknown", "calls are cut as before"
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "bug", [ValueError(SECRET), MemoryError(), LookupError(SECRET)], ids=lambda b: type(b).__name__
)
def test_names_are_resolved_after_a_bug_in_the_resolver(bug: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def broken(host: str, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        raise bug

    monkeypatch.setattr(socket, "getaddrinfo", broken)
    client = make_client("http://odd.example", timeout=Duration(10))
    results = [client.call(request, context()) for request in [POST] * 20]
    assert {(result.error_class, result.call.sent) for result in results} == {("not_sent", "not_sent")}
    assert len(asked) == 20
    assert SECRET not in repr(results)


# --- a machine suspended with deliveries in flight


@pytest.fixture
def suspend(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Function that suspends the machine: its boot-time clock goes on, the others stand still."""
    real, slept = time.clock_gettime, [0.0]

    def read(which: int) -> float:
        return real(which) + (slept[0] if which == time.CLOCK_BOOTTIME else 0)

    monkeypatch.setattr(time, "clock_gettime", read)
    return lambda: slept.append(slept.pop() + SUSPENDED)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system's clocks all stand still then")
def test_after_a_suspension_no_call_outlives_its_lease(stack: ExitStack, suspend: Callable[[], None]) -> None:
    def sleep_in_mid_call(server: ScriptedServer, _: object) -> None:
        suspend()
        server.closing.wait(30)

    call = Called(stack, sleep_in_mid_call, timeout=Duration(300))
    leases, key = Leases(), lease_key_of(DELIVERY)
    leases.trust([key], leases.now())
    result = call(within=context(lambda: leases.trusts_until(key)))
    assert (result.error_class, result.call.sent) == ("lease_lost", "unknown")
    assert SUSPENDED * 1000 < result.call.milliseconds < (SUSPENDED + TRUSTED_SECONDS) * 1000
    leases.trust([key], leases.now())
    assert leases.list_trusted() == [key]
    suspend()
    result = call(within=context(lambda: leases.trusts_until(key)))
    assert (result.error_class, result.call.sent) == ("lease_lost", "not_sent")
    assert (len(call.server.seen), leases.list_trusted()) == (1, [])


# --- the log


def raise_with_a_row() -> BaseException:
    """Return an error as a driver raises it, with the row and the bound values in its text."""

    def drive() -> None:
        int(f"DETAIL: Key (id)=({SECRET}) already exists")

    def execute() -> None:
        try:
            drive()
        except ValueError as error:
            raise IntegrityError("INSERT …", {"body": SECRET}, error) from error

    with pytest.raises(IntegrityError) as caught:
        execute()
    return caught.value


def test_a_failed_step_is_logged_with_all_its_frames_and_none_of_its_values(caplog: pytest.LogCaptureFixture) -> None:
    error = raise_with_a_row()
    assert SECRET in str(error)
    Observer().on_step_failed("record", error, 1.0)
    Observer().log("bug_in_thread", bug=error, subject="sweeps")
    assert caplog.text.count("in execute") == 4, "its own frames, and its cause's, each time"
    assert "IntegrityError" in caplog.text
    assert SECRET not in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_a_bare_traceback_of_a_thousand_frames_is_short() -> None:
    def deeper(left: int) -> None:
        if not left:
            raise ValueError(SECRET)
        deeper(left - 1)

    with pytest.raises(ValueError, match=SECRET) as caught:
        deeper(500)
    lines = "".join(traceback.format_exception(without_message(caught.value))).splitlines()
    assert len(lines) < 40
    assert SECRET not in "\n".join(lines)
