"""Relay nodes: the running relay processes, their heartbeats, and the drain check."""

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
    """Store a started or reloaded relay process with its routes and their gates, for SQL that can't see the configuration."""
    routes = json.dumps({route: policy.gates for route, policy in work.policies.items()})
    own = {"node": work.node, "routes": routes, "config_hash": hash_config(work.config)}
    with work.write() as transaction:
        transaction.execute(_DESCRIBE, host=host, pid=pid, version=version, **own)


def hash_config(config: Config) -> str:
    """Hash the configuration tables that all relays must agree on."""
    shared = [config.apis, config.destinations, config.routes]
    return hashlib.sha256(msgspec.json.encode(shared, enc_hook=_encode, order="deterministic")).hexdigest()


def _encode(value: object) -> str | None:
    """Encode a value. A secret is encoded only as a place or URL, since other values could be guessed from the hash."""
    if isinstance(value, Secret):
        return value.reference if value.names_a_place or "://" in value.reference else None
    return str(value)


def heartbeat(database: Database, node: str, failing: Mapping[str, str] = NOTHING_FAILS) -> None:
    """Store a heartbeat and the failing steps of a relay."""
    told = json.dumps({name: make_storable(error) for name, error in failing.items()}) if failing else None
    with database.write() as transaction:
        transaction.execute(_HEARTBEAT, node=node, failing=told)


def read_nodes(transaction: Transaction, within: float = GONE_SECONDS) -> list[Row]:
    """Read the relays that have not stopped and sent a heartbeat `within` these seconds, with their failing steps."""
    rows = transaction.fetch_rows(_NODES, within=-float(within))
    return [{**row, "failing": as_json(row["failing"]) or {}} for row in rows]


def stop_node(database: Database, node: str) -> None:
    """Store that a relay has stopped gracefully."""
    with database.write() as transaction:
        transaction.execute(_STOP, node=node)


_DESCRIBE = Statement(f"""
INSERT INTO relay_node (id, host, pid, version, started_at, heartbeat_at, routes, config_hash, configured_at)
VALUES (:node, :host, :pid, :version, {sql.now}, {sql.now}, {sql.bound("routes", "jsonb")}, :config_hash, {sql.now})
ON CONFLICT (id) DO UPDATE SET routes = excluded.routes, config_hash = excluded.config_hash, configured_at = CASE
    WHEN relay_node.config_hash = excluded.config_hash THEN relay_node.configured_at ELSE excluded.configured_at END
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
    """Return whether these routes have no received, due or in-flight deliveries.

    Later retries, dead letters and deliveries of paused entities may remain.
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
"""The longest wait for a row. Other writers hold rows briefly, so a longer lock belongs to an operator."""


def flush_figures(database: Database, routes: Mapping[str, Route]) -> None:
    """Write the counts so far, by route and by the destination of each route in `routes`."""
    with database.tally.take() as figures:
        if figures:
            rows = rows_param([*figures, *_add_destinations(figures, routes)])
            with database.write() as transaction:
                transaction.set_lock_timeout(_LOCK_WAIT_MS)
                transaction.execute(add_up(transaction.sql), figures=rows)


def _add_destinations(figures: Iterable[Figure], routes: Mapping[str, Route]) -> Iterator[Figure]:
    for figure in figures:
        if figure["kind"] == ROUTE and figure["name"] in routes:
            yield {**figure, "kind": DESTINATION, "name": routes[figure["name"]].destination}
