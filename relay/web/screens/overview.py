"""`/`: everything at one moment, first of all what needs a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

import msgspec
from sqlalchemy import TextClause, text

from inbox.config.model import Config, RetentionKind
from inbox.db.reads import Row
from relay.findings import Finding, checked, findings, is_well, state_of
from relay.store.last_hour import NOTHING, Counts, LastHour, empty_hour, read_last_hour, total
from relay.store.overview import FiringAlert, HeldGate, Overview, RelayState, read_overview
from relay.store.route_states import Bounds, RouteState
from relay.store.sections import Sections, together_or_apart
from relay.store.sizes import NO_DISK, Disk, read_disk, sqlite_file
from relay.store.transaction import Transaction
from relay.web.reading import Reading, Screen, rows_of
from relay.web.remedy import button_of

MOST_ROUTES = 20
"""Of more routes, those with nothing open and nothing moving are left out, unless they are asked for."""
_BOUNDS = Bounds(counted=1000, walked=5000)
"""Less than `relay status` reads: this look is repeated for as long as somebody has the page open."""
_HEALTH_SECONDS, _DISK_SECONDS = 15.0, 60.0
"""Time for which sums of a day, and sizes, are kept: they cost more than all else, and change slowly."""


class OverviewQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of the overview."""

    routes: Literal["busy", "all"] = "busy"
    """`all`: also list routes with nothing open, however many."""


_NOT_SHOWN = ("position", "lap_began_at")


class RouteLine(msgspec.Struct, frozen=True):
    """A route with its figures of the last hour."""

    word: str
    """Its state in a word: the worst that is true of it."""
    state: RouteState
    source: str | None
    destination: str | None
    """None where the configuration lacks the route."""
    arrived: Counts
    """Events of its source, minute by minute; its conditions may leave some of them out."""
    ended: Counts
    failed: Counts


class SourceLine(msgspec.Struct, frozen=True):
    """A source, as the view `source_health` has it."""

    health: Annotated[Row, rows_of("source_health")]
    arrived: Counts


class WaitReason(msgspec.Struct, frozen=True):
    """A reason for which open deliveries wait, and how many."""

    reason: str
    number: int
    more: bool
    """The count ended early: so many or more."""
    state: str
    """State to list them by."""


class OverviewPage(msgspec.Struct, frozen=True):
    """Everything, at one moment."""

    at: datetime
    """The database's clock."""
    is_well: bool
    """Nothing needs a person; information may be among the findings."""
    findings: tuple[Finding, ...]
    """Everything that needs a person, the critical ones first, and information last."""
    began_at: datetime
    """Beginning of the first minute of the figures."""
    arrived: Counts
    """Events of all sources in each of the last sixty whole minutes."""
    ended: Counts
    """Deliveries that ended."""
    failed: Counts
    """Attempts that failed."""
    routes: tuple[RouteLine, ...]
    quiet_routes: int
    """Further routes, with nothing open."""
    waits: tuple[WaitReason, ...]
    gates: tuple[HeldGate, ...]
    more_gates: int
    sources: tuple[SourceLine, ...]
    destinations: tuple[Annotated[Row, rows_of("destination_health")], ...]
    """Rows of the view `destination_health`."""
    relays: tuple[RelayState, ...]
    alerts: tuple[FiringAlert, ...]
    retention: tuple[Annotated[Row, rows_of("pruning", *_NOT_SHOWN)], ...]
    """Progress of each kind of rows that expires."""
    disk: Disk
    unread: dict[str, str]
    """Sections that can't be read now, such as one whose table somebody has locked, and why; they are empty here."""


def read(reading: Reading, query: OverviewQuery) -> OverviewPage:
    """Read everything; a section that can't be read leaves the others as they are."""
    return together_or_apart(lambda part: _read(reading, query, part))


def _read(reading: Reading, query: OverviewQuery, part: Sections) -> OverviewPage:
    database, role, kept = reading.database, reading.actor.role, reading.kept
    seen = read_overview(database, reading.policies, _BOUNDS, part)
    found: list[Finding] = part("findings", lambda: checked(database), [])
    with database.read() as transaction:

        def rows(name: str, statement: TextClause) -> list[Row]:
            found: list[Row] = kept((name, role), _HEALTH_SECONDS, lambda: _rows(transaction, statement))
            return found

        hour = part("hour", lambda: read_last_hour(transaction, seen.at), empty_hour(seen.at), transaction)
        sources: list[Row] = part("sources", lambda: rows("sources", _SOURCES), [], transaction)
        destinations: list[Row] = part("destinations", lambda: rows("destinations", _DESTINATIONS), [], transaction)
        file = sqlite_file(reading.config)
        disk = part(
            "disk",
            lambda: kept(("disk", role), _DISK_SECONDS, lambda: read_disk(transaction, file)),
            NO_DISK,
            transaction,
        )
    slow = _Slow(sources, destinations, disk, part.unread)
    return page_of(seen, found, hour, reading.config, slow, show_all=query.routes == "all")


def _rows(transaction: Transaction, statement: TextClause) -> list[Row]:
    """Read rows; sums are whole numbers, for which Postgres has a type of its own."""
    return [{name: _plain(name, value) for name, value in row.items()} for row in transaction.rows_of(statement)]


def _plain(name: str, value: object) -> object:
    if name == "is_silent":  # SQLite has numbers
        return bool(value)
    return int(value) if isinstance(value, Decimal) else value


class _Slow(msgspec.Struct, frozen=True):
    """Values that are kept, and the sections that can't be read."""

    sources: Sequence[Row]
    destinations: Sequence[Row]
    disk: Disk
    unread: dict[str, str]


def page_of(
    seen: Overview, found: Sequence[Finding], hour: LastHour, config: Config, slow: _Slow, *, show_all: bool
) -> OverviewPage:
    """Put the page together. Pure."""
    shown = [route for route in seen.routes if show_all or len(seen.routes) <= MOST_ROUTES or _is_busy(route, hour)]
    attention = (*map(_unread, slow.unread.items()), *findings(seen, found, _MOST_NAMED))
    return OverviewPage(
        seen.at,
        is_well=is_well(attention),
        findings=attention,
        began_at=hour.began_at,
        arrived=total(hour.arrived),
        ended=total(hour.ended),
        failed=total(hour.failed),
        routes=tuple(_route(route, found, hour, config) for route in shown),
        quiet_routes=len(seen.routes) - len(shown),
        waits=tuple(waits(seen.routes)),
        gates=seen.gates[:_MOST_GATES],
        more_gates=max(len(seen.gates) - _MOST_GATES, 0),
        sources=tuple(SourceLine(row, hour.arrived.get(row["source"], NOTHING)) for row in slow.sources),
        destinations=tuple(slow.destinations),
        relays=seen.relays,
        alerts=seen.alerts,
        retention=seen.retention,
        disk=slow.disk,
        unread=slow.unread,
    )


_SECTIONS: Mapping[str, str] = {"gates": "what is held back", "hour": "the last hour", "disk": "sizes"}
"""Sections that people call otherwise."""


def _unread(section: tuple[str, str]) -> Finding:
    name, why = section
    return Finding("unread", "warning", f"{_SECTIONS.get(name, name)} can't be read now", name, why)


_MOST_GATES = 20
_MOST_NAMED = 5
"""Routes or gates of one problem that have a line of their own."""


def _is_busy(route: RouteState, hour: LastHour) -> bool:
    moved = any(hour.ended.get(route.route, NOTHING)) or any(hour.failed.get(route.route, NOTHING))
    return bool(route.open or route.held_back_by or moved)


def _route(route: RouteState, found: Sequence[Finding], hour: LastHour, config: Config) -> RouteLine:
    configured = config.routes.get(route.route)
    return RouteLine(
        state_of(route, found),
        route,
        configured.source if configured else None,
        configured.destination if configured else None,
        hour.arrived.get(configured.source, NOTHING) if configured else NOTHING,
        hour.ended.get(route.route, NOTHING),
        hour.failed.get(route.route, NOTHING),
    )


def waits(routes: Sequence[RouteState]) -> list[WaitReason]:
    """Add up, over all routes, the deliveries that wait for each reason. Reasons with none are left out."""
    held = [route for route in routes if route.held_back_by]
    moving = [route for route in routes if not route.held_back_by]
    reasons = (
        ("due, and held back by a pause, breaker or rate hold", "ready", held),
        ("due, and not taken up yet", "ready", moving),
        ("in flight", "in_flight", routes),
        ("failed, and due again later", "retrying", routes),
        ("behind an older event of their lane", "waiting", routes),
        ("blocked: given up, and their lanes wait for a person", "blocked", routes),
        ("dead: given up, and their lanes go on", "dead", routes),
        ("arrived, and not ordered yet", "received", routes),
    )
    return [
        WaitReason(reason, number, any(state in route.at_least for route in some), state)
        for reason, state, some in reasons
        if (number := sum(getattr(route, state) for route in some))
    ]


_SOURCES = text("SELECT * FROM source_health ORDER BY source LIMIT 200")
_DESTINATIONS = text("SELECT * FROM destination_health WHERE kind <> 'route' ORDER BY kind DESC, name LIMIT 200")

RETENTION_WORDS: Mapping[RetentionKind, str] = {
    "payloads": "Headers and bodies",
    "events": "Events",
    "attempts": "Failed attempts",
    "rejected": "Rejected requests",
    "duplicates": "Duplicate requests",
    "relay_nodes": "Runs of relays",
    "alerts": "Alerts",
    "commands": "Commands",
    "reveals": "Reveals of payloads",
    "throughput": "Figures of each minute",
}
"""Kinds of rows that expire, as the page calls them."""

SCREEN = Screen(
    name="overview",
    path="/",
    title="Overview",
    query=OverviewQuery,
    page=OverviewPage,
    read=read,
    template="overview.html",
    values={"retention_words": RETENTION_WORDS, "button_of": button_of},
)
