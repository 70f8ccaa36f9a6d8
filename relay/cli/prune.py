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

from inbox.clock import SystemClock
from inbox.config.model import RetentionKind
from relay.cli.options import AsJson, login_name, open_engine, require_known
from relay.cli.tables import Column, Format, show
from relay.cli.terminal import FINDING, Doing, answer, as_document, bar, exit_on_error, fail, put_json, say
from relay.words import byte_count, counted

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from inbox.config.model import Retention
    from inbox.db.engine import Checkpoints
    from inbox.db.retention import KindPlan

COLUMNS = (
    Column("kind"),
    Column("age"),
    Column("rows", "text", "rows to go"),
    Column("oldest", "time"),
    Column("before", "time", "older than"),
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

    The plan looks at the first 10,000 rows of each kind. Ctrl-C ends it; what was deleted until then stays deleted. Exits 1 when
    somebody else prunes at the moment, when it was stopped, or when a row could not be deleted.

    Examples:
      inbox prune --dry-run
      inbox prune --kind payloads --kind rejected --yes
      inbox prune --yes --vacuum --json
    """
    from inbox.db.retention import STEPS
    from inbox.loader.load import read_config

    for name in kinds or ():
        require_known("kind of [retention]", name, STEPS)
    wanted: list[RetentionKind] = [kind for kind in STEPS if not kinds or kind in kinds]
    with exit_on_error():
        config = read_config()
        with open_engine(config) as database:
            plans = [each for each in _plans(database, config.retention) if each.kind in wanted]
            if not as_json:
                shown = [{**msgspec.structs.asdict(each), "rows": rows_in(each)} for each in plans]
                show(shown, COLUMNS, _PLAN, empty="nothing expires")
            is_agreed = not dry_run and (yes or _asks(plans, as_json=as_json))
            done = _prune(database, plans) if is_agreed else []
            sizes = _vacuum(database, wanted) if vacuum and is_agreed else None
    if as_json:
        put_json(
            as_document(
                {
                    "plan": [msgspec.structs.asdict(each) for each in plans],
                    "pruned": [msgspec.structs.asdict(each) for each in done],
                    "vacuum": sizes,
                }
            )
        )
    elif is_agreed:
        _report(done)
    if any(each.errors for each in done):
        raise typer.Exit(FINDING)


def rows_in(plan: KindPlan) -> str:
    """Return the rows of a plan for a person."""
    return f"{plan.rows:,}" if plan.are_all else f"{plan.rows:,} or more"


def _plans(database: Engine, retention: Retention) -> list[KindPlan]:
    from inbox.db.engine import reading
    from inbox.db.pruning import database_time
    from inbox.db.retention import plan

    with database.connect() as connection, reading(connection).begin():
        now = database_time(connection)
        differ = abs(now - SystemClock().now())
        if differ > MOST_CLOCKS_DIFFER:
            fail(
                f"the clocks of this machine and of the database differ by {differ.total_seconds():.0f} s: set the wrong"
                " one right first, since ages count from the database's"
            )
        return plan(connection, retention, now)


def _asks(plans: Sequence[KindPlan], *, as_json: bool) -> bool:
    """Ask at a terminal; elsewhere say how to do it."""
    if not any(each.rows for each in plans):
        say("nothing has expired")
        return False
    if as_json or not sys.stdin.isatty():
        say("--yes deletes these rows for good")
        return False
    return typer.confirm("Delete these rows for good?", err=True)


def _prune(database: Engine, plans: Sequence[KindPlan]) -> list[Done]:
    """Prune with a bar. After an interruption the same command goes on with the rest."""
    from inbox.db.engine import Checkpoints
    from inbox.db.pruning import LeasedPruner, LeaseLost
    from inbox.db.retention import STEPS, Pruned

    holder, checkpoints = f"{login_name()} at {socket.gethostname()}, process {os.getpid()}", Checkpoints()
    pruner = LeasedPruner(lambda rows: _begin(database, rows, checkpoints), holder)
    turn = pruner.take()
    if turn is None:
        say(f"{_somebody(database)} prunes at the moment, and deletes the same rows; try again later")
        raise typer.Exit(FINDING)
    done = [Done(each.kind, errors=[]) for each in plans]
    is_whole = False
    try:
        with bar(Doing("pruning "), BarColumn(), MofNCompleteColumn()) as progress:
            for each, mine in zip(plans, done, strict=True):
                task = progress.add_task(each.kind, total=each.rows)
                for event in pruner.batches(each.kind, each.before, seconds=float("inf")):
                    if isinstance(event, Pruned):
                        mine.rows += event.rows
                        mine.bytes += event.bytes
                        mine.passed_over += event.passed_over
                    else:
                        mine.passed_over += 1
                        mine.errors.append(f"{event.key}: {event.error}")
                    progress.update(task, completed=mine.rows, total=max(mine.rows, each.rows))
        is_whole = {each.kind for each in plans} == set(STEPS)
    except KeyboardInterrupt:
        gone = counted(sum(each.rows for each in done), "row")
        say(f"stopped after {gone}, which stay deleted; the same command goes on with the rest")
        raise typer.Exit(FINDING) from None
    except LeaseLost:  # this process has slept, or a batch took long
        gone = counted(sum(each.rows for each in done), "row")
        say(f"{_somebody(database)} has taken over after {gone}, and deletes the rest")
        raise typer.Exit(FINDING) from None
    finally:
        pruner.give_back(turn.now if is_whole else None)
    return done


@contextmanager
def _begin(database: Engine, rows: int, checkpoints: Checkpoints) -> Iterator[Connection]:
    """Begin a transaction; on SQLite the write-ahead log is copied back from time to time."""
    from inbox.db.dialect import Sql
    from inbox.db.engine import checkpoint

    with database.begin() as connection:
        yield connection
    if Sql(database.dialect.name).needs_checkpoints and checkpoints.due(rows):
        checkpoints.made(complete=checkpoint(database))


def _somebody(database: Engine) -> str:
    """Name the holder of the lease: a relay by its host and process."""
    from sqlalchemy import select

    from inbox.db.pruning import holder
    from inbox.db.schema import relay_node

    with database.connect() as connection:
        name = holder(connection)
        node = connection.execute(select(relay_node).where(relay_node.c.id == name)).first()
    return (name or "somebody else") if node is None else f"the relay on {node.host}, process {node.pid},"


def _vacuum(database: Engine, kinds: Sequence[RetentionKind]) -> dict[str, int]:
    from inbox.db.dialect import Sql
    from inbox.db.pruning import vacuum
    from inbox.db.retention import tables_of

    if Sql(database.dialect.name).is_postgres:
        say("vacuuming; receivers and relays go on meanwhile")
    else:
        say("vacuuming: the file is written anew, which takes as much disk again, and nobody can write meanwhile")
    before, after = vacuum(database, tables_of(kinds))
    say(f"the database has {byte_count(after)}, after {byte_count(before)}")
    return {"bytes_before": before, "bytes_after": after}


def _report(done: Sequence[Done]) -> None:
    for each in done:
        if each.rows:
            answer(f"{each.kind}: {counted(each.rows, 'row')} deleted, {byte_count(each.bytes)}")
        for error in each.errors:
            say(f"{each.kind}: could not delete {error}")
    if not any(each.rows for each in done):
        answer("nothing had expired")
