"""Runs of real relay processes for `benchmarks.capacity`: their rate, and where the processors' time went.

A run looks at a few seconds in the middle, so that starting costs nothing. The costs of a transaction come from runs whose
batches differ: what grows with the number of transactions for each event is theirs.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from sqlalchemy import text

from benchmarks.backlog import Inbox
from benchmarks.capacity_model import Costs, Fleet
from benchmarks.drain import EVENTS_OF_AN_ENTITY, Seen
from benchmarks.support import READY_WITHIN_SECONDS, configured, count_rows, free_port, get, running
from inbox.loader.load import read_config
from relay.delivery.policy import policies
from relay.store import sequence
from relay.store.database import Database
from relay.store.work import Work

WARM_UP_SECONDS = 2.0
FITTED_AT = ((1, 4), (2, 12), (4, 32))
"""Processes, and calls at a time of each, of the runs that costs come from: others than those that the model is held against.
Many processes on few cores slow each other down, so some of them are here, too.
"""
MOST_PER_SECOND = 3000
"""Deliveries for which events are there, whatever the machine."""
COMMITS = 200
_TICKS = os.sysconf("SC_CLK_TCK")


class Run(msgspec.Struct, frozen=True):
    """Some seconds of a fleet on this machine; times are seconds of processor time for a delivery."""

    rate: float
    """Deliveries per second."""
    transactions: float
    """For each delivery."""
    calls: float
    """Of the threads of relays that make calls."""
    loop: float
    """Of the loops of relays."""
    server: float
    downstream: float
    others: float
    """Processors that other programs used."""


class Usage(msgspec.Struct, frozen=True):
    """Totals at a moment; times are seconds."""

    at: float
    threads: Sequence[Mapping[str, float]]
    """Of each relay, by number."""
    server: float
    downstream: float
    busy: float
    """Of all processors together."""
    transactions: int


class Testbed:
    """A server of Postgres, and an inbox on it that is filled anew for each run."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._inbox = Inbox(url)
        with self._inbox.engine.connect() as connection:
            file: str = connection.execute(text("SELECT pg_read_file('postmaster.pid')")).scalar_one()
        self._postmaster = int(file.split(maxsplit=1)[0])

    def run(self, fleet: Fleet, seconds: float) -> Run:
        """Let relays work on a backlog, and measure for so long.

        Raises:
            SystemExit: a relay ended, or delivered everything before the time was up.
        """
        port = free_port()
        server = f"http://127.0.0.1:{port}"
        most = min(fleet.processes * fleet.concurrency / fleet.answer, MOST_PER_SECOND)
        events = round((WARM_UP_SECONDS + seconds + 2) * most)
        self._inbox.empty()
        self._inbox.add(events, f"'u' || n % {events // EVENTS_OF_AN_ENTITY}")
        with (
            running("benchmarks.downstream", str(port), str(fleet.answer * 1000), ready=server) as downstream,
            configured(self.url, f"{server}/hook", fleet.concurrency) as environment,
        ):
            self._sequence(environment)
            with self._relays(fleet.processes, environment) as relays:
                time.sleep(WARM_UP_SECONDS)
                get(server)
                before = self._usage(relays, downstream)
                time.sleep(seconds)
                after = self._usage(relays, downstream)
                seen = msgspec.json.decode(get(server), type=Seen)
                if any(relay.poll() is not None for relay in relays) or not self._inbox.count("ready"):
                    raise SystemExit("a relay has ended, or has nothing left to deliver")
        return used_between(before, after, seen.requests)

    def _sequence(self, environment: Mapping[str, str]) -> None:
        """Several relays would sequence the whole backlog at once, in the seconds that are measured."""
        config = read_config(Path(environment["INBOX_CONFIG"]), environment)
        database = Database(self._inbox.engine)
        work = Work(database, config, policies(config), "benchmark")
        while sequence.sequence(work):
            pass
        self._inbox.settle()

    @contextmanager
    def _relays(self, processes: int, environment: dict[str, str]) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Relays that have all begun."""
        command = [sys.executable, "-m", "relay", "run"]
        relays = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(processes)]
        try:
            deadline = time.monotonic() + READY_WITHIN_SECONDS
            while count_rows(self.url, "relay_node WHERE stopped_at IS NULL") < processes:
                if time.monotonic() > deadline:
                    raise SystemExit("a relay does not begin")
                time.sleep(0.1)
            yield relays
        finally:
            for relay in relays:
                relay.send_signal(signal.SIGTERM)
            for relay in relays:
                relay.wait()

    def _usage(self, relays: Sequence[subprocess.Popen[bytes]], downstream: subprocess.Popen[bytes]) -> Usage:
        return Usage(
            time.monotonic(),
            [_of_threads(relay.pid) for relay in relays],
            _of_server(self._postmaster),
            _of_process(downstream.pid),
            _busy(),
            self._transactions(),
        )

    def _transactions(self) -> int:
        """Number the transactions that have written so far."""
        with self._inbox.engine.connect() as connection:
            found = connection.execute(
                text("SELECT CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)")
            )
            return int(found.scalar_one())

    def commit(self) -> float:
        """The median time that a commit waits for the disk, in seconds."""
        times = {"on": list[float](), "off": list[float]()}
        with self._inbox.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for _ in range(COMMITS):
                for durable, found in times.items():
                    connection.execute(text(f"SET synchronous_commit = {durable}"))
                    began = time.perf_counter()
                    connection.execute(text("SELECT pg_logical_emit_message(true, 'benchmark', '')"))
                    found.append(time.perf_counter() - began)
        return max(statistics.median(times["on"]) - statistics.median(times["off"]), 0.0)


def fitted(runs: Sequence[Run], commit: float) -> Costs:
    """Tell the costs of an event from those of a transaction: each is a line through runs with different batches."""
    transactions, rates = [run.transactions for run in runs], [run.rate for run in runs]
    loop = statistics.linear_regression(transactions, [run.loop for run in runs])
    server = statistics.linear_regression(transactions, [run.server for run in runs])
    return Costs(
        call=statistics.fmean((run.calls for run in runs), rates),
        loop_event=max(loop.intercept, 0.0),
        loop_transaction=max(loop.slope, 0.0),
        server_event=max(server.intercept, 0.0),
        server_transaction=max(server.slope, 0.0),
        commit=commit,
        downstream=statistics.fmean((run.downstream for run in runs), rates),
    )


def used_between(before: Usage, after: Usage, delivered: int) -> Run:
    """Share out among deliveries what was used between two moments. The loop of a relay is its busiest thread."""
    seconds = after.at - before.at
    threads = [
        [used - old.get(number, 0.0) for number, used in new.items()]
        for old, new in zip(before.threads, after.threads, strict=True)
    ]
    loop = sum(map(max, threads))
    calls = sum(map(sum, threads)) - loop
    server, downstream = after.server - before.server, after.downstream - before.downstream
    others = (after.busy - before.busy - calls - loop - server - downstream) / seconds
    return Run(
        rate=delivered / seconds,
        transactions=(after.transactions - before.transactions) / delivered,
        calls=calls / delivered,
        loop=loop / delivered,
        server=server / delivered,
        downstream=downstream / delivered,
        others=max(others, 0.0),
    )


def _of_threads(pid: int) -> dict[str, float]:
    """Processor time of each thread of a process."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return {file.parent.name: int(file.read_text(encoding="utf-8").split(maxsplit=1)[0]) / 1e9 for file in files}


def _of_server(postmaster: int) -> float:
    """Processor time of a server of Postgres, with the backends that have ended."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text(encoding="utf-8").split()
    return sum(_of_process(pid) for pid in (postmaster, *map(int, children)))


def _of_process(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / _TICKS


def _busy() -> float:
    """Time of all processors that was not idle."""
    fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]
    times = list(map(int, fields))
    return (sum(times) - times[3] - times[4]) / _TICKS
