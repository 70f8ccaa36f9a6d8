"""The lists: `/deliveries` with acts on all matches, `/dead` in groups, `/rejected`, `/commands`, `/commands/{id}`, `/alerts`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from inbox.db.listing import EventFilter, ListingName, RowPage, list_deliveries, read_page
from inbox.db.reads import Row, read_row
from inbox.db.schema import metadata
from inbox.errors import BadFilter, NotAllowed, NothingThere
from inbox.events.states import DEAD_STATES, ENDINGS, OPEN_COMMANDS, RETRYING
from relay.delivery.alerts import AlertKind
from relay.filters import STATES, Filtered, list_unknown, make_conditions, suggest_sender_id
from relay.operations.asks import Moment
from relay.operations.table import OPERATIONS
from relay.store.operator.commands import CommandOutcome, read_outcome
from relay.store.overview import FiringAlert, format_alert, read_firing
from relay.store.reads import DeadGroup, group_dead_letters
from relay.store.statement import Statement, sql
from relay.web.query import Limit, Number, Text
from relay.web.reading import MOST_COUNTED, AnyMembers, ListPage, ListQuery, Reading, describe_rows
from relay.words import ACTS, describe_state

LONGEST_SECONDS, LONGEST_SEARCH_SECONDS = 0.15, 1.0
"""Time after which a search starts no further statement. The second value is for searches in payloads."""


def _read_conditions(reading: Reading, listing: Filtered, given: dict[str, Any]) -> dict[str, Any]:
    """Return the conditions of a listing.

    Raises:
        BadFilter: a filter has an unknown value.
    """
    del given["limit"]
    for field, sentence in list_unknown(listing, given, reading.config, reading.database.engine):
        raise BadFilter(sentence, field=field)
    return make_conditions(given, reading.config, reading.now)


def _page(reading: Reading, listing: ListingName, query: Any, columns: Sequence[str] = ("*",)) -> RowPage:  # noqa: ANN401  # a query with a limit
    return read_page(
        reading.database.engine,
        listing,
        _read_conditions(reading, listing, msgspec.structs.asdict(query)),
        query.limit,
        columns,
    )


# --- deliveries


class DeliveriesQuery(ListQuery, frozen=True, kw_only=True):
    """Conditions on deliveries and their events."""

    route: Text | None = None
    destination: Text | None = None
    """Destination, with all routes to it."""
    state: Annotated[Text, msgspec.Meta(extra_json_schema={"enum": list(STATES)})] | None = None
    """State as in listings, including `retrying`: ready, and waiting for the next attempt after a failure."""
    source: Text | None = None
    entity: Annotated[Text, msgspec.Meta(extra_json_schema={"pattern": "^[^/\\x00]+(/[^\\x00]+)?$"})] | None = None
    """TYPE/ID, or TYPE for all entities of a type."""
    event_type: Text | None = None
    """Event type as sent."""
    seq: Number | None = None
    sender_id: Annotated[Text, msgspec.Meta(description="The sender's own id of the event, whole.")] | None = None
    body: Annotated[Text, msgspec.Meta(description="Text in the payload, with its case. Operators only.")] | None = None
    error: Text | None = None
    """Part of the last error; case-insensitive."""
    status: Annotated[int, msgspec.Meta(ge=100, le=599)] | None = None
    """HTTP status of the last call."""
    command: Number | None = None
    """Number of the command that changed them."""

    @property
    def entity_of(self) -> tuple[str | None, str | None]:
        """Type and id of the entity to find."""
        entity_type, _, entity_id = (self.entity or "").partition("/")
        return entity_type or None, entity_id or None


class Offer(msgspec.Struct, frozen=True):
    """An act on all matching deliveries: the KIND of `/acts/KIND`, and the fields of its selection."""

    kind: str
    selection: AnyMembers


_ACTS_SCHEMA = {
    "type": "array",
    "items": {"type": "string"},
    "description": "the acts that can change it; viewers get none",
}


class DeliveriesPage(ListPage, frozen=True, kw_only=True):
    """Rows of the view `delivery`, newest event first."""

    rows: tuple[Annotated[Row, describe_rows("delivery", acts=_ACTS_SCHEMA)], ...]
    matching: int | None = None
    """Number of matching deliveries; 501 means more than 500; None: not counted."""
    is_complete: bool
    """False: the time limit ended the scan. Continue with `before`; `matching` is a lower bound."""
    looked_through: int
    """Number of events scanned. With an open state, it counts deliveries; with `body`, events whose payload was searched."""
    back_to: datetime | None = None
    """With `body`, if the search is incomplete: arrival time of the last event whose payload was searched."""
    without_payload: int = 0
    """With `body`: number of those events whose payload retention or an erasure has deleted."""
    hint: str | None = None
    """A hint about a partial or unknown `sender_id`."""
    offers: tuple[Offer, ...] = ()
    """Acts on exactly the matching deliveries. Their plans show the changes."""
    why_none: str | None = None
    """Reason why no act can select exactly the matching deliveries."""


def read_deliveries(reading: Reading, query: DeliveriesQuery) -> DeliveriesPage:
    """Read a page of deliveries.

    Raises:
        NotAllowed: a viewer searches in payloads, which viewers see only through recorded reveals.
    """
    if query.body is not None and not reading.actor.may_act:
        raise NotAllowed("only operators search in payloads; a viewer reveals one, with a reason")
    entity_type, entity_id = query.entity_of
    if query.entity is not None and entity_type is None:
        raise BadFilter(
            f"entity {query.entity!r}: write TYPE/ID, such as USER/IDNUMBER1234, or TYPE alone", field="entity"
        )
    given = msgspec.structs.asdict(query)
    del given["entity"]
    wanted = EventFilter(**_read_conditions(reading, "deliveries", given), entity_type=entity_type, entity_id=entity_id)
    counts = query.before is None
    most = MOST_COUNTED if counts else 0
    engine = reading.database.engine
    seconds = LONGEST_SECONDS if query.body is None else LONGEST_SEARCH_SECONDS
    found = list_deliveries(engine, wanted, query.limit, most=most, seconds=seconds)
    unknown = None if found.rows or query.sender_id is None else query.sender_id
    return DeliveriesPage(
        rows=tuple(_with_acts(reading, found.rows)),
        before=found.before,
        matching=found.matching if counts else None,
        is_complete=found.is_complete,
        looked_through=found.looked_through,
        back_to=found.back_to,
        without_payload=found.without_payload,
        hint=None if unknown is None else suggest_sender_id(engine, unknown),
        offers=offers(query) if reading.actor.may_act else (),
        why_none=why_no_offer(query) if reading.actor.may_act else None,
    )


_FAILED = (*DEAD_STATES, RETRYING)
_STORED = Statement(f"""
SELECT wanted.seq FROM {sql.look_up(sql.rows("wanted", seq="bigint"), "inbox_payload p", "p.seq = wanted.seq")}
""")


def _with_acts(reading: Reading, rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the rows with their acts. A delivery without a payload can't be sent again."""
    acts = [ACTS.get(describe_state(row, reading.now), ()) if reading.actor.may_act else () for row in rows]
    wanted = {row["seq"] for row, able in zip(rows, acts, strict=True) if not _SENDING.isdisjoint(able)}
    with reading.database.read() as transaction:
        stored = {row.seq for row in transaction.execute(_STORED, wanted=wanted)} if wanted else wanted
    for row, able in zip(rows, acts, strict=True):
        yield {**row, "acts": [act for act in able if row["seq"] in stored or act not in _SENDING]}


_SENDING = frozenset({"replay", "retry"})


def why_no_offer(query: DeliveriesQuery) -> str | None:
    """Return the reason why no act can select exactly the matching deliveries; None if an act can."""
    state = query.state
    if query.sender_id is not None or query.body is not None or query.command is not None:
        return "Acts can't filter by the sender's id, the payload or a command: select rows."
    if state is None:
        return "Select a state to act on all matching deliveries."
    if state not in ACTS:
        return f"No act changes deliveries that are {state}."
    if state in _FAILED:
        return _OF_FAILURES if query.since or query.until else None
    if query.error is not None or query.status is not None:
        return f"Acts on {state} deliveries can't filter by error or status: remove these filters, or select rows."
    return _OF_ENTITIES if state in ENDINGS and query.seq is None and query.entity_of[1] is None else None


_OF_FAILURES = (
    "Acts on failed deliveries filter by the time of the failure, not of the arrival: remove the times, or select rows."
)
_OF_ENTITIES = "Ended deliveries are replayed by event or entity: filter by one, or select rows."
_WITH_STATE = {"replay", "cancel"}
"""Acts whose selection includes the state; each other act has a fixed state."""


def offers(query: DeliveriesQuery) -> tuple[Offer, ...]:
    """List the acts that can select exactly the matching deliveries."""
    if why_no_offer(query) is not None:
        return ()
    entity_type, entity_id = query.entity_of
    given = {name: getattr(query, name) for name in _SELECTED} | {"entity_type": entity_type, "entity_id": entity_id}
    given = {name: value for name, value in given.items() if value is not None}
    return tuple(
        Offer(kind, given | {"state": query.state} if kind in _WITH_STATE else given or {"everything": True})
        for kind in ACTS[query.state or ""]
    )


_SELECTED = ("seq", "route", "destination", "source", "event_type", "error", "status", "since", "until")


# --- dead letters


class DeadQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on dead letters."""

    route: Text | None = None
    cause: Text | None = None
    since: Moment | None = None
    """Only deaths at or after this time."""
    limit: Limit = 50
    """Maximum number of groups."""


class DeadPage(msgspec.Struct, frozen=True):
    """Groups of dead letters, largest first."""

    groups: tuple[DeadGroup, ...]
    grouped: int
    """Number of dead letters scanned, newest events first; at most 5,000."""
    is_whole: bool
    """False: older dead letters or smaller groups are missing."""


def list_dead(reading: Reading, query: DeadQuery) -> DeadPage:
    """Read the groups of dead letters."""
    with reading.database.read() as transaction:
        groups, grouped, is_whole = group_dead_letters(transaction, **msgspec.structs.asdict(query))
    return DeadPage(tuple(groups), grouped, is_whole)


# --- rejected requests

LEFT_OUT = ("headers", "body", "body_sha256")
"""Columns that lists omit."""
COLUMNS = tuple(
    str(column.name) for column in metadata.tables["rejected_request"].columns if column.name not in LEFT_OUT
)
IS_KEPT = "body IS NOT NULL AS is_kept"
"""Only a request with its body can be readmitted. The viewers' database role can't read whether a request has a body."""
_IS_KEPT_SCHEMA = {
    "type": ["boolean", "null"],
    "description": "true: the whole request was kept and can be readmitted; null: hidden from viewers",
}


class RejectedQuery(ListQuery, frozen=True, kw_only=True):
    """Conditions on rejected requests."""

    source: Text | None = None
    cause: Text | None = None
    status: Number | None = None
    error: Text | None = None
    """Part of the reason; case-insensitive."""


class RejectedPage(ListPage, frozen=True):
    """Rows of `rejected_request`, newest first, without headers and bodies."""

    rows: tuple[Annotated[Row, describe_rows("rejected_request", *LEFT_OUT, is_kept=_IS_KEPT_SCHEMA)], ...]


def list_rejected(reading: Reading, query: RejectedQuery) -> RejectedPage:
    """Read a page of rejected requests."""
    columns = (*COLUMNS, IS_KEPT) if reading.actor.may_act else (*COLUMNS, "NULL AS is_kept")
    found = _page(reading, "rejected", query, columns)
    return RejectedPage(rows=tuple(found.rows), before=found.before)


# --- commands


class CommandsQuery(ListQuery, frozen=True, kw_only=True):
    """Conditions on commands."""

    kind: Text | None = None
    """Kind of command, such as `replay`."""
    state: Text | None = None
    """State of the command: asked, running, done, failed, refused or cancelled."""


class CommandsPage(ListPage, frozen=True):
    """Rows of `relay_command` without their samples, newest first."""

    rows: tuple[Annotated[Row, describe_rows("relay_command", "sample")], ...]


def list_commands(reading: Reading, query: CommandsQuery) -> CommandsPage:
    """Read a page of commands."""
    found = _page(reading, "commands", query)
    for row in found.rows:
        del row["sample"]
    return CommandsPage(rows=tuple(found.rows), before=found.before)


class CommandQuery(msgspec.Struct, frozen=True):
    """Parameters of a command's page."""

    id: Number


class CommandPage(msgspec.Struct, frozen=True):
    """One command."""

    command: Annotated[Row, describe_rows("relay_command")]
    is_open: bool
    """True: a relay still works on it."""
    turn: Literal["stop", "continue"] | None
    """The act that stops or continues the command."""
    outcome: CommandOutcome | None
    """For a replay or retry: the current states of the deliveries that it changed."""
    says: str | None
    """The outcome in words: `6 delivered, 0 failed`."""


def read_command(reading: Reading, query: CommandQuery) -> CommandPage:
    """Read one command.

    Raises:
        NothingThere: there is no such command.
    """
    row = read_row(reading.database.engine, "relay_command", query.id)
    if row is None:
        raise NothingThere(f"there is no command {query.id}")
    is_open = row["state"] in OPEN_COMMANDS
    turn: Literal["stop", "continue"] | None = (
        "stop" if is_open else "continue" if row["state"] == "cancelled" else None
    )
    is_about_calls = row["kind"] in {"replay", "retry"} and row["affected"]
    outcome = read_outcome(reading.database, query.id) if is_about_calls else None
    turn = None if OPERATIONS[row["kind"]].is_of_a_command else turn
    return CommandPage(row, is_open, turn, outcome, None if outcome is None else outcome.says)


# --- alerts


class AlertsQuery(ListQuery, frozen=True, kw_only=True):
    """Conditions on the history of alerts."""

    kind: AlertKind | None = None
    subject: Text | None = None
    """Subject exactly as stored: a route, a source, `destination NAME` and so on."""


class AlertsPage(ListPage, frozen=True, kw_only=True):
    """Rows of `alert` with their sentence in `text`, newest first."""

    rows: tuple[Annotated[Row, describe_rows("alert", text={"type": "string"})], ...]
    firing: tuple[FiringAlert, ...]
    """All firing alerts, oldest first, regardless of the filters; empty on later pages."""


def list_alerts(reading: Reading, query: AlertsQuery) -> AlertsPage:
    """Read a page of the history and, on the first page, the firing alerts."""
    firing: Sequence[FiringAlert] = ()
    if query.before is None:
        with reading.database.snapshot() as transaction:
            firing = tuple(read_firing(transaction))
    found = _page(reading, "alerts", query)
    return AlertsPage(
        rows=tuple(
            {**row, "text": format_alert(row["kind"], row["subject"], row["detail"], firing=row["firing"])}
            for row in found.rows
        ),
        before=found.before,
        firing=tuple(firing),
    )
