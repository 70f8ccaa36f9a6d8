"""`inbox copy`: moves a whole installation into another database, and compares both ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from relay.cli.options import AsJson
from relay.cli.tables import Column, Format, show
from relay.cli.terminal import FINDING, Doing, Speed, answer, as_document, bar, exit_on_error, fail, put_json, say
from relay.words import counted, lasting

if TYPE_CHECKING:
    from inbox.config.model import Config
    from inbox.db.copying import CopiedTable, Report

_PLANNED = (Column("table"), Column("rows", "number"))
_COPIED = (*_PLANNED, Column("hash", on_request=True))
_TABLE = Format(has_wide=False)
_MOST_SHOWN = 20


class _Ends(msgspec.Struct, frozen=True):
    """Both databases of a copy, with the names that messages give them."""

    source: Any
    target: Any
    named: dict[str, str]
    config: Config
    """The configuration, with the target as its database."""


def copy_command(
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="URL",
            help="The other database, as `url` of \\[database]: postgresql+psycopg://…, sqlite:///…, env:NAME or file:/path.",
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it only the plan is shown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move the whole installation into another, empty database. Shows the plan; --yes does it.

    Stop receivers and relays first: nothing may write to the source meanwhile. The target gets its tables, every row of
    each, and the place where their numbers go on. Then both ends are compared. All of it is one transaction: after an
    interrupt or a failure, the target is empty, and the same command begins again. The source stays as it is.

    Exits with 1 when a row can't be copied, or when it was interrupted.

    Examples:
      inbox copy --to postgresql+psycopg://inbox@localhost/inbox
      inbox copy --to env:NEW_DATABASE_URL --json
      inbox copy --to env:NEW_DATABASE_URL --yes
    """
    from inbox.db import copying
    from inbox.errors import CopyFailed

    with exit_on_error(), _opened(to) as ends:
        planned, running = copying.plan(ends.source, ends.target), copying.running_programs(ends.source)
        if not yes:
            _show_plan(ends, planned, running, as_json=as_json)
            return
        if running:
            fail(f"the source is in use: stop {_together(running)}, then run it again")
        began = time.monotonic()
        try:
            with _reporting(planned) as report:
                tables = copying.copy(ends.source, ends.target, report)
        except CopyFailed as error:
            say(f"stopped, and the target is empty: {error}")
            raise typer.Exit(FINDING) from None
        except KeyboardInterrupt:
            say("interrupted, and the target is empty; the same command begins again")
            raise typer.Exit(FINDING) from None
        with _reporting(planned) as report:
            verdict = _verified(ends, report)
        _show_result(ends, tables, verdict, time.monotonic() - began, as_json=as_json)


@contextmanager
def _opened(to: str) -> Iterator[_Ends]:
    """Open both databases. The schema of the source must be one that this version works with."""
    from inbox.db import engine, migrate
    from inbox.loader.load import read_config, revealed_url

    config = read_config()
    url, other = config.database.url, revealed_url(to, "--to", os.environ)
    names = [engine.shown(engine.parse_url(each)) for each in (url, other)]
    if names[0] == names[1]:
        fail("--to names the database of the configuration itself: name another one")
    source, target = (engine.connect(each, application="inbox-copy") for each in (url, other))
    try:
        migrate.require_current(source)
        moved = msgspec.structs.replace(config, database=msgspec.structs.replace(config.database, url=other))
        yield _Ends(source, target, {"source": names[0], "target": names[1]}, moved)
    finally:
        source.dispose()
        target.dispose()


def _verified(ends: _Ends, report: Report) -> dict[str, int]:
    """Compare the state in the target with its log, as `relay verify` does, and count what was compared."""
    from relay.store.audit import verify
    from relay.store.database import Database

    counts = dict.fromkeys(("events", "deliveries", "facts", "differences"), 0)
    for chunk in verify(Database(ends.target), ends.config):
        found = (chunk.events, chunk.deliveries, chunk.facts, len(chunk.differences))
        counts = {name: counts[name] + more for name, more in zip(counts, found, strict=True)}
        report("verifying", "seq", chunk.upto)
    return counts


@contextmanager
def _reporting(planned: dict[str, int]) -> Iterator[Report]:
    """Show a bar for the table in work."""
    with bar(Doing(), BarColumn(), MofNCompleteColumn(), Speed("rows"), TimeRemainingColumn()) as progress:
        task, shown = progress.add_task("", total=None), ""

        def report(step: str, table: str, done: int) -> None:
            nonlocal task, shown
            if (doing := f"{step} {table}") != shown:
                progress.remove_task(task)
                task, shown = progress.add_task(doing, total=planned.get(table)), doing
            progress.update(task, completed=done)

        yield report


def _show_plan(ends: _Ends, planned: dict[str, int], running: Sequence[str], *, as_json: bool) -> None:
    lines = [{"table": table, "rows": rows} for table, rows in planned.items()]
    if as_json:
        put_json(as_document({**ends.named, "running": list(running), "tables": lines}))
        return
    show(lines, _PLANNED, _TABLE, empty="")
    answer(f"from {ends.named['source']} to {ends.named['target']}")
    if running:
        say(f"before it, stop {_together(running)}")
    say(f"{counted(sum(planned.values()), 'row')}; --yes copies them")


def _show_result(
    ends: _Ends, tables: Sequence[CopiedTable], verdict: Mapping[str, int], seconds: float, *, as_json: bool
) -> None:
    rows, found = sum(table.rows for table in tables), msgspec.to_builtins(tables)
    if as_json:
        whole = {**ends.named, "seconds": round(seconds, 3), "rows": rows, "tables": found}
        put_json(as_document({**whole, "verify": verdict}))
        return
    show(found, _COPIED, _TABLE, empty="")
    answer(f"copied and compared {counted(rows, 'row')} in {lasting(seconds)}: both ends are equal")
    if verdict["differences"]:
        differences = counted(verdict["differences"], "difference")
        say(
            f"state and log have {differences}, as in the source: `relay verify` shows them, `relay rebuild` repairs them"
        )
    else:
        answer(f"state and log of it agree: {counted(verdict['events'], 'event')}, {counted(verdict['facts'], 'fact')}")
    say(
        "next: put its url into [database] url (or INBOX_DATABASE_URL), then start receivers and relays. Start nothing on the"
        " source again: what it takes would not be in the copy"
    )


def _together(running: Sequence[str]) -> str:
    return ", ".join(f"the {each}" for each in running[:_MOST_SHOWN])
