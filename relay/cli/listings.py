"""`relay dead` and `relay tail`: dead letters, and the outcomes of deliveries as they are recorded."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from relay.cli.options import (
    MOST_NUMBER,
    AsJson,
    AsNdjson,
    Columns,
    End,
    Limit,
    OfDestination,
    OfEntity,
    OfError,
    OfEventType,
    OfRoute,
    OfSource,
    OfStatus,
    Since,
    Until,
    Wide,
    open_database,
    parse_entity,
    require_known,
    require_known_filters,
)
from relay.cli.tables import Column, Rolling, format_of, show
from relay.cli.tail import follow, until_interrupted
from relay.cli.terminal import exit_on_error
from relay.words import counted, lasting

if TYPE_CHECKING:
    from inbox.db.reads import Row

DEAD_COLUMNS = (
    Column("seq", "number"),
    Column("entity", "entity"),
    Column("error", last=True),
    Column("route"),
    Column("state", "state"),
    Column("died_at", "time", "died"),
    Column("cause"),
    Column("last_status", "number", "status"),
    Column("event_type"),
    Column("attempts", "number"),
    Column("source"),
    Column("received_at", "time", "received", on_request=True),
    Column("occurred_at", "time", "occurred", on_request=True),
    Column("action", on_request=True),
    Column("lane", on_request=True),
)


def dead(
    *,
    route: OfRoute = None,
    destination: OfDestination = None,
    source: OfSource = None,
    entity: OfEntity = None,
    event_type: OfEventType = None,
    cause: Annotated[str | None, typer.Option(help="Only of this cause, such as exhausted or mapping.")] = None,
    status: OfStatus = None,
    error: OfError = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    wide: Wide = False,
    columns: Columns = None,
    as_json: AsJson = False,
    as_ndjson: AsNdjson = False,
) -> None:
    """List deliveries that were given up, the newest death first; --since and --until are times of their deaths.

    `inbox show SEQ` shows the whole history of one; `relay replay` replays them.

    Examples:
      relay dead --cause mapping
      relay dead --destination crm --status 422 --since 2d
      relay dead --error "no value" --ndjson
    """
    from inbox.config.routing import chosen_routes
    from inbox.db.listing import read_rows

    form = format_of(DEAD_COLUMNS, as_json=as_json, as_ndjson=as_ndjson, wide=wide, names=columns)
    entity_type, entity_id = parse_entity(entity, may_be_a_type=True)
    with exit_on_error():
        config, database = open_database()
        require_known_filters(config, database.engine, route=route, source=source, destination=destination, cause=cause)
        wanted = {
            "routes": chosen_routes(config, route, destination),
            "source": source,
            "entity_type": entity_type,
            "entity_id": entity_id,
            "event_type": event_type,
            "cause": cause,
            "status": status,
            "error": error,
            "since": since,
            "until": until,
        }
        most = form.most(limit)
        rows = read_rows(database.engine, "dead", wanted, most or MOST_NUMBER)
    more = f"{most} shown; more with `--limit {2 * most}`" if most is not None and len(rows) >= most else ""
    show(rows, DEAD_COLUMNS, form, empty="no dead letters", more=more)


OUTCOME_COLUMNS = (
    Column("at", "time"),
    Column("kind", "state"),
    Column("seq", "number"),
    Column("what", last=True),
    Column("route"),
    Column("entity", "entity", least=18),
    Column("attempt", "number"),
    Column("event_type", heading="event type", least=12),
)


class OutcomeFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on facts and their events; None: any."""

    routes: Collection[str] | None = None
    source: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    event_type: str | None = None
    kind: str | None = None
    cause: str | None = None
    """Of the death, or the error class of a failed attempt."""
    status: int | None = None
    """HTTP status of the last call."""
    error: str | None = None
    """A part of the error, in any case."""

    def admits(self, row: Row) -> bool:
        """Return whether a fact with its event meets them all."""
        detail = row["detail"]
        calls = detail.get("calls") or [{}]
        given = {name: getattr(self, name) for name in ("source", "entity_type", "entity_id", "event_type", "kind")}
        return (
            all(value is None or row[name] == value for name, value in given.items())
            and (self.routes is None or row["route"] in self.routes)
            and (self.cause is None or self.cause in {detail.get("cause"), detail.get("error_class")})
            and (self.status is None or calls[-1].get("status") == self.status)
            and (self.error is None or self.error.casefold() in str(detail.get("error", "")).casefold())
        )


def tail(
    *,
    route: OfRoute = None,
    destination: OfDestination = None,
    source: OfSource = None,
    entity: OfEntity = None,
    event_type: OfEventType = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Only facts of this kind, such as delivered, attempt_failed or dead.")
    ] = None,
    cause: Annotated[
        str | None, typer.Option("--cause", help="Only deaths and failures of this cause, such as server_error.")
    ] = None,
    status: OfStatus = None,
    error: OfError = None,
    since: Since = None,
    end: End = False,
    wide: Wide = False,
    as_ndjson: AsNdjson = False,
) -> None:
    """Follow the outcomes of deliveries as they are recorded, until Ctrl-C. With --since, begin with those since then.

    When the database goes away, it waits for it and goes on where it was.

    Examples:
      relay tail
      relay tail --route user-to-crm --kind attempt_failed
      relay tail --destination crm --since 15m
      relay tail --cause server_error --ndjson
      relay tail --since 2026-01-01 --end --ndjson > facts.ndjson
    """
    from inbox.config.routing import chosen_routes
    from relay.delivery.facts import KINDS
    from relay.store.reads import OUTCOMES

    form = format_of(OUTCOME_COLUMNS, as_ndjson=as_ndjson, wide=wide)
    entity_type, entity_id = parse_entity(entity, may_be_a_type=True)
    require_known("kind", kind, KINDS)
    with exit_on_error(), until_interrupted():
        config, database = open_database()
        require_known_filters(config, database.engine, route=route, source=source, destination=destination, cause=cause)
        wanted = OutcomeFilter(
            routes=chosen_routes(config, route, destination),
            source=source,
            entity_type=entity_type,
            entity_id=entity_id,
            event_type=event_type,
            kind=kind,
            cause=cause,
            status=status,
            error=error,
        )
        out = Rolling(OUTCOME_COLUMNS, form)
        for _, row in follow(database.engine, [OUTCOMES], since, ends=end):
            if wanted.admits(row):
                out.add(row, shown={"what": _what(row)})


def _what(row: Row) -> str:
    """Return the rest of a fact in a few words: what was done, or why not."""
    detail = row["detail"]
    calls = detail.get("calls") or []
    if "error" in detail:
        cause = detail.get("cause") or detail.get("error_class")
        return f"{cause}: {detail['error']}"
    if "why" in detail:
        return f"{detail['who']}: {detail['why']}" if "who" in detail else str(detail["why"])
    if "by" in detail:
        return f"by event {detail['by']}"
    took = sum(call.get("milliseconds", 0) for call in calls)
    did = str(detail.get("did", "")).replace("_", " ")
    made = f"{counted(len(calls), 'call')}, {lasting(took / 1000)}" if calls else ""
    return ", ".join(filter(None, (did, made)))
