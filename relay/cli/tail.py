"""`inbox tail`: follows arrivals and rejected requests live; and the loop that `relay tail` shares."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inbox.clock import steady
from relay.cli.options import (
    AsNdjson,
    End,
    OfEntity,
    OfEventType,
    OfRoute,
    OfSource,
    Since,
    Wide,
    open_engine,
    parse_entity,
    require_known,
    require_known_filters,
)
from relay.cli.rejected import OfCause
from relay.cli.tables import Column, Rolling, format_of
from relay.cli.terminal import exit_on_error, say

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from inbox.db.following import Feed, Follower

Row = dict[str, Any]

_LOOK_EVERY_SECONDS = 0.5
_LOOK_AGAIN_SECONDS = 1.0
"""The pause between two attempts to reach the database."""

COLUMNS = (
    Column("received_at", "time", "at"),
    Column("kind", "state", least=8),
    Column("number", "number", least=6),
    Column("source", least=10),
    Column("what", least=16, last=True),
    Column("entity", "entity", least=20),
)


def tail(
    *,
    source: OfSource = None,
    route: OfRoute = None,
    entity: OfEntity = None,
    event_type: OfEventType = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Only these: arrived (events) or rejected (requests).")
    ] = None,
    cause: OfCause = None,
    since: Since = None,
    end: End = False,
    wide: Wide = False,
    as_ndjson: AsNdjson = False,
) -> None:
    """Follow arrivals and rejected requests as they come, until Ctrl-C. With --since, begin with those since then.

    Requests that were rejected have no route, entity and event type, so these options leave them out; --cause shows only
    them. When the database goes away, it waits for it and goes on where it was.

    With --end and --ndjson, it is an export: each event once, in order of seq. `relay tail` exports their facts.

    Examples:
      inbox tail
      inbox tail --source trivore --since 15m
      inbox tail --kind rejected --cause invalid_signature
      inbox tail --route user-to-crm --ndjson
      inbox tail --kind arrived --since 2026-01-01 --end --ndjson > events.ndjson
    """
    from inbox.db.following import ARRIVALS, REJECTIONS
    from inbox.errors import CAUSES
    from inbox.loader.load import read_config

    form = format_of(COLUMNS, as_ndjson=as_ndjson, wide=wide)
    entity_type, entity_id = parse_entity(entity, may_be_a_type=True)
    require_known("kind", kind, (ARRIVALS.name, REJECTIONS.name))
    require_known("cause", cause, CAUSES)
    with exit_on_error(), until_interrupted():
        config = read_config()
        with open_engine(config) as database:
            require_known_filters(config, database, route=route)
            _require_source(source, config.sources, database)
            on_events = (route, entity_type, entity_id, event_type) != (None,) * 4
            feeds = [feed for feed in (ARRIVALS, REJECTIONS) if kind in {None, feed.name}]
            feeds = [feed for feed in feeds if not (on_events if feed is REJECTIONS else cause is not None)]
            wanted = {
                name: value
                for name, value in (
                    ("source", source), ("entity_type", entity_type), ("entity_id", entity_id),
                    ("event_type", event_type), ("cause", cause),
                )
                if value is not None
            }  # fmt: skip
            out = Rolling(COLUMNS, form)
            for feed, row in follow(database, feeds, since, ends=end):
                if all(row.get(name) == value for name, value in wanted.items()) and (
                    route is None or route in row["routes"]
                ):
                    out.add({"kind": feed.name, **row}, shown=_shown(feed.name, row))


def _require_source(source: str | None, known: Any, database: Engine) -> None:  # noqa: ANN401  # the configuration's table
    from inbox.db.reads import has_rejected_source, has_source

    require_known(
        "source", source, known, stored=lambda name: has_source(database, name) or has_rejected_source(database, name)
    )


def _shown(kind: str, row: Row) -> Row:
    """Return what the table shows besides the fields of a row."""
    if kind == "rejected":
        return {"number": row["id"], "what": f"{row['status']} {row['cause']}: {row['reason']}"}
    return {"number": row["seq"], "what": f"{row['event_type']} → {', '.join(row['routes']) or 'no route'}"}


def follow(
    database: Engine, feeds: Sequence[Feed], since: datetime | None, *, ends: bool = False
) -> Iterator[tuple[Feed, Row]]:
    """Yield each new row of the feeds once, without end; with `ends`, only those that are there.

    It survives a database that goes away: it says so once, waits, and goes on where it was.
    """
    from inbox.db.following import begin

    begins = datetime.fromtimestamp(0, UTC) if ends and since is None else since
    with database.connect() as connection:
        followers = [begin(connection, feed, begins, steady()) for feed in feeds]
    if not ends:
        say("following; Ctrl-C ends it", style="bright_black")
    while True:
        rows: list[tuple[Feed, Row]] = []
        while_reachable(partial(_look, database, followers, rows))
        yield from sorted(rows, key=lambda each: each[1][each[0].time]) if len(feeds) > 1 else rows
        if not any(follower.is_behind for follower in followers):
            if ends:
                return
            wait_for_more()


def wait_for_more() -> None:
    """Pause between two looks, when all that is there has been read."""
    time.sleep(_LOOK_EVERY_SECONDS)


def _look(database: Engine, followers: Sequence[Follower], rows: list[tuple[Feed, Row]]) -> None:
    """Add a page of each feed to `rows`. What was read before a failure stays there, as it is not read again."""
    with database.connect() as connection:
        for follower in followers:
            rows += ((follower.feed, row) for row in follower.read(connection, steady()))


def while_reachable(look: Callable[[], None]) -> None:
    """Look, again and again while the database can't be reached."""
    from inbox.db.dialect import failure_of, trouble_text

    is_away = False
    while True:
        try:
            look()
        except Exception as error:
            if failure_of(error) == "fault":
                raise
            if not is_away:
                say(f"the database does not answer ({trouble_text(error)}): waiting for it", style="yellow")
            is_away = True
            time.sleep(_LOOK_AGAIN_SECONDS)
        else:
            if is_away:
                say("the database answers again", style="green")
            return


@contextlib.contextmanager
def until_interrupted() -> Iterator[None]:
    """Let Ctrl-C end a command that runs without end: it has done what was asked for."""
    with contextlib.suppress(KeyboardInterrupt):
        yield
