"""`inbox prune`: deletes expired rows by hand, as relays do by themselves."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn

from inbox.clock import SystemClock
from inbox.config.model import RetentionKind
from relay.cli.options import AsJson, database_of, load_config, login_name, require_known
from relay.cli.tables import Column, Format, show
from relay.cli.terminal import FINDING, Doing, answer, as_document, bar, exit_on_error, fail, put_json, say
from relay.words import counted

if TYPE_CHECKING:
    from inbox.config.model import Retention
    from relay.store.database import Database
    from relay.store.retention import KindPlan

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
    as_json: AsJson = False,
) -> None:
    """Delete what is older than [retention] says, as relays do by themselves. Shows the plan, then asks.

    The plan looks at the first 10,000 rows of each kind. Ctrl-C ends it; what was deleted until then stays deleted. Exits 1 when
    somebody else prunes at the moment, when it was stopped, or when a row could not be deleted.

    Examples:
      inbox prune --dry-run
      inbox prune --kind payloads --kind rejected --yes
      inbox prune --yes --json
    """
    from relay.store.retention import STEPS

    for name in kinds or ():
        require_known("kind of [retention]", name, STEPS)
    with exit_on_error():
        config = load_config()
        database = database_of(config)
        plans = [each for each in _plans(database, config.retention) if not kinds or each.kind in kinds]
        if not as_json:
            shown = [{**msgspec.structs.asdict(each), "rows": rows_in(each)} for each in plans]
            show(shown, COLUMNS, _PLAN, empty="nothing expires")
        is_agreed = not dry_run and (yes or _asks(plans, as_json=as_json))
        done = _prune(database, plans) if is_agreed else []
    if as_json:
        put_json(
            as_document(
                {
                    "plan": [msgspec.structs.asdict(each) for each in plans],
                    "pruned": [msgspec.structs.asdict(each) for each in done],
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


def _plans(database: Database, retention: Retention) -> list[KindPlan]:
    from relay.store.retention import plan

    with database.read() as transaction:
        now = transaction.now()
        differ = abs(now - SystemClock().now())
        if differ > MOST_CLOCKS_DIFFER:
            fail(
                f"the clocks of this machine and of the database differ by {differ.total_seconds():.0f} s: set the wrong"
                " one right first, since ages count from the database's"
            )
        return plan(transaction, retention, now)


def _asks(plans: Sequence[KindPlan], *, as_json: bool) -> bool:
    """Ask at a terminal; elsewhere say how to do it."""
    if not any(each.rows for each in plans):
        say("nothing has expired")
        return False
    if as_json or not sys.stdin.isatty():
        say("--yes deletes these rows for good")
        return False
    return typer.confirm("Delete these rows for good?", err=True)


def _prune(database: Database, plans: Sequence[KindPlan]) -> list[Done]:
    """Prune with a bar. After an interruption the same command goes on with the rest."""
    from relay.store.retention import LeasedPruner, Pruned

    pruner = LeasedPruner(database, f"{login_name()} at {socket.gethostname()}, process {os.getpid()}")
    if pruner.take() is None:
        say(f"{_somebody(database)} prunes at the moment, and deletes the same rows; try again later")
        raise typer.Exit(FINDING)
    done = [Done(each.kind, errors=[]) for each in plans]
    try:
        with bar(Doing("pruning "), BarColumn(), MofNCompleteColumn()) as progress:
            for each, mine in zip(plans, done, strict=True):
                task = progress.add_task(each.kind, total=each.rows)
                pruned: Pruned | None = Pruned(is_done=False)
                while pruned is not None and not pruned.is_done:
                    if (pruned := pruner.batch(each.kind, each.before)) is not None:
                        mine.rows += pruned.rows
                        mine.passed_over += pruned.passed_over
                        mine.errors += [pruned.error] if pruned.error else []
                        progress.update(task, completed=mine.rows, total=max(mine.rows, each.rows))
                if pruned is None:  # this process has slept, or a batch took long
                    say(f"{_somebody(database)} has taken over after {_rows_of(done)}, and deletes the rest")
                    raise typer.Exit(FINDING)
    except KeyboardInterrupt:
        say(f"stopped after {_rows_of(done)}, which stay deleted; the same command goes on with the rest")
        raise typer.Exit(FINDING) from None
    finally:
        pruner.give_back()
    return done


def _rows_of(done: Sequence[Done]) -> str:
    return counted(sum(each.rows for each in done), "row")


def _somebody(database: Database) -> str:
    """Name the holder of the lease: a relay by its host and process."""
    from sqlalchemy import select

    from inbox.db.schema import pruner, relay_node

    with database.read() as transaction:
        name = transaction.connection.execute(select(pruner.c.held_by)).scalar()
        node = transaction.connection.execute(select(relay_node).where(relay_node.c.id == name)).first()
    return (name or "somebody else") if node is None else f"the relay on {node.host}, process {node.pid},"


def _report(done: Sequence[Done]) -> None:
    for each in done:
        if each.rows:
            answer(f"{each.kind}: {counted(each.rows, 'row')} deleted")
        for error in each.errors:
            say(f"{each.kind}: could not delete {error}")
    if not any(each.rows for each in done):
        answer("nothing had expired")
