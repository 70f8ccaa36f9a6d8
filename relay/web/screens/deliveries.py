"""`/deliveries` and `/dead`: every delivery that meets the filters, and dead letters in groups, with acts on all that match."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

import msgspec

from inbox.config.mistakes import nearest
from inbox.config.routing import chosen_routes
from inbox.db import listing
from inbox.db.listing import EventFilter
from inbox.db.reads import Row, has_route, has_source
from inbox.errors import BadFilter
from inbox.events.commands import DEAD_STATES
from inbox.events.states import ENDINGS, LISTED_STATES, RETRYING, UNROUTED, State
from relay.delivery.facts import CAUSES
from relay.store.reads import MOST_GROUPED, DeadGroup, dead_groups
from relay.web.query import GivenTime, Limit, Number, Text
from relay.web.reading import MOST_COUNTED, AnyMembers, ListPage, Reading, Screen, rows_of

LONGEST_SECONDS = 0.15
"""After it, no further statement of a search begins."""
STATES = (*LISTED_STATES, RETRYING)
"""Every value of the filter `state`."""


class DeliveriesQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on deliveries and their events."""

    route: Text | None = None
    destination: Text | None = None
    """Of all routes to it."""
    state: Annotated[Text, msgspec.Meta(extra_json_schema={"enum": list(STATES)})] | None = None
    """State of the delivery as listings show it, also `retrying`: ready, and waiting for its next attempt after a failure."""
    source: Text | None = None
    entity: Annotated[Text, msgspec.Meta(extra_json_schema={"pattern": "^[^/\\x00]+/[^\\x00]+$"})] | None = None
    """TYPE/ID."""
    type: Text | None = None
    """Type of the entity."""
    event_type: Text | None = None
    """Event type, verbatim from the sender."""
    error: Text | None = None
    """A part of the last error, in any case."""
    status: Annotated[int, msgspec.Meta(ge=100, le=599)] | None = None
    """HTTP status of the last call."""
    since: GivenTime | None = None
    """Received at or after."""
    until: GivenTime | None = None
    """Received before."""
    before: Number | None = None
    """Only below this seq."""
    limit: Limit = 50

    @property
    def entity_of(self) -> tuple[str | None, str | None]:
        """Type and id of the wanted entity. A type that has a slash itself is told by `type`."""
        if self.entity is None:
            return self.type, None
        if self.type is not None and self.entity.startswith(f"{self.type}/"):
            return self.type, self.entity.removeprefix(f"{self.type}/")
        entity_type, _, entity_id = self.entity.partition("/")
        return entity_type, entity_id


class Offer(msgspec.Struct, frozen=True):
    """An act on all deliveries that match: the path `/acts/KIND`, and the fields of its selection."""

    kind: str
    selection: AnyMembers


class DeliveriesPage(ListPage, frozen=True, kw_only=True):
    """Rows of the view `delivery`, the newest event first."""

    rows: tuple[Annotated[Row, rows_of("delivery")], ...]
    is_complete: bool
    """False: the time was over before everything was looked through. `before` goes on, and `matching` is the least."""
    looked_through: int
    """Events that were looked through; of an open state, deliveries."""
    offers: tuple[Offer, ...] = ()
    """Acts on exactly those that match. Their plans say what they change."""
    why_none: str | None = None
    """Reason why no act can be on exactly those that match."""


def read(reading: Reading, query: DeliveriesQuery) -> DeliveriesPage:
    """Read a page of deliveries."""
    _require_known(reading, query)
    entity_type, entity_id = query.entity_of
    if query.entity is not None and not (entity_type and entity_id):
        raise BadFilter(f"entity {query.entity!r}: write TYPE/ID, such as USER/IDNUMBER1234", field="entity")
    is_retrying = query.state == RETRYING
    wanted = EventFilter(
        source=query.source,
        entity_type=entity_type,
        entity_id=entity_id,
        event_type=query.event_type,
        since=query.since.moment if query.since else None,
        until=query.until.moment if query.until else None,
        routes=chosen_routes(reading.config, query.route, query.destination),
        state=State.READY.value if is_retrying else query.state,
        retrying_at=reading.now if is_retrying else None,
        error=query.error,
        status=query.status,
        before=query.before,
    )
    counts = query.before is None
    most = MOST_COUNTED if counts else 0
    found = listing.list_deliveries(reading.database.engine, wanted, query.limit, most=most, seconds=LONGEST_SECONDS)
    return DeliveriesPage(
        rows=tuple(found.rows),
        before=found.before,
        matching=found.matching if counts else None,
        is_complete=found.is_complete,
        looked_through=found.looked_through,
        offers=offers(query) if reading.actor.may_act else (),
        why_none=why_no_offer(query) if reading.actor.may_act else None,
    )


_ACTS: dict[str, tuple[str, ...]] = {
    "dead": ("replay", "cancel"),
    "blocked": ("replay", "unblock", "cancel"),
    "retrying": ("retry", "cancel"),
    "ready": ("cancel",),
    "received": ("cancel",),
    "waiting": ("cancel",),
    **dict.fromkeys((each for each in ENDINGS if each != "superseded"), ("replay",)),
}


def acts_of(state: str) -> tuple[str, ...]:
    """Return the acts that change a delivery in this state, the most useful first."""
    return _ACTS.get(state, ())


_FAILED = (*DEAD_STATES, RETRYING)
_WHY_NONE: dict[str | None, str] = {
    None: "Choose a state to act on all that match.",
    State.IN_FLIGHT: "A delivery in flight is left alone until its call has ended.",
    UNROUTED: "These events have no delivery. `relay replay --route ROUTE --backfill` delivers those that a route takes now.",
    "superseded": "A newer delivery of the lane replaces each superseded one, so no act changes them.",
}


def acts_of_any(states: Iterable[str]) -> Sequence[str]:
    """List the acts that change a delivery in one of these states, each once."""
    return tuple(dict.fromkeys(act for state in states for act in acts_of(state)))


def why_no_offer(query: DeliveriesQuery) -> str | None:
    """Say why no act can be on exactly the deliveries that match; None: one can."""
    state = query.state
    why = _WHY_NONE.get(state)
    if state in _FAILED:
        if query.since or query.until:
            why = "Acts on failed deliveries count times from the failure, not from the arrival: leave times out, or choose rows."
    elif why is None and (query.error is not None or query.status is not None):
        why = f"Acts on {state} deliveries know no error and no status: leave them out, or choose rows."
    elif why is None and state in ENDINGS and query.entity is None:
        why = "Ended deliveries are replayed by entity: give one, or choose rows."
    return why


_WITH_STATE = {"replay", "cancel"}
"""Acts whose selection names the state; that of another is always of the same state."""


def offers(query: DeliveriesQuery) -> tuple[Offer, ...]:
    """List the acts whose selection is exactly the deliveries that match."""
    if why_no_offer(query) is not None:
        return ()
    entity_type, entity_id = query.entity_of
    selection = {
        "route": query.route,
        "destination": query.destination,
        "source": query.source,
        "entity_type": entity_type,
        "entity_id": entity_id,
        "event_type": query.event_type,
        "error": query.error,
        "status": query.status,
        "since": query.since,
        "until": query.until,
    }
    given = {name: value for name, value in selection.items() if value is not None}
    return tuple(
        Offer(kind, given | {"state": query.state} if kind in _WITH_STATE else given or {"everything": True})
        for kind in acts_of(query.state or "")
    )


def _require_known(reading: Reading, query: DeliveriesQuery) -> None:
    config, engine = reading.config, reading.database.engine
    _require("source", query.source, config.sources, lambda name: has_source(engine, name))
    _require("route", query.route, config.routes, lambda name: has_route(engine, name))
    _require("destination", query.destination, config.destinations)
    _require("state", query.state, STATES)


def _require(kind: str, given: str | None, known: Iterable[str], stored: Callable[[str], bool] | None = None) -> None:
    names = tuple(known)
    if given is not None and given not in names and not (stored is not None and stored(given)):
        raise BadFilter(f"there is no {kind} {given!r}; {nearest(given, names)}", field=kind)


SCREEN = Screen(
    name="deliveries",
    path="/deliveries",
    title="Deliveries",
    query=DeliveriesQuery,
    page=DeliveriesPage,
    read=read,
    template="deliveries.html",
    is_list=True,
    values={"states": STATES, "acts_of": acts_of, "acts_of_any": acts_of_any},
)


class DeadQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on dead letters."""

    route: Text | None = None
    cause: Text | None = None
    since: GivenTime | None = None
    """Died at or after this time."""
    limit: Limit = 50
    """Groups."""


class DeadPage(msgspec.Struct, frozen=True):
    """Groups of dead letters, the largest first."""

    groups: tuple[DeadGroup, ...]
    grouped: int
    """Dead letters that were looked at, the newest events first; at most 5,000."""
    is_whole: bool
    """False: there are older dead letters, or smaller groups."""
    routes: tuple[str, ...]
    """Routes of the configuration."""
    most_grouped: int = MOST_GROUPED


def read_dead(reading: Reading, query: DeadQuery) -> DeadPage:
    """Read the groups."""
    since = query.since.moment if query.since else None
    with reading.database.read() as transaction:
        found = dead_groups(transaction, route=query.route, cause=query.cause, since=since, limit=query.limit)
    return DeadPage(tuple(found.groups), found.grouped, found.is_whole, tuple(sorted(reading.config.routes)))


DEAD = Screen(
    name="dead",
    path="/dead",
    title="Dead letters",
    query=DeadQuery,
    page=DeadPage,
    read=read_dead,
    template="dead.html",
    values={"causes": CAUSES},
    is_live=False,
)
