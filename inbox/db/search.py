"""A search of deliveries that ends in time, however many events there are and however few of them match.

It looks through events from the newest down, a window of seqs at a time, and stops when its time is over. Who asks goes on
from there. `inbox.db.listings` has the same conditions, and looks until it has enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, text

from inbox.db.dialect import Sql
from inbox.db.engine import reading
from inbox.db.event_views import status_of
from inbox.db.listings import OF_ENTITY, EventFilter, conditions_on, deliveries_of, sources_of
from inbox.db.parameters import rows_param
from inbox.db.reads import Row
from inbox.events.states import OPEN_STATES, UNROUTED, State
from inbox.events.timestamps import as_time, time_text

LONGEST_SECONDS = 0.15
"""Time of a search for somebody who waits: after it, no further statement begins."""
MOST_OF_A_STATE = 2000
"""As many open deliveries of a state are read at once and put in order; of more, the newest events are looked through."""
_FIRST_CHUNK, _CHUNK = 50, 250
"""The fewest and the most events whose deliveries are read together."""
_FIRST_WINDOW, _LARGEST_WINDOW = 1000, 32_000
_QUICK_SECONDS = 0.015
"""After a window or chunk that took less, the next is twice as large."""
_SLOW_SECONDS = 0.06
"""After a window that took more, the next is half as large: the last one of a search may not take much of its time again."""
_ABOVE_ALL = 2**63 - 1
_CLOCKS_APART = timedelta(hours=1)
"""Clocks of receivers differ by less; seqs are in the order of their arrival, but for this."""
_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_SEQS_APART = 10_000
"""A seq is taken before its event is committed, so an earlier event may have a later seq, by at most so much."""
_NEAR = 1000
"""Seqs to which the place of a time is narrowed down."""


class Found(msgspec.Struct, frozen=True):
    """Deliveries that match, the newest event first."""

    rows: list[Row]
    """About as many as asked for, as an event is never split between pages."""
    before: int | None
    """The seq that the next page lies below, or from which to go on; None: there is no more."""
    matching: int | None
    """All that match, counted until more than `most`; None: not counted, as this is a later page."""
    is_complete: bool
    """False: the time was over before all had been looked through, and before `matching` was beyond `most`."""
    looked_through: int
    """Events, or of an open state deliveries, that were looked through."""


def search(
    engine: Engine,
    wanted: EventFilter,
    *,
    limit: int,
    most: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Search rows of the view `delivery` for about `limit` that match, and count up to `most` + 1.

    It takes little more than `seconds`. A row is missed only where the clocks of receivers differ by more than an hour.
    """
    end = clock() + seconds
    rows: list[Row] = []
    matching, is_full, is_complete, place = 0, False, True, wanted.before
    with engine.connect() as connection:
        walk = _Walk(connection, wanted, clock)
        for seqs, place in walk.chunks():  # noqa: B007  # the last one counts
            for found in deliveries_of(connection, seqs):
                shown = [row for row in found if wanted.admits(row)]
                matching += len(shown)
                is_full = is_full or bool(rows and shown and len(rows) + len(shown) > limit)
                if not is_full:
                    rows += shown
            if matching > most or (is_full and wanted.before is not None):
                break
            if clock() > end:
                is_complete = False
                break
        else:
            place = None
    return Found(
        rows=rows,
        before=rows[-1]["seq"] if is_full else place,
        matching=min(matching, most + 1) if wanted.before is None else None,
        is_complete=is_complete,
        looked_through=walk.looked_through,
    )


class _Walk:
    """Finds seqs of events that may match, downwards."""

    def __init__(self, connection: Connection, wanted: EventFilter, clock: Callable[[], float]) -> None:
        self._connection, self._wanted, self._clock = connection, wanted, clock
        self._sql = Sql(connection.dialect.name)
        self._is_open = wanted.state in OPEN_STATES or wanted.error is not None  # only an open delivery has an error
        self._chunk = min(_FIRST_CHUNK, _CHUNK)
        self.looked_through = 0

    def chunks(self) -> Iterator[tuple[list[int], int]]:
        """Yield some seqs at a time, and the seq below which the next ones lie."""
        below = _ABOVE_ALL if self._wanted.before is None else self._wanted.before
        few = self._few_of_state()
        if few is not None:
            self.looked_through = len(few)
            yield from self._of_these([seq for seq in few if seq < below])
            return
        floor, ceiling = self._bounds()
        below, size = min(below, ceiling), _FIRST_WINDOW
        while below > floor:
            began = self._clock()
            lowest = max(self._lowest(below, size), floor)
            seqs = self._execute(*self._fitting(below, lowest))
            self.looked_through += size if lowest > floor else len(seqs)  # of the last window only what fits is known
            took = self._clock() - began
            if took < _QUICK_SECONDS:
                size = min(2 * size, _LARGEST_WINDOW)
            elif took > _SLOW_SECONDS:
                size = max(size // 2, _FIRST_WINDOW)
            for chunk in self._chunks_of(seqs):
                yield chunk, chunk[-1]
            below = lowest
            if below > floor:
                yield [], below

    def _of_these(self, seqs: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        conditions, values = self._of_event()
        where = " AND ".join(conditions or ["1 = 1"])
        listed = self._sql.rows("wanted", seq="bigint")
        statement = f"SELECT i.seq FROM inbox i WHERE i.seq IN (SELECT wanted.seq FROM {listed}) AND {where} ORDER BY i.seq DESC"
        for chunk in self._chunks_of(seqs):
            yield self._execute(statement, {**values, "wanted": rows_param({"seq": seq} for seq in chunk)}), chunk[-1]

    def _chunks_of(self, seqs: Sequence[int]) -> Iterator[list[int]]:
        at = 0
        while at < len(seqs):
            chunk, began = list(seqs[at : at + self._chunk]), self._clock()
            yield chunk
            at += len(chunk)
            if self._clock() - began < _QUICK_SECONDS:
                self._chunk = min(2 * self._chunk, _CHUNK)

    def _few_of_state(self) -> list[int] | None:
        """Read the seqs in the wanted state, the newest first, from its index; None: it has too many, or none is wanted.

        It reads at most so many rows, however few of them fit: where routes are no prefix of the index, they are looked at after.
        """
        if self._wanted.state not in OPEN_STATES:
            return None
        conditions, values = self._of_open()
        inner = [
            each for each in conditions if each.startswith("o.state") or (each.startswith("o.route") and self._by_route)
        ]
        fits = " AND ".join(each for each in conditions if each not in inner) or "1 = 1"
        few = f"SELECT * FROM open_delivery o WHERE {' AND '.join(inner)} LIMIT :most"
        statement = f"SELECT CASE WHEN {fits} THEN o.seq ELSE -1 END FROM ({few}) o"
        found = self._execute(statement, {**values, "most": MOST_OF_A_STATE + 1})
        return sorted({seq for seq in found if seq >= 0}, reverse=True) if len(found) <= MOST_OF_A_STATE else None

    @property
    def _by_route(self) -> bool:
        return self._wanted.state not in {State.RECEIVED, State.IN_FLIGHT}

    def _lowest(self, below: int, size: int) -> int:
        """Return the lowest seq of a window of that size; -1 when it reaches the end."""
        table, key = self._base
        where = f"{key} < :below"
        if self._sources is not None:
            newest = f"{OF_ENTITY} AND i.seq < :below"
            table, key, where = (
                self._sql.first_of(self._sources, "inbox i", newest, "i.seq DESC", ":most"),
                "i.seq",
                "1 = 1",
            )
        statement = f"SELECT {key} FROM {table} WHERE {where} ORDER BY {key} DESC LIMIT 1 OFFSET :size"
        given = {"below": below, "size": size - 1, "most": size}
        found = self._execute(statement, self._of_event()[1] | given)
        return found[0] if found else -1

    def _fitting(self, below: int, lowest: int) -> tuple[str, dict[str, object]]:
        """Write the statement for the seqs of a window that may match."""
        table, key = self._base
        conditions, values = self._of_event()
        if self._sources is not None:
            bounded = f"{OF_ENTITY} AND i.seq < :below AND i.seq >= :lowest"
            table = self._sql.looked_up(self._sources, "inbox i", bounded)
        is_of_all = table == "inbox i"
        if table.startswith("open"):
            of_open, its = self._of_open()
            conditions += [
                *of_open,
                "i.seq < :below",
                "i.seq >= :lowest",
            ]  # Postgres infers no bounds of a joined column
            values |= its
            table = f"{table} JOIN inbox i ON i.seq = o.seq"
        elif self._is_open:
            of_open, its = self._of_open()
            conditions.append(f"EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = i.seq AND {' AND '.join(of_open)})")
            values |= its
        else:
            of_log, its = self._of_log()
            conditions += of_log
            values |= its
        if is_of_all:  # so that no index is taken for another condition, which SQLite would read for all seqs
            table = f"({_WINDOW}) i"
        where = " AND ".join((*conditions, f"{key} < :below", f"{key} >= :lowest"))
        statement = f"SELECT DISTINCT {key} FROM {table} WHERE {where} ORDER BY {key} DESC"
        return statement, {**values, "below": below, "lowest": lowest}

    @property
    def _sources(self) -> str | None:
        """Return a table of the sources that the wanted entity may be of; None: no one entity is wanted."""
        wanted = self._wanted
        return None if wanted.entity_type is None or wanted.entity_id is None else sources_of(wanted.source)

    @property
    def _base(self) -> tuple[str, str]:
        """Return the table whose rows are looked through in the order of an index, and its key."""
        if self._is_open and self._sources is None:
            return "open_delivery o", "o.seq"
        return "inbox i", "i.seq"

    def _of_event(self) -> tuple[list[str], dict[str, object]]:
        names = ("source", "entity_type", "entity_id", "event_type")
        return conditions_on(self._sql, self._wanted, "i.received_at", names=names, of="i.")

    def _of_open(self) -> tuple[list[str], dict[str, object]]:
        """Return the conditions on an open delivery. The state is written into it, so that its partial index is used."""
        wanted = self._wanted
        conditions = ["1 = 1"] if wanted.state is None else [f"o.state = '{wanted.state}'"]
        values: dict[str, object] = {}
        if wanted.retrying_at is not None:
            conditions.append(f"o.attempt > 0 AND o.due_at > {self._sql.time(':retrying_at')}")
            values["retrying_at"] = time_text(wanted.retrying_at)
        if wanted.routes is not None:
            names = {f"route_{number}": name for number, name in enumerate(sorted(wanted.routes))}
            values |= names
            conditions.append(f"o.route IN ({', '.join(f':{name}' for name in names)})" if names else "1 = 0")
        return conditions, values

    def _of_log(self) -> tuple[list[str], dict[str, object]]:
        """Return conditions that an event with such a delivery meets, by its facts."""
        wanted, sql = self._wanted, self._sql
        if wanted.state == UNROUTED:
            return [f"NOT EXISTS (SELECT 1 FROM {table} t WHERE t.seq = i.seq)" for table in _OF_DELIVERIES], {}
        values: dict[str, object] = {}
        of_fact: list[str] = []
        if wanted.state is not None:
            of_fact.append("f.kind = :state")
            values["state"] = wanted.state
        if wanted.status is not None:
            of_fact.append(f"CAST({status_of('f', sql.name)} AS int) = :status")
            values["status"] = wanted.status
        has_route = "" if wanted.routes is None else f" AND {{}}.route IN ({self._routes(values)})"
        fact = "EXISTS (SELECT 1 FROM delivery_log f WHERE f.seq = i.seq{} AND {})"
        if of_fact:
            return [fact.format(has_route.format("f"), " AND ".join(of_fact))], values
        if not has_route:
            return [], values
        opened = f"EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = i.seq{has_route.format('o')})"
        return [f"({opened} OR {fact.format(has_route.format('f'), '1 = 1')})"], values

    def _routes(self, values: dict[str, object]) -> str:
        values["routes"] = rows_param({"name": name} for name in self._wanted.routes or ())
        return f"SELECT name FROM {self._sql.rows('routes', name='text')}"

    def _bounds(self) -> tuple[int, int]:
        """Return the seqs between which the wanted times lie."""
        since, until = self._wanted.since, self._wanted.until
        early, late = _EARLIEST + _CLOCKS_APART, _LATEST - _CLOCKS_APART
        floor = 0 if since is None or since < early else self._place(since - _CLOCKS_APART) - _SEQS_APART
        ceiling = _ABOVE_ALL if until is None or until > late else self._place(until + _CLOCKS_APART) + _SEQS_APART
        return max(floor, 0), ceiling

    def _place(self, moment: datetime) -> int:
        """Return about the lowest seq received at or after this time. Each look takes one row by the primary key."""
        low, high = 0, 1 + max(self._execute("SELECT max(seq) FROM inbox", {})[0] or 0, 0)
        while high - low > _NEAR:
            middle = (low + high) // 2
            found = self._execute(_RECEIVED, {"seq": middle})
            low, high = (middle, high) if not found or as_time(found[0]) < moment else (low, middle)
        return high

    def _execute(self, statement: str, values: dict[str, object]) -> list[Any]:
        with reading(self._connection).begin():
            return list(self._connection.execute(text(statement), values).scalars())


_OF_DELIVERIES = ("open_delivery", "delivery_log")
_WINDOW = (
    f"SELECT * FROM inbox w WHERE w.seq < :below AND w.seq >= :lowest ORDER BY w.seq DESC LIMIT {2 * _LARGEST_WINDOW}"
)
"""Events of a window, with some that were committed meanwhile. The limit keeps planners from merging it with conditions."""
_RECEIVED = "SELECT received_at FROM inbox WHERE seq <= :seq ORDER BY seq DESC LIMIT 1"
