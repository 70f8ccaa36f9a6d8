"""`make faults`: the rig for as long as one likes, with a view of what happens, and counts at the end."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console

from tests.proofs.faults.fault_actions import DEEDS, do_all
from tests.proofs.faults.load import unwell_now_and_then
from tests.proofs.faults.plan import Amounts, Streams, draw
from tests.proofs.faults.rig import Rig, rig
from tests.proofs.faults.small_disk import can_be_made
from tests.proofs.faults.verdict import conclude, told

PER_SECOND = 60.0
MEGABYTES, MEGABYTES_A_MINUTE = 192, 30
LINE_EVERY_SECONDS = 10.0

say = Console(highlight=False, markup=False, soft_wrap=True).print


def amounts(kind: str, minutes: float) -> Amounts:
    """Return how often each kind of fault happens in so many minutes."""
    times = max(1.0, minutes)
    only_postgres = int(kind == "postgres")
    return Amounts(
        seconds=60 * minutes,
        kills=round(12 * times),
        freezes=round(times),
        replacements=round(2 * times),
        worker_kills=round(3 * times),
        worker_freezes=round(times),
        postgres_kills=round(times) * only_postgres,
        postgres_stops=round(times) * only_postgres,
        backend_kills=round(times) * only_postgres,
        postgres_freezes=-(-round(times) // 2) * only_postgres,
        sqlite_locks=round(times) * (1 - only_postgres),
        full_disks=-(-round(times) // 2) * int(can_be_made(kind)),
        cuts=round(12 * times) * only_postgres,
        verifications=round(2 * times),
    )


def main() -> int:
    """Run; 0 when nothing was found, 1 when something was."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="inbox-relay-faults-"))
    again = f"make faults MINUTES={options.minutes:g} SEED={options.seed} DATABASE={options.database}"
    say(f"the same schedule again: {again}\nledgers and logs are in {folder}")
    planned = amounts(options.database, options.minutes)
    streams = draw(options.seed, planned)
    if not planned.full_disks:
        say("no small disk can be mounted here for this database, so that it can't be filled")
    with rig(
        folder,
        options.database,
        options.seed,
        streams=streams,
        script=unwell_now_and_then(options.seed),
        per_second=PER_SECOND,
        megabytes=round(MEGABYTES + MEGABYTES_A_MINUTE * options.minutes),
    ) as made:
        verdict = conclude(made, _watch(made, streams))
        for name, count in verdict.counts.items():
            say(f"{name}: {count}")
        if verdict.findings:
            say(told(made, verdict))
            return 1
    shutil.rmtree(folder)
    say("nothing was found")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="for how long things are broken")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of an earlier run, to repeat it")
    parser.add_argument("--database", choices=("postgres", "sqlite"), default="postgres")
    return parser.parse_args()


def _watch(made: Rig, streams: Streams) -> list[str]:
    """Show what happens until all is done, or Ctrl-C ends it; what could not be done."""
    undone: list[str] = []
    thread = threading.Thread(target=lambda: undone.extend(do_all(made, streams)), name="faults")
    thread.start()
    total, began = sum(len(faults) for faults in streams.values()), time.monotonic()
    try:
        while thread.is_alive():
            sent, called = made.sender.acknowledged(), len(made.downstream.arrivals)
            done = f"{_done(made)}/{total} faults, {sent} acknowledged, {called} calls"
            say(f"{time.monotonic() - began:5.0f} s: {done}")
            thread.join(LINE_EVERY_SECONDS)
    except KeyboardInterrupt:
        made.stopping.set()
    thread.join()
    return undone


def _done(made: Rig) -> int:
    cuts = 0 if made.store.proxy is None else len(made.store.proxy.cuts)
    return cuts + sum(line["kind"] in DEEDS for line in made.faults.lines())


if __name__ == "__main__":
    sys.exit(main())
