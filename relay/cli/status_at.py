"""`relay status --at`: each route's deliveries at an earlier time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from rich.progress import SpinnerColumn

from inbox.cli.tables import Column, format_of, show
from inbox.cli.terminal import Doing, answer, as_document, bar, exit_on_error, put_json, say
from inbox.cli.wording import counted
from inbox.events.timestamps import rfc3339
from relay.cli.options import open_database

if TYPE_CHECKING:
    from datetime import datetime

    from relay.store.past import Past

COLUMNS = (
    Column("route"),
    Column("open", "number"),
    Column("retrying", "number"),
    Column("blocked", "number"),
    Column("dead", "number"),
    Column("oldest_received_at", "time", "oldest open"),
    Column("unknown", "number", on_request=True),
)


def show_status_at(at: datetime, *, as_json: bool, wide: bool) -> None:
    """Read the counts of that moment, and print them with the limits of what is still known."""
    with exit_on_error():
        past = _read(at)
    if as_json:
        put_json(as_document(msgspec.to_builtins(past, builtin_types=(type(at),))))
        return
    form = format_of(COLUMNS, wide=wide)
    answer(f"at {rfc3339(at, 'seconds')}, by the log; {counted(past.facts_since, 'fact')} since then")
    show([msgspec.structs.asdict(route) for route in past.routes], COLUMNS, form, empty="no routes", now=at)
    if not past.is_whole:
        say("each count is at least so much: more is open, or has happened since, than this command reads")
    for sentence in past.removed:
        say(sentence)


def _read(at: datetime) -> Past:
    from relay.store.past import read_past

    config, database = open_database()
    with bar(SpinnerColumn(), Doing()) as progress:
        task = progress.add_task("reading", total=None)
        return read_past(
            database,
            config.routes,
            at,
            lambda facts: progress.update(task, description=f"reading: {counted(facts, 'fact')}"),
        )
