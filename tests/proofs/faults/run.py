"""`make faults`: the rig for as long as one likes, with a view of what happens, and counts at the end."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.proofs.faults.fault_actions import DEEDS, do_all
from tests.proofs.faults.load import unwell_now_and_then
from tests.proofs.faults.plan import Amounts, Streams, draw
from tests.proofs.faults.rig import Rig, rig
from tests.proofs.faults.small_disk import can_be_made
from tests.proofs.faults.verdict import Verdict, conclude, told

PER_SECOND = 60.0
MEGABYTES, MEGABYTES_A_MINUTE = 192, 30
LINE_EVERY_SECONDS = 30.0
"""Interval between progress lines, where nobody watches a bar."""

TITLES = {
    "events": "\nreceived",
    "calls": "\ndelivered",
    "abandoned": "\ntaken over",
    "commits cut": "\ndatabase",
    "faults": "\nbroken",
}
"""Title of the table that begins with each count."""


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
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")  # of a library, on machines without a login session
    options = _options()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    folder = Path(tempfile.mkdtemp(prefix="inbox-relay-faults-"))
    again = f"make faults MINUTES={options.minutes:g} SEED={options.seed} DATABASE={options.database}"
    console.print(f"seed {options.seed}; ledgers and logs are in {folder}")
    console.print(f"to have the same schedule again: {again}")
    planned = amounts(options.database, options.minutes)
    streams = draw(options.seed, planned)
    if not planned.full_disks:
        console.print("no small disk can be mounted here for this database, so that it can't be filled", style="yellow")
    console.print("gunicorn, three relays and the database are being started; Ctrl-C ends the faults early")
    with rig(
        folder,
        options.database,
        options.seed,
        streams=streams,
        script=unwell_now_and_then(options.seed),
        per_second=PER_SECOND,
        megabytes=round(MEGABYTES + MEGABYTES_A_MINUTE * options.minutes),
    ) as made:
        undone = _watch(console, made, streams)
        console.print("no more faults: everything has to be delivered now")
        verdict = conclude(made, undone)
        _show(console, made, verdict)
    if verdict.findings:
        return 1
    shutil.rmtree(folder)
    console.print(f"nothing was found; {folder} is gone", style="bold green")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="for how long things are broken")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of an earlier run, to repeat it")
    parser.add_argument("--database", choices=("postgres", "sqlite"), default="postgres")
    return parser.parse_args()


def _watch(console: Console, made: Rig, streams: Streams) -> list[str]:
    """Show what happens until all is done; what could not be done."""
    undone: list[str] = []
    thread = threading.Thread(target=lambda: undone.extend(do_all(made, streams)), name="faults")
    thread.start()
    total = sum(len(faults) for faults in streams.values())
    try:
        if console.is_terminal:
            _bar(console, made, thread, total)
        else:
            _lines(console, made, thread, total)
    except KeyboardInterrupt:
        console.print("interrupted: what was done so far is judged")
        made.stopping.set()
    thread.join()
    return undone


def _bar(console: Console, made: Rig, thread: threading.Thread, total: int) -> None:
    columns = (BarColumn(), TextColumn("{task.completed}/{task.total} faults"), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as progress:
        task = progress.add_task("", total=total)
        while thread.is_alive():
            progress.update(task, completed=_done(made), description=_state(made))
            thread.join(0.2)


def _lines(console: Console, made: Rig, thread: threading.Thread, total: int) -> None:
    began = time.monotonic()
    while thread.is_alive():
        console.print(f"{time.monotonic() - began:5.0f} s: {_done(made)}/{total} faults, {_state(made)}")
        thread.join(LINE_EVERY_SECONDS)


def _done(made: Rig) -> int:
    cuts = 0 if made.store.proxy is None else len(made.store.proxy.cuts)
    return cuts + sum(line["kind"] in DEEDS for line in made.faults.lines())


def _state(made: Rig) -> str:
    last = made.faults.lines()[-1]["kind"]
    sent, called = made.sender.acknowledged(), len(made.downstream.arrivals)
    last = "nothing yet" if last == "clock" else last
    return f"{sent} acknowledged, {made.sender.refused()} refused, {called} calls; last: {last}"


def _show(console: Console, made: Rig, verdict: Verdict) -> None:
    tables: dict[str, dict[str, Any]] = {}
    title = ""
    for name, count in verdict.counts.items():
        title = TITLES.get(name, title)
        tables.setdefault(title, {}).update(count if isinstance(count, dict) else {name: count})
    for title, counts in tables.items():
        console.print(_table(title, counts))
    if verdict.findings:
        console.print(told(made, verdict), style="bold red", markup=False)


def _table(title: str, counts: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title, min_width=40)
    table.add_column("", justify="right", min_width=8)
    for name, value in counts.items():
        table.add_row(name, "-" if value is None else f"{value:,}")
    return table


if __name__ == "__main__":
    sys.exit(main())
