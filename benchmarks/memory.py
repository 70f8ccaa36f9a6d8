"""Resident memory of a relay and of a receiver's worker at full load, optionally with a million open deliveries.

The receiver is saturated with webhooks, while the relay delivers to a downstream that answers at once. The memory of each
process is read every second; its peak counts, and growth in the second half shows a leak. Exits with 1 when a bar is
missed. Everything runs on 127.0.0.1.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Annotated

import msgspec
import typer

from benchmarks import harness
from benchmarks.filling import Inbox
from benchmarks.harness import AsJson, Kind, OnDatabase
from benchmarks.load import send
from benchmarks.rows import ROWS

CONNECTIONS = 64
BARS: Mapping[str, float] = {name: ROWS[f"memory-{name}"].bar for name in ("relay", "worker")}
"""Bar in MiB."""
_EVERY_SECONDS = 1.0


class Memory(msgspec.Struct, frozen=True):
    """Resident memory of a kind of process in MiB, of the largest of several workers."""

    peak_mib: float
    first_half_mib: float
    """Median of the first half of the run."""
    second_half_mib: float
    bar_mib: float


def main(
    *,
    database: OnDatabase = Kind.POSTGRES,
    minutes: Annotated[float, typer.Option(min=0.05, max=600, help="How long.")] = 10,
    open_: Annotated[
        int, typer.Option("--open", min=0, max=5_000_000, help="Deliveries that are open at the start.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure the memory of both sides at full load."""
    with ExitStack() as stack:
        (url,) = stack.enter_context(harness.databases(database))
        if open_:
            inbox = Inbox(url)
            inbox.add(open_, "'u' || n")
            inbox.settle()
            inbox.engine.dispose()
        server = stack.enter_context(harness.downstream())
        environment = stack.enter_context(harness.configure(url, f"{server}/hook", 16))
        receiver = stack.enter_context(harness.serving(environment))
        relay = stack.enter_context(harness.relaying(environment))
        with ThreadPoolExecutor(1) as sender:
            load = sender.submit(send, receiver.target, 60 * minutes, CONNECTIONS)
            samples: dict[str, list[float]] = {name: [] for name in BARS}
            while not load.done():
                time.sleep(_EVERY_SECONDS)
                processes = _processes()
                samples["relay"] += [processes[relay.pid].mib] if relay.pid in processes else []
                workers = [each.mib for each in processes.values() if each.parent == receiver.pid]
                samples["worker"] += [max(workers)] if workers else []
            answers = load.result()
        left = Inbox(url).count()
    notes = {"minutes": minutes, "accepted_per_second": round(answers.rate), "open_at_the_end": left}
    measured = {name: _memory(found, BARS[name]) for name, found in samples.items()}
    title = f"Memory at full load, {database}, {open_:,} open at the start"
    rows = [(name, *msgspec.structs.astuple(each)) for name, each in measured.items()]
    columns = ("MiB", "peak", "first half", "second half", "bar")
    harness.tell(title, measured, columns, rows, notes=notes, as_json=as_json)
    raise typer.Exit(int(any(each.peak_mib > each.bar_mib for each in measured.values())))


class _Process(msgspec.Struct, frozen=True):
    parent: int
    mib: float


def _processes() -> dict[int, _Process]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,rss="], check=True, capture_output=True, text=True).stdout
    rows = (map(int, line.split()) for line in listed.splitlines())
    return {pid: _Process(parent, kib / 1024) for pid, parent, kib in rows}


def _memory(samples: Sequence[float], bar: float) -> Memory:
    if len(samples) < 2:
        raise SystemExit("too short, or a process has ended: there is no memory to read")
    half = len(samples) // 2
    first, second = (round(statistics.median(part), 1) for part in (samples[:half], samples[half:]))
    return Memory(round(max(samples), 1), first, second, bar)


if __name__ == "__main__":
    harness.start(main)
