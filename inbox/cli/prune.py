"""`inbox prune`: deletes expired rows by hand, as relays do by themselves."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn

from inbox.cli.login import login_name
from inbox.cli.options import AsJson, open_database, require_known
from inbox.cli.tables import Column, Format, show
from inbox.cli.terminal import FINDING, Doing, answer, as_document, bar, exit_on_error, fail, put_json, say
from inbox.cli.wording import byte_count, counted
from inbox.clock import SystemClock
from inbox.config.retention import RetentionKind

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from inbox.config.retention import Retention
    from inbox.db.retention.plan import KindPlan
    from inbox.db.retention.rounds import Begin, LeasedPruner

COLUMNS = (
    Column("kind"),
    Column("age"),
    Column("rows", "text", "rows to go"),
    Column("size", "text", "about"),
    Column("oldest", "time"),
    Column("before", "time", "older than"),
    Column("most", "text", "keeps at most"),
)
_PLAN = Format(has_wide=False)
MOST_CLOCKS_DIFFER = timedelta(hours=1)
"""A larger difference between the clocks of this machine and of the database means that one is wrong."""


class Done(msgspec.Struct):
    """Rows that were deleted of a kind."""

    kind: RetentionKind
    rows: int = 0
    bytes: int = 0
    passed_over: int = 0
    errors: list[str] = []


def prune_command(
    *,
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", help="Only this kind, a key of \\[retention]; may be given repeatedly."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and delete nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    vacuum: Annotated[
        bool, typer.Option("--vacuum", help="Then give the space back: VACUUM. On SQLite nobody can write meanwhile.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what is older than [retention] says, as relays do by themselves. Shows the plan, then asks.

    Numbers above 10,000 are estimates. Ctrl-C ends it; what was deleted until then stays deleted. Exits 1 when somebody
    else prunes at the moment, when it was stopped, or when a row could not be deleted.

    Examples:
      inbox prune --dry-run
      inbox prune --kind payloads --kind rejected --yes
      inbox prune --yes --vacuum --json
    """
    from inbox.db.retention.kinds import STEPS
    from inbox.loader.load import read_config

    for name in kinds or ():
        require_known("kind of [retention]", name, STEPS)
    wanted: list[RetentionKind] = [kind for kind in STEPS if not kinds or kind in kinds]
    with exit_on_error():
        config = read_config()
        with open_database(config) as database:
            plans = [each for each in _plans(database, config.retention) if each.kind in wanted]
            if not as_json:
                _show(plans)
            is_agreed = not dry_run and (yes or _asks(plans, as_json=as_json))
            done = _prune(database, plans) if is_agreed else []
            sizes = _vacuum(database, wanted) if vacuum and is_agreed else None
    if as_json:
        put_json(
            as_document(
                {
                    "plan": plans_as_rows(plans),
                    "pruned": [msgspec.structs.asdict(each) for each in done],
                    "vacuum": sizes,
                }
            )
        )
    elif is_agreed:
        _report(done)
    if any(each.errors for each in done):
        raise typer.Exit(FINDING)


def plans_as_rows(plans: Sequence[KindPlan]) -> list[dict[str, object]]:
    """Return the plans as objects with every field."""
    return [msgspec.structs.asdict(each) for each in plans]


def _plans(database: Engine, retention: Retention) -> list[KindPlan]:
    from inbox.db.engine import reading
    from inbox.db.retention.plan import database_time, plan

    with database.connect() as connection, reading(connection).begin():
        now = database_time(connection)
        differ = abs(now - SystemClock().now())
        if differ > MOST_CLOCKS_DIFFER:
            fail(
                f"the clocks of this machine and of the database differ by {differ.total_seconds():.0f} s: set the wrong"
                " one right first, since ages count from the database's"
            )
        return plan(connection, retention, now)


def _show(plans: Sequence[KindPlan]) -> None:
    rows = [
        {
            **msgspec.structs.asdict(each),
            "rows": f"{'about ' if each.is_estimate else ''}{each.rows:,}",
            "size": byte_count(each.bytes),
            "most": None if each.most is None else f"{each.most:,}",
        }
        for each in plans
    ]
    show(rows, COLUMNS, _PLAN, empty="nothing expires")


def _asks(plans: Sequence[KindPlan], *, as_json: bool) -> bool:
    """Ask at a terminal; elsewhere say how to do it."""
    rows = sum(each.rows for each in plans)
    if not rows:
        say("nothing has expired")
        return False
    if as_json or not sys.stdin.isatty():
        say("--yes deletes these rows for good")
        return False
    return typer.confirm(f"Delete about {counted(rows, 'row')} for good?", err=True)


def _prune(database: Engine, plans: Sequence[KindPlan]) -> list[Done]:
    """Prune with a bar. After an interruption the same command goes on with the rest."""
    from inbox.db.retention.kinds import STEPS
    from inbox.db.retention.rounds import LeasedPruner, LeaseLost

    holder = f"{login_name()} at {socket.gethostname()}, process {os.getpid()}"
    pruner = LeasedPruner(_begin(database), holder)
    turn = pruner.take()
    if turn is None:
        say(f"{_somebody(database)} prunes at the moment, and deletes the same rows; try again later")
        raise typer.Exit(FINDING)
    done: list[Done] = []
    is_whole = False
    try:
        with bar(Doing("pruning "), BarColumn(), MofNCompleteColumn()) as progress:
            for each in plans:
                task = progress.add_task(each.kind, total=each.rows)
                mine = Done(each.kind, errors=[])
                done.append(mine)
                for rows in _batches(pruner, each, mine):
                    progress.update(task, completed=rows, total=max(rows, each.rows))
        is_whole = {each.kind for each in plans} == set(STEPS)
    except KeyboardInterrupt:
        gone = sum(each.rows for each in done)
        say(f"stopped after {counted(gone, 'row')}, which stay deleted; the same command goes on with the rest")
        raise typer.Exit(FINDING) from None
    except LeaseLost:  # this process has slept, or a batch took long
        gone = sum(each.rows for each in done)
        say(f"{_somebody(database)} has taken over after {counted(gone, 'row')}, and deletes the rest")
        raise typer.Exit(FINDING) from None
    finally:
        pruner.give_back(turn.now if is_whole else None)
    return done


def _batches(pruner: LeasedPruner, each: KindPlan, done: Done) -> Iterator[int]:
    """Prune a kind; yields the rows so far."""
    from inbox.db.retention.pruned import Expiry, Pruned

    for event in pruner.batches(each.kind, Expiry(each.before, each.most), seconds=float("inf")):
        if isinstance(event, Pruned):
            done.rows += event.rows
            done.bytes += event.bytes
            done.passed_over += event.passed_over
        else:
            done.passed_over += 1
            done.errors.append(f"{event.key}: {event.error}")
        yield done.rows


def _begin(database: Engine) -> Begin:
    """Return how to begin a transaction; on SQLite the write-ahead log is copied back meanwhile."""
    from inbox.db.checkpoint import Checkpoints, checkpoint
    from inbox.db.dialect import Sql

    checkpoints = Checkpoints() if Sql(database.dialect.name).needs_checkpoints else None

    @contextmanager
    def begin(rows: int) -> Iterator[Connection]:
        with database.begin() as connection:
            yield connection
        if checkpoints is not None and checkpoints.due(rows):
            checkpoints.made(complete=checkpoint(database))

    return begin


def _somebody(database: Engine) -> str:
    """Name the holder of the lease: a relay by its host and process."""
    from sqlalchemy import select

    from inbox.db.retention import state
    from inbox.db.schema import relay_node

    with database.connect() as connection:
        found = state.holder(connection)
        if found is None:
            return "somebody else"
        node = connection.execute(select(relay_node).where(relay_node.c.id == found.name)).first()
    return found.name if node is None else f"the relay on {node.host}, process {node.pid},"


def _vacuum(database: Engine, kinds: Sequence[RetentionKind]) -> dict[str, int]:
    from inbox.db.dialect import Sql
    from inbox.db.retention.vacuum import tables_of, vacuum

    if Sql(database.dialect.name).is_postgres:
        say("vacuuming; receivers and relays go on meanwhile")
    else:
        say("vacuuming: the file is written anew, which takes as much disk again, and nobody can write meanwhile")
    done = vacuum(database, tables_of(kinds))
    say(f"the database has {byte_count(done.after)}, after {byte_count(done.before)}")
    return {"bytes_before": done.before, "bytes_after": done.after}


def _report(done: Sequence[Done]) -> None:
    for each in done:
        if each.rows:
            answer(f"{each.kind}: {counted(each.rows, 'row')} deleted, {byte_count(each.bytes)}")
        for error in each.errors:
            say(f"{each.kind}: could not delete {error}")
    if not any(each.rows for each in done):
        answer("nothing had expired")
