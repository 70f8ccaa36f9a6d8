"""Selections of operators: their validation, and the deliveries that match their conditions.

Events are found by an index, page by page; then all their deliveries are read, and `Choice.select_from` keeps those that
meet the conditions. So a plan, a batch and the check within its transaction select the same deliveries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import MAXYEAR, MINYEAR
from functools import cache
from typing import Any, Literal, cast

import msgspec
from sqlalchemy import text

from inbox.config.mistakes import nearest
from inbox.config.model import Config
from inbox.config.routing import matches
from inbox.db.listing import OF_ENTITY, list_sources
from inbox.db.reads import Row
from inbox.events.states import (
    CANCELLED_BY_STATE,
    DEAD_STATES,
    OPEN_STATES,
    REPLAYED_BY_STATE,
    RETRYING,
    UNROUTED,
    State,
)
from relay.operations.asks import Selection
from relay.store.deliveries import Key
from relay.store.statement import AnyStatement, Statement, sql
from relay.store.transaction import Transaction
from relay.store.work import Work, process_in_parts

_CANDIDATES = 200
"""Minimum number of events to look up together."""
_MOST_LOOK_UPS = 50
"""Maximum number of look-ups for one page, as the caller has other work too."""
_WINDOW = 20_000
"""Number of events, of any source, to search at a time for those of one source."""

Act = Literal["replay", "cancel", "unblock", "retry"]
Which = Literal["dead", "ended or dead", "backfill", "not begun", "blocked", "due later"]
"""The kind of deliveries that a command selects."""
Rows = Literal["open", "ended or dead", "backfill"]
"""The deliveries of an event to read: open ones, all of them, or the one on the route of a backfill."""

GIVEN_UP = frozenset({State.DEAD, State.BLOCKED})
_OPEN: Mapping[Which, Collection[str]] = {
    "dead": GIVEN_UP,
    "not begun": {*OPEN_STATES} - {State.IN_FLIGHT},
    "blocked": {State.BLOCKED},
    "due later": {State.READY},
}
"""The open states of each kind. The other two kinds also include deliveries without a row in `open_delivery`."""
_OF_STATE: Mapping[str, Which] = {State.DEAD: "dead", State.BLOCKED: "blocked", RETRYING: "due later"}
"""The kind that a cancel selects for each state; for other states, it selects `not begun`."""
_EQUAL = ("source", "entity_type", "entity_id", "event_type", "state", "cause", "status", "error_sha256")
"""Conditions that require equality with the column of the same name."""


def list_keys(rows: Iterable[Row]) -> list[Key]:
    """Return seq and route of each row."""
    return [(int(row["seq"]), str(row["route"])) for row in rows]


class Choice(msgspec.Struct, frozen=True):
    """An act and its selection, under one configuration."""

    act: Act
    selection: Selection
    config: Config
    until_seq: int | None = None
    """The highest seq when the command was requested, as later events are skipped; None for a plan."""

    @property
    def mistake(self) -> str | None:
        """The reason why the selection is invalid, other than unknown names; None if it is valid."""
        return next(self._mistakes(), None)

    def _mistakes(self) -> Iterator[str]:
        chosen = self.selection
        for name, moment in (("since", chosen.since), ("until", chosen.until)):
            if moment is not None and not MINYEAR < moment.year < MAXYEAR:
                yield f"{name} the year {moment.year}? Name one between {MINYEAR + 1} and {MAXYEAR - 1}"
        if chosen.entity_id is not None and chosen.entity_type is None:
            yield "an entity is named by its type and its id"
        if chosen.open_on is not None and not chosen.backfill:
            yield "open_on is for a backfill: relay replay --route NEW --backfill --open-on OLD"
        yield from self._check_backfill() if chosen.backfill else self._check_state()

    def _check_backfill(self) -> Iterator[str]:
        chosen, routes = self.selection, self.config.routes
        if chosen.route not in routes:
            yield f"a backfill of which route? Configured are: {', '.join(sorted(routes)) or 'none'}"
        if chosen.is_about_failures or (chosen.source, chosen.destination, chosen.api) != (None, None, None):
            yield "a backfill takes all deliveries of its route: omit source, destination, api, cause, status and error"
        if chosen.state is not None:
            yield "a backfill takes every state: omit the state"
        if chosen.open_on in routes:
            yield f"route {chosen.open_on} is configured, so relays deliver there: open_on names a route that is gone"

    def _check_state(self) -> Iterator[str]:
        chosen, state = self.selection, self.selection.state
        known = CANCELLED_BY_STATE if self.act == "cancel" else REPLAYED_BY_STATE
        if state is None:
            return
        if state not in known:
            yield f"a {self.act} can't select the state {state!r}; {nearest(state, known)}"
        if chosen.is_about_failures and state not in {*DEAD_STATES, RETRYING}:
            yield f"a delivery that is {state} has no failure: omit cause, status and error"
        if self.act == "replay" and state not in DEAD_STATES and not chosen.names_events:
            yield "to replay ended deliveries, name events or one entity, or backfill a route"

    @property
    def which(self) -> Which:
        """The kind of deliveries that the act selects."""
        if self.act == "retry":
            return "due later"
        if self.act == "cancel" and self.selection.state is not None:
            return _OF_STATE.get(self.selection.state, "not begun")
        if self.act == "cancel":
            return "dead" if self.selection.is_about_failures else "not begun"
        if self.act == "unblock":
            return "blocked"
        if self.selection.backfill:
            return "backfill"
        return "dead" if self.selection.dead_only else "ended or dead"

    @property
    def open_states(self) -> tuple[str, ...]:
        """The states of the open deliveries that the act selects."""
        state = self.selection.state
        return (state,) if state in OPEN_STATES else tuple(sorted(_OPEN[self.which]))

    @property
    def seqs(self) -> list[int] | None:
        """The events that the selection names; None without names. With several ways of naming, all must match."""
        chosen = self.selection
        one = None if chosen.seq is None else {chosen.seq}
        some = None if chosen.seqs is None else {*chosen.seqs}
        of_some = None if chosen.deliveries is None else {int(each.partition("/")[0]) for each in chosen.deliveries}
        named = [seqs for seqs in (one, some, of_some) if seqs is not None]
        return sorted(set.intersection(*named)) if named else None

    @property
    def routes(self) -> set[str] | None:
        """The routes that the selection names, by name, destination or api; None for any."""
        chosen = self.selection
        named = None if chosen.route is None else {chosen.route}
        if chosen.destination is None and chosen.api is None:
            return named
        there = {
            name
            for name, route in self.config.routes.items()
            if chosen.destination in {None, route.destination} and chosen.api in {None, route.api}
        }
        return there if named is None else there & named

    def select_from(self, rows: Iterable[Row]) -> list[Row]:
        """Return the rows that meet every condition. Pure."""
        chosen, which, routes, seqs = self.selection, self.which, self.routes, self.seqs
        equal = {name: getattr(chosen, name) for name in _EQUAL if getattr(chosen, name) is not None}
        if chosen.state == RETRYING:
            del equal["state"]
        if chosen.status is not None:
            equal["status"] = str(chosen.status)
        at = "failed_at" if which in {"dead", "blocked", "due later"} else "received_at"

        def fits(row: Row) -> bool:
            moment = row[at] or row["received_at"]
            return (
                self._is_of(row, which)
                and (seqs is None or row["seq"] in seqs)
                and (routes is None or row["route"] in routes)
                and (chosen.deliveries is None or f"{row['seq']}/{row['route']}" in chosen.deliveries)
                and all(_value(row, name) == value for name, value in equal.items())
                and (chosen.since is None or moment >= chosen.since)
                and (chosen.until is None or moment < chosen.until)
                and (chosen.until_fact is None or row["last_change"] <= chosen.until_fact)
                and (chosen.error is None or chosen.error.lower() in str(row["error"] or "").lower())
            )

        return [row for row in rows if fits(row)]

    def _is_of(self, row: Row, which: Which) -> bool:
        state = row["state"]
        if which in _OPEN:
            return state in _OPEN[which] and (which != "due later" or bool(row["is_later"]))
        route = self.config.routes[str(self.selection.route)] if which == "backfill" else None
        if route is not None and row["source"] != route.source:  # named events or entities may have another source
            return False
        if state == UNROUTED:
            return route is not None and matches(route.when, row["entity_type"], row["event_type"], row["action"])
        if self.selection.open_on is not None:
            return False
        return state not in OPEN_STATES or state in GIVEN_UP


def _value(row: Row, name: str) -> object:
    if name == "error_sha256":
        return None if row["error"] is None else hashlib.sha256(row["error"].encode()).hexdigest()
    return row[name]


# --- the selected deliveries


class SelectedPage(msgspec.Struct, frozen=True):
    """The next selected deliveries, in the order of their keys."""

    rows: Sequence[Row]
    unreadable: Mapping[int, Exception] = {}
    """Events whose deliveries can't be read, with the errors."""
    upto: int | None = None
    """The seq after which to continue; None at the end."""


def read_page(
    work: Work, choice: Choice, *, after: int, most: int, is_late: Callable[[], bool] = lambda: False
) -> SelectedPage:
    """Read about `most` selected deliveries of the next events after the seq `after`, without splitting an event.

    Each transaction looks up only some events. After many events without a selected delivery, or once `is_late` returns
    True, the page may be empty, and `upto` is the seq after which to continue.
    """
    found: list[Row] = []
    unreadable: dict[int, Exception] = {}
    upto: int | None = after

    def look(seqs: Sequence[int]) -> list[Row]:
        with work.database.read() as transaction:
            return _read(transaction, choice, seqs)

    def fail(seq: int, error: Exception) -> list[Row]:
        unreadable[seq] = error
        return []

    for _ in range(_MOST_LOOK_UPS):
        with work.database.read() as transaction:
            seqs, upto = _next(transaction, choice, after, max(most, _CANDIDATES))
        for rows in process_in_parts(
            work, "commands", seqs, process=look, quarantine_one=fail, name=lambda seq: f"seq={seq}"
        ):
            found += rows
        if len(found) > most:
            last = found[most]["seq"]
            found = [row for row in found if row["seq"] < last] or [row for row in found if row["seq"] == last]
            upto = int(found[-1]["seq"])
        if upto is None or len(found) >= most or is_late():
            break
        after = upto
    return SelectedPage(found, {seq: error for seq, error in unreadable.items() if upto is None or seq <= upto}, upto)


def select_keys(transaction: Transaction, choice: Choice, keys: Iterable[Key], *, first: int = 0) -> set[Key]:
    """Return those of these deliveries that are selected, from the event `first` on.

    Deliveries before the batch that begins with `first` don't count: an earlier batch has replayed them, so they may be
    delivered by now and won't come last.
    """
    until = choice.until_seq
    wanted = {key for key in keys if key[0] >= first and (until is None or key[0] <= until)}
    return wanted & {*list_keys(_read(transaction, choice, sorted({seq for seq, _ in wanted})))}


def _next(transaction: Transaction, choice: Choice, after: int, most: int) -> tuple[list[int], int | None]:
    """Find the next events that may be selected, and the seq after which to continue; None at the end."""
    if choice.seqs is not None:
        statement, found = None, [seq for seq in choice.seqs if seq > after][:most]
    else:
        statement, given = _select_events(choice)
        found = [row.seq for row in transaction.execute(statement, after=after, most=most, **given)]
    upto = found[-1] if len(found) == most else None
    if upto is None and statement is NEXT_OF_SOURCE:
        upto = transaction.execute(END_OF_WINDOW, after=after)[0].seq
    if choice.until_seq is not None and (upto is None or upto >= choice.until_seq):
        found, upto = [seq for seq in found if seq <= choice.until_seq], None
    return sorted({*found}), upto


def _select_events(choice: Choice) -> tuple[AnyStatement, dict[str, Any]]:
    """Return the statement that finds the next events for a choice without named events, and its parameters."""
    chosen = choice.selection
    if chosen.entity_id is not None:
        entity = {"source": chosen.source, "entity_type": chosen.entity_type, "entity_id": chosen.entity_id}
        return OF_ONE_ENTITY[chosen.source is not None], {name: value for name, value in entity.items() if value}
    if chosen.open_on is not None:
        return next_open(_CAN_MOVE, is_later=False, on_routes=True), {"routes": {chosen.open_on}}
    if choice.which == "backfill":
        return NEXT_OF_SOURCE, {"of_source": choice.config.routes[str(chosen.route)].source}
    routes = {} if choice.routes is None else {"routes": choice.routes}
    return next_open(choice.open_states, is_later=choice.which == "due later", on_routes=bool(routes)), routes


def _read(transaction: Transaction, choice: Choice, seqs: Sequence[int]) -> list[Row]:
    """Read the selected deliveries of these events."""
    if not seqs:
        return []
    if choice.selection.open_on is not None:
        seqs = [row.seq for row in transaction.execute(_OPEN_ON, wanted=seqs, route=choice.selection.open_on)]
    which: Rows = "open" if choice.which in _OPEN else cast("Rows", choice.which)
    given = {"route": choice.selection.route} if which == "backfill" else {}
    return choice.select_from(transaction.fetch_rows(DELIVERIES[which], wanted=seqs, **given))


def count_unmoved(transaction: Transaction, former: str, route: str | None) -> dict[str, int]:
    """Count by state the deliveries that are open on a former route, and that the new one never took."""
    return {row.state: row.number for row in transaction.execute(_UNMOVED, former=former, route=route)}


_NEXT = f"SELECT n.seq, n.source FROM inbox n WHERE n.seq > :after ORDER BY n.seq LIMIT {_WINDOW}"
NEXT_OF_SOURCE = text(
    f"SELECT found.seq FROM ({_NEXT}) found WHERE found.source = :of_source ORDER BY found.seq LIMIT :most"
)
END_OF_WINDOW = text(f"SELECT CASE WHEN count(*) = {_WINDOW} THEN max(found.seq) END AS seq FROM ({_NEXT}) found")


_OF_ENTITY = f"{OF_ENTITY} AND i.seq > :after"
OF_ONE_ENTITY = {
    of_source: Statement(f"""
SELECT i.seq FROM {sql.select_first(list_sources("source" * of_source or None), "inbox i", _OF_ENTITY, "i.seq", ":most")}
ORDER BY i.seq LIMIT :most
""")
    for of_source in (False, True)
}


@cache
def next_open(states: tuple[str, ...], *, is_later: bool, on_routes: bool) -> Statement:
    """Return the statement for the next open deliveries in these states, which are literals so that it uses an index."""
    later = f"AND o.due_at > (SELECT {sql.now})" if is_later else ""
    routes = f"AND o.route IN (SELECT routes.value FROM {sql.rows('routes', value='text')})" if on_routes else ""
    return Statement(f"""
SELECT o.seq FROM open_delivery o
WHERE o.state IN ({", ".join(f"'{state}'" for state in states)}) {later} AND o.seq > :after {routes}
ORDER BY o.seq
LIMIT :most
""")


_WANTED = sql.rows("wanted", seq="bigint")
_CAN_MOVE = tuple(state for state in OPEN_STATES if state != State.IN_FLIGHT)
_OPEN_ON = Statement(f"""
SELECT o.seq FROM {sql.look_up(_WANTED, "open_delivery o", "o.seq = wanted.seq AND o.route = :route")}
WHERE o.state <> '{State.IN_FLIGHT}'
""")
_UNMOVED = Statement(
    " UNION ALL ".join(  # literals of states, and maxima that Postgres turns into no joins, so that it uses indexes
        f"""
SELECT '{state}' AS state, count(*) AS number FROM open_delivery o
WHERE o.state = '{state}' AND o.route = :former
  AND (SELECT max(n.seq) FROM open_delivery n WHERE n.seq = o.seq AND n.route = :route) IS NULL
  AND (SELECT max(f.id) FROM delivery_log f WHERE f.seq = o.seq AND f.route = :route AND f.kind <> 'erased') IS NULL
"""
        for state in OPEN_STATES
    )
)
_KEYS: Mapping[Rows, str] = {
    "open": f"SELECT o.seq, o.route FROM {sql.look_up(_WANTED, 'open_delivery o', 'o.seq = wanted.seq')}",
    "ended or dead": f"SELECT DISTINCT f.seq, f.route FROM {sql.look_up(_WANTED, 'delivery_log f', 'f.seq = wanted.seq')}",
    "backfill": f"SELECT wanted.seq, {sql.bound('route', 'text')} AS route FROM {_WANTED}",
}
_LAST = "SELECT max(f.id) FROM delivery_log f WHERE f.seq = i.seq AND f.route = k.route AND f.kind"
_OF = sql.number("t.detail ->> 'of'")
_OLDER = f"(SELECT {_OF} FROM delivery_log t WHERE t.id = ({_LAST} = 'took_over'))"
_OF_OLDER = f"SELECT max(f.id) FROM delivery_log f WHERE f.seq = {_OLDER} AND f.route = k.route AND f.kind"
# Each row has the fact of its last failure: the death, or the last failed attempt of a ready one. A delivery that took over
# the retries of an older one, and has not failed itself, has the failure of the older one. `last_change` is the id of the
# newest fact, except facts that do not affect a replay.
DELIVERIES = {
    which: Statement(f"""
SELECT i.seq, k.route, o.lane, coalesce(o.state, l.kind, '{UNROUTED}') AS state, coalesce(o.attempt, l.attempt, 0) AS attempts,
       o.due_at, o.due_at > (SELECT {sql.now}) AS is_later, i.source, i.entity_type, i.entity_id, i.event_type, i.action,
       i.occurred_at, i.received_at, e.at AS failed_at, coalesce(e.detail ->> 'cause', e.detail ->> 'error_class') AS cause,
       CAST({sql.extract_status("e")} AS text) AS status, e.detail ->> 'error' AS error,
       coalesce(({_LAST} NOT IN ('erased', 'unblocked')), 0) AS last_change
FROM {sql.look_up(f"({keys}) k", "inbox i", "i.seq = k.seq")}
LEFT JOIN open_delivery o ON o.seq = i.seq AND o.route = k.route
LEFT JOIN delivery_log l ON l.id = ({_LAST} <> 'erased')
LEFT JOIN delivery_log e ON e.id = CASE
    WHEN o.state IN ('dead', 'blocked') THEN ({_LAST} = 'dead')
    WHEN o.state = 'ready' THEN coalesce(({_LAST} = 'attempt_failed'), ({_OF_OLDER} = 'attempt_failed')) END
ORDER BY i.seq, k.route
""")
    for which, keys in _KEYS.items()
}
"""Statements that read the deliveries of the events `wanted`: open ones, all, or those on the route of a backfill."""
