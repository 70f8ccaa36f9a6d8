"""Leftovers of bounded transactions: deliveries that are still to be folded, and dead ones still to be ended.

A settle folds, and a success heals, so many and no more. The rest is worked off here, batch by batch, also in lanes
where nothing else happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, rows_param
from relay.delivery.lifecycle import State
from relay.delivery.policy import Policies
from relay.store.bulkhead import in_parts_by_route
from relay.store.coverage import heal_more, lanes_to_heal, stop_healing
from relay.store.database import Database
from relay.store.lanes import Lane, settle_lanes

OWN_TRANSACTION = 8
"""Lanes of a route that are worth a transaction of their own, under the lock of that route alone."""
_NEXT = "\x01"
"""A lane and this come after the lane, and before each other one."""
LOOKED_AT = 500
"""Waiting deliveries that one look reads: index entries, without a lock."""


class Leftovers:
    """Works off leftovers. Each relay process has one, since it remembers its place in each route."""

    def __init__(self) -> None:
        self._looked_to: dict[str, str] = {}
        self._unfoldable: set[Lane] = set()
        """Lanes that could not be settled; they are skipped."""

    def work_off(self, database: Database, policies: Policies, relay_node: str) -> int:
        """Do a batch of each kind, in transactions of their own.

        Returns:
            How many deliveries were changed; none when there is nothing to do as far as it looked.
        """
        return self._fold(database, policies, relay_node) + _heal(database, policies, relay_node)

    def _fold(self, database: Database, policies: Policies, relay_node: str) -> int:
        """Settle the next unfolded lanes in `latest`: two wait, or one waits behind a head that is not in flight."""
        crowded = self._look(database, [name for name, policy in policies.items() if policy.ordering == "latest"])

        def part(lanes: Sequence[Lane]) -> int:
            with database.write() as transaction:
                now = transaction.lock_order({route for route, _ in lanes})
                folded = settle_lanes(transaction, [], policies, now, lanes)
                transaction.write_back(folded, relay_node)
            return len(folded)

        def alone(lane: Lane, _error: Exception) -> int:
            self._unfoldable.add(lane)
            return 0

        return _by_route(database, crowded, part, alone)

    def _look(self, database: Database, routes: list[str]) -> list[Lane]:
        """Read on from the place of the last look, and find lanes that are not folded."""
        if not routes:
            return []
        most = max(LOOKED_AT // len(routes), 2)
        looked_to = rows_param({"route": route, "lane": self._looked_to.get(route, "")} for route in routes)
        with database.read() as transaction:
            rows = transaction.execute(_waiting_from(database.sql), looked_to=looked_to, most=most)
        waiting = Counter((row.route, row.lane) for row in rows)
        behind_ready = {(row.route, row.lane) for row in rows if row.head == State.READY}
        crowded = [
            lane
            for lane, number in waiting.items()
            if (number > 1 or lane in behind_ready) and not self._is_skipped(lane)
        ]
        for route in routes:
            lanes = [row.lane for row in rows if row.route == route]
            end = ""  # after the last lane it begins again
            if len(lanes) == most:
                last = lanes[-1]
                end = last + _NEXT if self._is_skipped((route, last)) else last
            # A lane that was found is looked at again: there may be more of it than is folded now.
            self._looked_to[route] = next((lane for name, lane in crowded if name == route), end)
        return crowded

    def _is_skipped(self, lane: Lane) -> bool:
        return lane in self._unfoldable


def _heal(database: Database, policies: Policies, relay_node: str) -> int:
    """End more dead deliveries that successes have left; a lane that fails is left to an operator."""
    with database.read() as transaction:
        lanes = lanes_to_heal(transaction)

    def part(some: Sequence[Lane]) -> int:
        with database.write() as transaction:
            now = transaction.lock_order({route for route, _ in some})
            healed = heal_more(transaction, policies, now, some)
            transaction.write_back(healed, relay_node)
        return len(healed)

    def alone(lane: Lane, _error: Exception) -> int:
        with database.write() as transaction:
            stop_healing(transaction, lane)
        return 0

    return _by_route(database, lanes, part, alone)


def _by_route(
    database: Database,
    lanes: Sequence[Lane],
    part: Callable[[Sequence[Lane]], int],
    alone: Callable[[Lane, Exception], int],
) -> int:
    done = in_parts_by_route(
        database,
        "work_off",
        lanes,
        route_of=lambda lane: lane[0],
        part=part,
        alone=alone,
        name=_name,
        enough=OWN_TRANSACTION,
    )
    return sum(done)


def _name(lane: Lane) -> str:
    return f"route={lane[0]} lane={lane[1]!a}"


@cache
def _waiting_from(sql: Sql) -> TextClause:
    """Index entries of waiting deliveries, from a lane on, a fixed number of each route."""
    routes = sql.rows("looked_to", route="text", lane="text")
    following = "o.state = 'waiting' AND o.route = looked_to.route AND o.lane >= looked_to.lane"
    found = sql.first_of(routes, "open_delivery o", following, "o.lane, o.occurred_at, o.seq", ":most")
    return text(f"""
SELECT o.route, o.lane, (
    SELECT h.state FROM open_delivery h
    WHERE h.route = o.route AND h.lane = o.lane AND h.state IN ('ready', 'in_flight', 'blocked')) AS head
FROM {found}
ORDER BY o.route, o.lane
""")
