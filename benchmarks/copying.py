"""`inbox copy` of a filled installation: rows a second, copied and compared, and the memory that it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.support import Kind, configured, databases, machine
from benchmarks.verify import fill

BAR_MIB = 150


def main(
    *,
    source: Annotated[Kind, typer.Option(help="From which database.")] = Kind.SQLITE,
    target: Annotated[Kind, typer.Option(help="Into which one.")] = Kind.POSTGRES,
    events: Annotated[
        int, typer.Option(min=1000, max=10_000_000, help="Events; each has about three rows.")
    ] = 1_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure `inbox copy` as a process of its own: copying, comparing, and verifying."""
    with databases(source) as (from_url,), databases(target) as (to_url,), configured(from_url) as environment:
        fill(from_url, events)
        command = [sys.executable, "-c", "from relay.cli.inbox import main; main()", "copy", "--to", "env:THERE"]
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [*command, "--yes", "--json"], stdout=output, env={**environment, "THERE": to_url}
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            copied = json.loads(output.read() or "{}")
    if process.returncode != 0:
        raise SystemExit(f"inbox copy ended with {process.returncode}")
    scale = 1024 if sys.platform == "linux" else 1024 * 1024  # getrusage(2): kilobytes on Linux, bytes elsewhere
    figures = {
        "events": events,
        "rows": copied["rows"],
        "seconds": copied["seconds"],
        "rows_per_second": round(copied["rows"] / copied["seconds"]),
        "peak_mib": round(usage.ru_maxrss / scale),
        "bar_mib": BAR_MIB,
        **machine(),
    }
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    Console().print(f"{source} to {target}:", ", ".join(f"{name} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
