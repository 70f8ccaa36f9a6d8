"""Faults of a rig, one function for each kind. Each returns when the fault is over."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from tests.helpers.databases import down
from tests.helpers.killable_postgres import KillablePostgres
from tests.helpers.proxy import Moment
from tests.helpers.tables import rows
from tests.helpers.waiting import until
from tests.proofs.faults.plan import Fault, Streams
from tests.proofs.faults.rig import Rig
from tests.proofs.faults.small_disk import full

BREATH = 0.3
"""Least seconds between two faults of a stream."""
CUT_WITHIN = 6.0
VERIFIED_WITHIN = 60.0
FULL_AT_MOST = 20.0


def do_all(rig: Rig, streams: Streams) -> list[str]:
    """Carry out all planned faults, with the streams in parallel.

    Returns:
        Failed faults; the first one stops the rest.
    """
    failures: list[str] = []
    began = time.monotonic()

    def do(name: str) -> None:
        try:
            for fault in streams[name]:
                if rig.stopping.wait(max(BREATH, began + fault.at * rig.slowness - time.monotonic())):
                    return
                DEEDS[fault.kind](rig, name, fault)
        except Exception as error:  # noqa: BLE001  # any error is reported with all the evidence
            where = traceback.extract_tb(error.__traceback__)[-1]
            failures.append(f"{name}: {error!r} ({where.name}, line {where.lineno})")
            rig.stopping.set()

    threads = [threading.Thread(target=do, args=(name,), name=name) for name in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def _kill_workers(rig: Rig, _stream: str, fault: Fault) -> None:
    workers = rig.receiver.children()
    with _record_fault(rig, fault, outage=False):
        for pid in workers[: None if fault.kind == "kill all workers" else 1]:
            _send(pid, signal.SIGKILL)
        until(lambda: set(rig.receiver.children()) - set(workers), "gunicorn started another worker")


def _freeze_worker(rig: Rig, _stream: str, fault: Fault) -> None:
    """Freeze a worker, which may hold the write lock on SQLite."""
    for pid in rig.receiver.children()[:1]:
        with _record_fault(rig, fault, outage=rig.store.postgres is None):
            _send(pid, signal.SIGSTOP)
            rig.stopping.wait(fault.seconds)
            _send(pid, signal.SIGCONT)


def _take_postgres_away(rig: Rig, _stream: str, fault: Fault) -> None:
    server = _postgres(rig)
    with _record_fault(rig, fault):
        if fault.kind == "kill Postgres":
            server.kill()
        else:
            server.stop("immediate" if fault.kind == "stop Postgres at once" else "fast")
        rig.stopping.wait(fault.seconds)
        server.start()


def _kill_backend(rig: Rig, _stream: str, fault: Fault) -> None:
    with _record_fault(rig, fault):
        _postgres(rig).kill_backend()
        _postgres(rig).wait()


def _hold_up_database(rig: Rig, _stream: str, fault: Fault) -> None:
    """Freeze Postgres, or lock SQLite as a tool left in a transaction does."""
    held_up = down(rig.store.url) if fault.kind == "lock SQLite" else _postgres(rig).frozen()
    with _record_fault(rig, fault), held_up:
        rig.stopping.wait(fault.seconds)


def _fill_disk(rig: Rig, _stream: str, fault: Fault) -> None:
    """Fill the disk. Postgres ends itself when it cannot write its log, and is started again afterwards.

    SQLite's log is truncated before, or SQLite would go on in its free part.
    """
    server = rig.store.postgres
    assert rig.store.disk is not None
    with _record_fault(rig, fault):
        if server is None:
            rows(rig.store.engine, "PRAGMA wal_checkpoint(TRUNCATE)")
        with full(rig.store.disk):
            refused = rig.sender.refused
            rig.stopping.wait(fault.seconds)
            until(
                lambda: rig.stopping.is_set() or rig.sender.refused > refused,
                "the receiver refuses what it can't store",
                within=FULL_AT_MOST,
            )
        if server is not None:
            if not server.runs:
                server.start()
            server.wait()


def _cut_commit(rig: Rig, _stream: str, fault: Fault) -> None:
    assert rig.store.proxy is not None
    application, moment = fault.about.split()
    order = rig.store.proxy.cut(application, cast("Moment", moment))
    deadline = time.monotonic() + CUT_WITHIN
    while not order.done.wait(0.1) and time.monotonic() < deadline and not rig.stopping.is_set():
        pass
    with contextlib.suppress(ValueError):
        rig.store.proxy.orders.remove(order)


def verify(rig: Rig) -> None:
    """Run `relay verify` and record its result."""
    begin = time.monotonic()
    program = rig.start("verify", "verify", "--json")
    status = program.ends(VERIFIED_WITHIN)
    told = "" if status == 0 else program.output
    rig.faults.append(kind="verify", begin=begin, end=time.monotonic(), status=status, told=told)


DEEDS: Mapping[str, Callable[[Rig, str, Fault], None]] = {
    "kill a relay": lambda rig, stream, _: rig.relays[stream].kill(),
    "freeze a relay": lambda rig, stream, fault: rig.relays[stream].freeze(fault.seconds),
    "replace a relay": lambda rig, stream, _: rig.relays[stream].replace(),
    "kill a worker": _kill_workers,
    "kill all workers": _kill_workers,
    "freeze a worker": _freeze_worker,
    "kill Postgres": _take_postgres_away,
    "stop Postgres at once": _take_postgres_away,
    "restart Postgres": _take_postgres_away,
    "kill a backend": _kill_backend,
    "freeze Postgres": _hold_up_database,
    "lock SQLite": _hold_up_database,
    "fill the disk": _fill_disk,
    "cut a commit": _cut_commit,
    "verify": lambda rig, *_: verify(rig),
}


@contextlib.contextmanager
def _record_fault(rig: Rig, fault: Fault, *, outage: bool = True) -> Iterator[None]:
    """Record begin and end of a fault, and whether it took the database away."""
    begin = time.monotonic()
    yield
    rig.faults.append(kind=fault.kind, begin=begin, end=time.monotonic(), outage=outage)


def _postgres(rig: Rig) -> KillablePostgres:
    assert rig.store.postgres is not None
    return rig.store.postgres


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
