"""Effect of a large backlog on the relay.

- `mountain`: deliveries/s in the first seconds of a backlog of a million, against a thousand held open; and the relay's
  peak memory.
- `lane`: deliveries/s of 10,000 lanes beside a lane with 100,000 events behind a failed head, against those without it.
- `fold`: downstream updates for a million updates of a thousand entities on a sync route in `latest`.

All of it runs on 127.0.0.1; the downstream answers at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import harness
from benchmarks.filling import Inbox
from benchmarks.harness import AsJson, Kind, OnDatabase, Rounds, Side
from benchmarks.rows import ROWS

BAR_MIB = 150
HELD_OPEN = 1000


class What(StrEnum):
    """Kind of backlog."""

    MOUNTAIN = "mountain"
    LANE = "lane"
    FOLD = "fold"


def main(
    *,
    what: Annotated[What, typer.Argument(help="Which mountain.")],
    database: OnDatabase = Kind.POSTGRES,
    events: Annotated[int, typer.Option(min=1000, max=5_000_000, help="In the mountain.")] = 1_000_000,
    seconds: Annotated[int, typer.Option(min=2, max=600, help="For so long the mountain is drained.")] = 30,
    rounds: Rounds = 3,
    as_json: AsJson = False,
) -> None:
    """Measure the effect of a large backlog on the relay."""
    with ExitStack() as stack:
        (url,) = stack.enter_context(harness.databases(database))
        server = stack.enter_context(harness.downstream())
        environment = stack.enter_context(harness.configure(url, f"{server}/hook", 16))
        if what is What.FOLD:
            told = fold(Inbox(url), server, environment, events)
            harness.tell(f"{what}, {database}", told, tuple(told), [told.values()], as_json=as_json)
            return
        sides, notes = (
            mountain(Inbox(url), server, environment, events, seconds=seconds, rounds=rounds)
            if what is What.MOUNTAIN
            else lane(Inbox(url), server, environment, rounds)
        )
    harness.report(f"{what}, {database}: deliveries per second", sides, notes, as_json=as_json)


def mountain(
    inbox: Inbox, server: str, environment: Mapping[str, str], events: int, *, seconds: int, rounds: int
) -> tuple[list[Side], dict[str, object]]:
    """Measure the first seconds of a million, and of a thousand held open, in turn."""
    high, low = Side(f"{events} open"), Side(f"{HELD_OPEN} held open", bar=ROWS["mountain"].bar)
    peaks = []
    for _ in range(rounds):
        inbox.empty()
        inbox.add(events, "'u' || n")
        inbox.settle()
        rate, peak = drain_for(server, environment, seconds)
        high.rates.append(rate)
        peaks.append(peak)
        inbox.empty()
        with _arrivals(inbox):
            low.rates.append(drain_for(server, environment, seconds)[0])
    return [high, low], {"peak_mib": peaks, "bar_mib": BAR_MIB, "seconds": seconds}


def lane(
    inbox: Inbox, server: str, environment: Mapping[str, str], rounds: int
) -> tuple[list[Side], dict[str, object]]:
    """Measure 10,000 lanes beside a blocked one, and alone."""
    beside, alone = Side("beside a lane that stands"), Side("alone", bar=ROWS["stopped-lane"].bar)
    for _ in range(rounds):
        for side in (beside, alone):
            inbox.empty()
            if side is beside:
                inbox.add(1, "'stuck'", "dead")
                inbox.add(100_000, "'stuck'", "waiting")
            inbox.add(10_000, "'u' || n")
            inbox.settle()
            harness.seen(server)
            harness.drain(environment)
            side.rates.append(harness.rate(server, 10_000))
    return [beside, alone], {"behind_the_head": 100_000}


def fold(inbox: Inbox, server: str, environment: Mapping[str, str], events: int) -> dict[str, object]:
    """Measure a million updates of a thousand entities on a sync route."""
    path = Path(environment["INBOX_CONFIG"])
    written = path.read_text(encoding="utf-8")
    plain = written[: written.index("[destinations.downstream]")]
    path.write_text(plain + _SYNC.format(server=server), encoding="utf-8")
    inbox.add(events, "'u' || (n % 1000)")
    inbox.settle()
    harness.seen(server)
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "relay", "run", "--drain"], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    found = harness.seen(server)
    return {
        "events": events,
        "entities": 1000,
        "updates_downstream": found.requests,
        "bar": 2000,
        "left_open": inbox.count(),
        "seconds": round(time.monotonic() - began, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "bar_mib": BAR_MIB,
    }


_SYNC = """
[apis.identity]
base_url = "{server}"
allow_http = true
allow_private = true
[destinations.downstream]
kind = "sync"
base_url = "{server}"
allow_http = true
allow_private = true
[routes.everything]
source = "trivore"
destination = "downstream"
[routes.everything.sync]
gone = "skip"
missing = "skip"
fetch = {{ api = "identity", path = "/entities/{{event.entity_id}}" }}
update = {{ path = "/contacts/{{event.entity_id}}", method = "PUT", format = "json" }}
[routes.everything.sync.map]
name = "entity.name"
"""


def drain_for(server: str, environment: Mapping[str, str], seconds: int) -> tuple[float, int]:
    """Run a relay and return the downstream's requests per second, and the relay's peak memory in MiB."""
    harness.seen(server)
    process = subprocess.Popen([sys.executable, "-m", "relay", "run"], env=environment, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    found = harness.seen(server)
    if process.poll() is not None:
        raise SystemExit(f"the relay has ended with {process.returncode}")
    process.send_signal(signal.SIGTERM)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if found.requests < 2:
        raise SystemExit(f"the relay has delivered {found.requests} events in {seconds} s: give it more --seconds")
    return (found.requests - 1) / found.seconds, round(usage.ru_maxrss / 1024)


@contextmanager
def _arrivals(inbox: Inbox) -> Iterator[None]:
    """A thousand open all the time."""
    ended = threading.Event()

    def feed() -> None:
        while not ended.wait(0.02):
            missing = HELD_OPEN - inbox.count()
            if missing > HELD_OPEN // 4:
                inbox.add(missing, "'u' || n")

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    harness.start(main)
