"""`inbox readmit`: readmits rejected requests after a fix."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from inbox.events.commands import says_why
from relay.cli.options import (
    MOST_NUMBER,
    AsJson,
    RejectedCause,
    RejectedError,
    RejectedSource,
    RejectedStatus,
    Since,
    Until,
    login_name,
    open_engine,
)
from relay.cli.tables import Column, Format, show
from relay.cli.terminal import FINDING, Doing, answer, bar, exit_on_error, fail, say
from relay.words import counted

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from inbox.db.reads import Row
    from inbox.sources.normalize import ReadmitResult

_PLAN = Format(has_wide=False)
GROUPS = (
    Column("source"),
    Column("cause"),
    Column("readable", "number", "would be readmitted"),
    Column("rejected", "number", "still rejected"),
)
SAMPLE = (
    Column("id", "number"),
    Column("becomes", last=True),
    Column("source"),
    Column("cause"),
    Column("received_at", "time", "received"),
)

_SAMPLE = 5


def readmit_command(
    *,
    reason: Annotated[
        str | None, typer.Option(help="Why; it is kept with the rejected request. Needed with --yes.")
    ] = None,
    number: Annotated[int | None, typer.Option("--id", min=0, max=MOST_NUMBER, help="This one.")] = None,
    source: RejectedSource = None,
    cause: RejectedCause = None,
    status: RejectedStatus = None,
    error: RejectedError = None,
    since: Since = None,
    until: Until = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it only the plan is shown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Readmit rejected requests, read by the present configuration. Shows the plan; --yes does it.

    Only requests of authenticated senders were kept whole, and only those can be readmitted. One that was sent again
    meanwhile is a duplicate. Exits 1 when some are still rejected, or when there is none to readmit.

    Examples:
      inbox readmit --source trivore --reason "dedup names the right fields now"
      inbox readmit --cause invalid_event --since 2026-01-01 --reason "the preset is fixed" --yes
      inbox readmit --id 7 --reason "tried by hand" --yes --json
    """
    from inbox.db import readmission
    from inbox.loader.load import read_config
    from inbox.sources.normalize import read_one, readers_of
    from relay.filters import unknown

    selected = readmission.RejectedFilter(
        id=number, source=source, cause=cause, status=status, error=error, since=since, until=until
    )
    if yes and not says_why(reason):
        fail("say why with --reason: it is kept with the rejected request")
    with exit_on_error():
        config = read_config()
        readers = readers_of(config)
        with open_engine(config) as database:
            for _, sentence in unknown("rejected", {"source": source, "cause": cause}, config, database):
                fail(sentence)
            total = readmission.count(database, selected)
            found = readmission.pages(database, selected)
            pages = ([read_one(readers, row) for row in rows] for rows in found)
            lines = _do(database, pages, total, reason) if yes and reason and total else _look(pages, total)
    if as_json:
        show(lines, GROUPS, Format("json"), empty="")
    else:
        _report(lines, yes=yes, has_reason=says_why(reason))
    if any(line["rejected"] for line in lines) or not lines:
        raise typer.Exit(FINDING)


def _look(pages: Iterator[list[ReadmitResult]], total: int) -> list[Row]:
    lines: list[Row] = []
    with _bar() as progress:
        task = progress.add_task("reading", total=total)
        for page in pages:
            lines += map(_line, page)
            progress.update(task, completed=len(lines))
    return lines


def _do(database: Engine, pages: Iterator[list[ReadmitResult]], total: int, reason: str) -> list[Row]:
    """Readmit them, with a bar. After an interrupt or a database failure, a second call does the rest."""
    from sqlalchemy.exc import DBAPIError

    from inbox.db.dialect import error_text

    lines: list[Row] = []
    try:
        with _bar() as progress:
            task = progress.add_task("readmitting", total=total)
            for page in pages:
                _take(database, page, reason)
                lines.extend(map(_line, page))
                progress.update(task, completed=len(lines))
    except (KeyboardInterrupt, DBAPIError) as error:
        why = error_text(error) if isinstance(error, DBAPIError) else "interrupted"
        say(f"stopped after {len(lines)} of {total}: {why}; the same command goes on with the rest")
        raise typer.Exit(FINDING) from None
    return lines


def _take(database: Engine, page: Sequence[ReadmitResult], reason: str) -> None:
    """Readmit those of a page that can be read, and note the receipts of each, or why the database rejects it."""
    from inbox.db import readmission
    from inbox.db.dialect import Sql, error_text

    readable = [(each.id, each.events) for each in page if each.rejected is None]
    with database.begin() as connection:
        taken = readmission.take(connection, readable, by=login_name(), reason=reason)
    time.sleep(Sql(database.dialect.name).pause_after_write)
    for each in page:
        each.receipts = taken.receipts.get(each.id, ())
        if each.id in taken.failed:
            each.rejected = error_text(taken.failed[each.id])


def _line(again: ReadmitResult) -> Row:
    """Return the line of a request without its body, so that any number of lines fits into memory."""
    events: list[Row] = [
        {
            "entity_type": event.entity_type,
            "entity_id": event.entity_id,
            "event_type": event.event_type,
            "occurred_at": event.occurred_at,
            "routes": [enrolment.route for enrolment in event.enrolments],
        }
        for event in again.events
    ]
    for event, receipt in zip(events, again.receipts, strict=False):
        event |= {"status": receipt.status, "seq": receipt.seq}
    return {
        "id": again.id,
        "received_at": again.received_at,
        "source": again.source,
        "cause": again.cause,
        "events": events,
        "rejected": again.rejected,
    }


def _report(lines: Sequence[Row], *, yes: bool, has_reason: bool) -> None:
    """Show the counts of each source and cause, and some requests of both kinds."""
    if not lines:
        say("nothing to readmit")
        return
    counts = Counter((line["source"], line["cause"], line["rejected"] is None) for line in lines)
    groups = sorted({(source, cause) for source, cause, _ in counts})
    table = [
        {"source": s, "cause": c, "readable": counts[s, c, True], "rejected": counts[s, c, False]} for s, c in groups
    ]
    show(
        table,
        [
            msgspec.structs.replace(each, heading="readmitted") if yes and each.name == "readable" else each
            for each in GROUPS
        ],
        _PLAN,
        empty="",
    )
    answer("")
    sample = [
        {**line, "becomes": _becomes(line)} for line in sorted(lines, key=lambda a: a["rejected"] is None)[:_SAMPLE]
    ]
    show(sample, SAMPLE, _PLAN, empty="")
    if not yes:
        more = f", {_SAMPLE} of them shown" if len(lines) > _SAMPLE else ""
        needed = "" if has_reason else "--reason '…' "
        say(f"{counted(len(lines), 'request')}{more}; {needed}--yes readmits those that can be read now")


def _becomes(line: Row) -> str:
    if line["rejected"] is not None:
        return f"still rejected: {line['rejected']}"
    first, more = line["events"][0], len(line["events"]) - 1
    entity = "" if first["entity_type"] is None else f" {first['entity_type']}/{first['entity_id']}"
    taken = f"{first['status']} as seq {first['seq']}: " if "seq" in first else ""
    routes = ", ".join(first["routes"]) or "no route"
    return f"{taken}{first['event_type']}{entity} → {routes}" + (f", and {more} more" if more else "")


def _bar() -> AbstractContextManager[Progress]:
    return bar(Doing(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
