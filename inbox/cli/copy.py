"""`inbox copy`: moves a whole installation into another database, and compares both ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from inbox.cli.options import AsJson
from inbox.cli.tables import Column, Format, show
from inbox.cli.terminal import FINDING, Doing, Speed, answer, as_document, bar, exit_on_error, fail, put_json, say
from inbox.cli.wording import counted, lasting

if TYPE_CHECKING:
    from inbox.check import Verdict
    from inbox.config.model import Config
    from inbox.db.copying.rows import Oddity
    from inbox.db.copying.run import CopyPlan, CopyResult, Report

_PLANNED = (Column("table"), Column("rows", "number"))
_COPIED = (*_PLANNED, Column("copied_again", "number"), Column("sha256", on_request=True))
_TABLE = Format(has_wide=False)
_MOST_SHOWN = 20


class _Ends(msgspec.Struct, frozen=True):
    """Both databases of a copy, with the names that messages give them."""

    source: Any
    target: Any
    source_name: str
    target_name: str
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read every row, list values that can't be copied, and change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it only the plan is shown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move the whole installation into another, empty database. Shows the plan; --yes does it.

    Stop receivers and relays first: nothing may write to the source meanwhile. The target gets its tables, every row of
    each, and the place where their numbers go on. Then both ends are compared row by row. Until all is equal, no program
    works with the target. After an interrupt or a failure, the same command goes on. The source stays as it is.

    Exits with 1 when a row can't be copied, or when it was interrupted.

    Examples:
      inbox copy --to postgresql+psycopg://inbox@localhost/inbox
      inbox copy --to env:NEW_DATABASE_URL --dry-run
      inbox copy --to env:NEW_DATABASE_URL --yes
    """
    from inbox.db.copying.source import running_programs
    from inbox.errors import CopyFailed

    if dry_run and yes:
        fail("--dry-run and --yes exclude each other: choose one")
    with exit_on_error(), _opened(to) as ends:
        planned, running = _plan(ends), running_programs(ends.source)
        if dry_run:
            _check(ends, planned, as_json=as_json)
            return
        if not yes:
            _show_plan(ends, planned, running, as_json=as_json)
            return
        if running:
            fail(f"the source is in use: stop {_together(running)}, then run it again")
        began = time.monotonic()
        try:
            result = _copy(ends, planned)
            verdict = _verified(ends, planned)
        except CopyFailed as error:
            say(f"stopped: {error}")
            raise typer.Exit(FINDING) from None
        except KeyboardInterrupt:
            say("interrupted; the same command goes on where it was")
            raise typer.Exit(FINDING) from None
        _show_result(ends, result, verdict, time.monotonic() - began, as_json=as_json)


@contextmanager
def _opened(to: str) -> Iterator[_Ends]:
    """Open both databases. The schema of the source must be one that this version works with."""
    from inbox.db import engine, migrate
    from inbox.loader.database import revealed_url
    from inbox.loader.load import read_config

    config = read_config()
    url, other = config.database.url, revealed_url(to, "--to", os.environ)
    names = [engine.shown(engine.parse_url(each)) for each in (url, other)]
    if names[0] == names[1]:
        fail("--to names the database of the configuration itself: name another one")
    source, target = (engine.connect(each, application="inbox-copy") for each in (url, other))
    try:
        migrate.require_current(source)
        moved = msgspec.structs.replace(config, database=msgspec.structs.replace(config.database, url=other))
        yield _Ends(source, target, names[0], names[1], moved)
    finally:
        source.dispose()
        target.dispose()


def _plan(ends: _Ends) -> CopyPlan:
    from inbox.db.copying import run

    return run.plan(ends.source, ends.target, ends.source_name)


def _copy(ends: _Ends, planned: CopyPlan) -> CopyResult:
    from inbox.db.copying import run

    with _reporting(planned) as report:
        return run.copy(ends.source, ends.target, ends.source_name, report)


def _verified(ends: _Ends, planned: CopyPlan) -> Verdict | None:
    """Compare the state in the target with its log, as `relay verify` does; None: the relay is not installed."""
    from inbox.check import sides

    with _reporting(planned) as report:
        for side in sides():
            if side.verify is not None:
                return side.verify(ends.config, lambda seq: report("verifying", "seq", seq))
    return None


def _check(ends: _Ends, planned: CopyPlan, *, as_json: bool) -> None:
    """List the values that can't be copied, or only with escapes; exit 1 when there is one of the first."""
    from inbox.db.copying import run

    listed: list[Oddity] = []
    number = left_out = 0
    with _reporting(planned) as report:
        for odd in run.check(ends.source, report):
            number += 1
            left_out += not odd.is_copied
            if len(listed) < run.MOST_LISTED:
                listed.append(odd)
    rows = sum(planned.rows.values())
    if as_json:
        values = [odd._asdict() for odd in listed]
        put_json(as_document({"rows": rows, "odd_values": number, "not_copied": left_out, "values": values}))
    else:
        for odd in listed[:_MOST_SHOWN]:
            answer(str(odd))
        if number > _MOST_SHOWN:
            say(f"{_MOST_SHOWN} of {counted(number, 'value')} shown; --json lists up to {run.MOST_LISTED}")
        verdict = f"{counted(left_out, 'value')} can't be copied" if left_out else "all can be copied"
        answer(f"read {counted(rows, 'row')}: {verdict}")
    if left_out:
        raise typer.Exit(FINDING)


@contextmanager
def _reporting(planned: CopyPlan) -> Iterator[Report]:
    """Show a bar for the table in work."""
    with bar(Doing(), BarColumn(), MofNCompleteColumn(), Speed("rows"), TimeRemainingColumn()) as progress:
        task, shown = progress.add_task("", total=None), ""

        def report(step: str, table: str, done: int) -> None:
            nonlocal task, shown
            if (doing := f"{step} {table}") != shown:
                progress.remove_task(task)
                task, shown = progress.add_task(doing, total=planned.rows.get(table)), doing
            progress.update(task, completed=done)

        yield report


def _show_plan(ends: _Ends, planned: CopyPlan, running: Sequence[str], *, as_json: bool) -> None:
    lines = [{"table": table, "rows": rows} for table, rows in planned.rows.items()]
    if as_json:
        whole = {"source": ends.source_name, "target": ends.target_name, "resumes": planned.resumes}
        put_json(as_document({**whole, "running": list(running), "tables": lines}))
        return
    show(lines, _PLANNED, _TABLE, empty="")
    answer(f"from {ends.source_name} to {ends.target_name}")
    if planned.resumes:
        say("an unfinished copy is there; it goes on where it was")
    if running:
        say(f"before it, stop {_together(running)}")
    say(f"{counted(sum(planned.rows.values()), 'row')}; --yes copies them")


def _show_result(ends: _Ends, result: CopyResult, verdict: Verdict | None, seconds: float, *, as_json: bool) -> None:
    rows = sum(table.rows for table in result.tables)
    if as_json:
        whole = {"source": ends.source_name, "target": ends.target_name, "seconds": round(seconds, 3), "rows": rows}
        verified = None if verdict is None else msgspec.to_builtins(verdict)
        put_json(as_document({**whole, **msgspec.to_builtins(result), "verify": verified}))
        return
    show([msgspec.to_builtins(table) for table in result.tables], _COPIED, _TABLE, empty="")
    for value in result.escaped_values[:_MOST_SHOWN]:
        say(value)
    if result.escaped > _MOST_SHOWN:
        say(f"{_MOST_SHOWN} of {counted(result.escaped, 'escaped value')} shown")
    answer(f"copied and compared {counted(rows, 'row')} in {lasting(seconds)}: both ends are equal")
    if verdict is None:
        say("run `relay verify` on it before relays start")
    elif verdict.differences:
        found = counted(verdict.differences, "difference")
        say(f"state and log have {found}, as in the source: `relay verify` shows them, `relay rebuild` repairs them")
    else:
        answer(f"state and log of it agree: {counted(verdict.events, 'event')}, {counted(verdict.facts, 'fact')}")
    say(
        "next: put its url into [database] url (or INBOX_DATABASE_URL), then start receivers and relays. Start nothing on the"
        " source again: what it takes would not be in the copy"
    )


def _together(running: Sequence[str]) -> str:
    shown = [f"the {each}" for each in running[:_MOST_SHOWN]]
    return ", ".join(shown)
