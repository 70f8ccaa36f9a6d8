"""Relay nodes: running relay processes, and whether their routes are drained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from inbox.config.model import Config, Route
from inbox.config.values import Secret
from inbox.db.dialect import as_json, make_storable, rows_param
from inbox.db.reads import Row
from inbox.db.throughput import DESTINATION, ROUTE, Figure, add_up
from inbox.events.states import GONE_SECONDS
from relay.store.database import Database
from relay.store.gates import ENTITY_NOT_PAUSED
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction
from relay.store.work import Work

NOTHING_FAILS: Mapping[str, str] = {}


def describe(work: Work, host: str, pid: int, version: str) -> None:
    """Store a relay process that starts, or was reloaded, with its routes and their gates: tables know no configuration."""
    routes = json.dumps({route: policy.gates for route, policy in work.policies.items()})
    own = {"node": work.node, "routes": routes, "config_hash": hash_of(work.config)}
    with work.write() as transaction:
        transaction.execute(_DESCRIBE, host=host, pid=pid, version=version, **own)


def hash_of(config: Config) -> str:
    """Hash the tables that all relays must agree on."""
    shared = [config.apis, config.destinations, config.routes]
    return hashlib.sha256(msgspec.json.encode(shared, enc_hook=_plain, order="deterministic")).hexdigest()


def _plain(value: object) -> str | None:
    """Write a value of the file. Of secrets only places and URLs count: another value could be guessed by its hash."""
    if isinstance(value, Secret):
        return value.reference if value.names_a_place or "://" in value.reference else None
    return str(value)


def heartbeat(database: Database, node: str, failing: Mapping[str, str] = NOTHING_FAILS) -> None:
    """Store its heartbeat, and which of its steps fail."""
    told = json.dumps({name: make_storable(error) for name, error in failing.items()}) if failing else None
    with database.write() as transaction:
        transaction.execute(_HEARTBEAT, node=node, failing=told)


def read_nodes(transaction: Transaction, within: float = GONE_SECONDS) -> list[Row]:
    """Read the relays that have neither stopped in order nor been silent for longer. `failing` has their failing steps."""
    rows = transaction.rows_of(_NODES, within=-float(within))
    return [{**row, "failing": as_json(row["failing"]) or {}} for row in rows]


def stop_node(database: Database, node: str) -> None:
    """Store that it stopped in order."""
    with database.write() as transaction:
        transaction.execute(_STOP, node=node)


_DESCRIBE = Statement(f"""
INSERT INTO relay_node (id, host, pid, version, started_at, heartbeat_at, routes, config_hash)
VALUES (:node, :host, :pid, :version, {sql.now}, {sql.now}, {sql.bound("routes", "jsonb")}, :config_hash)
ON CONFLICT (id) DO UPDATE SET routes = excluded.routes, config_hash = excluded.config_hash
""")


_HEARTBEAT = Statement(
    f"UPDATE relay_node SET heartbeat_at = {sql.now}, failing = {sql.bound('failing', 'jsonb')} WHERE id = :node"
)


_NOW = f"(SELECT {sql.now})"
_NODES = Statement(f"""
SELECT id, host, pid, version, config_hash, started_at, heartbeat_at, failing,
       {sql.seconds_between("heartbeat_at", _NOW)} AS silent_seconds
FROM relay_node
WHERE stopped_at IS NULL AND heartbeat_at > {sql.plus_seconds(_NOW, ":within")}
ORDER BY heartbeat_at DESC, id
""")


_STOP = Statement(f"UPDATE relay_node SET heartbeat_at = {sql.now}, stopped_at = {sql.now} WHERE id = :node")


def is_drained(database: Database, routes: Sequence[str]) -> bool:
    """True when nothing of these routes is received, due or in flight.

    Retries that are due later, dead letters and what waits for paused entities may remain.
    """
    with database.read() as transaction:
        return not transaction.execute(_ANYTHING_TO_DO, routes=routes)


_ANYTHING_TO_DO = Statement(f"""
SELECT 1
FROM {sql.rows("routes", route="text")} JOIN open_delivery o ON o.route = routes.route
WHERE o.state IN ('received', 'in_flight')
   OR (o.state = 'ready' AND o.due_at <= (SELECT {sql.now}) AND {ENTITY_NOT_PAUSED})
LIMIT 1
""")


_LOCK_WAIT_MS = 100
"""Longest wait for a row: other writers hold theirs for a moment, so a longer lock is a person's."""


def flush_figures(database: Database, routes: Mapping[str, Route]) -> None:
    """Write the figures counted so far; `routes` says to which destination each route goes now."""
    with database.tally.take() as figures:
        if figures:
            rows = rows_param([*figures, *_of_destinations(figures, routes)])
            with database.write() as transaction:
                transaction.limit_waits(_LOCK_WAIT_MS)
                transaction.execute(add_up(transaction.sql), figures=rows)


def _of_destinations(figures: Iterable[Figure], routes: Mapping[str, Route]) -> Iterator[Figure]:
    for figure in figures:
        if figure["kind"] == ROUTE and figure["name"] in routes:
            yield {**figure, "kind": DESTINATION, "name": routes[figure["name"]].destination}
