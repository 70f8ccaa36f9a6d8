"""Rows of deliveries that somebody keeps locked, so that a transaction works on the others."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from psycopg.errors import LockNotAvailable
from sqlalchemy import TextClause, text
from sqlalchemy.exc import OperationalError

from inbox.db.dialect import Sql
from relay.delivery.lifecycle import OpenDelivery
from relay.delivery.policy import UNKNOWN_ROUTE, Policies
from relay.store.lanes import MOST_FOLDED, Lane, lanes_param
from relay.store.transaction import ROW, Key, Transaction, as_open_delivery, keys_param

LOCKED = OperationalError("", None, LockNotAvailable("somebody has locked a delivery"))
"""The error to tell of them."""


def locked_rows(
    transaction: Transaction, keys: Iterable[Key], lanes: Iterable[Lane], policies: Policies
) -> list[OpenDelivery]:
    """Return which of these deliveries are locked, and what is locked of the rest that settling these lanes may change.

    Call it under the order lock, on Postgres. It waits for none, and locks the others. No other relay locks one that is
    received, or that waits; claims and renewals of leases lock the others for a moment.
    """
    settled = {*lanes}
    latest = {lane for lane in settled if policies.get(lane[0], UNKNOWN_ROUTE).ordering == "latest"}
    found = transaction.execute(
        _locked_rows(transaction.sql),
        keys=keys_param(keys),
        lanes=lanes_param(settled),
        latest=lanes_param(latest),
        strict=lanes_param(settled - latest),
        most=max(MOST_FOLDED // max(len(latest), 1), 2),
    )
    return [as_open_delivery(row) for row in found]


@cache
def _locked_rows(sql: Sql) -> TextClause:
    """On `strict` the first that waits is changed only where it may become the head: where none but `keys` is before it."""
    lanes, latest, strict = (sql.rows(name, route="text", lane="text") for name in ("lanes", "latest", "strict"))
    head = "o.route = lanes.route AND o.lane = lanes.lane AND o.state IN ('ready', 'in_flight', 'blocked')"
    waiting = "o.route = latest.route AND o.lane = latest.lane AND o.state = 'waiting'"
    waiting_strictly = "o.route = strict.route AND o.lane = strict.lane AND o.state = 'waiting'"
    order = "o.occurred_at, o.seq"
    return text(f"""
WITH given AS MATERIALIZED (
    SELECT {ROW} FROM {sql.deliveries("keys")}
), wanted AS MATERIALIZED (
    SELECT {ROW} FROM given o
    UNION
    SELECT {ROW} FROM {sql.looked_up(lanes, "open_delivery o", head)} WHERE o.state = 'ready'
    UNION
    SELECT {ROW} FROM {sql.first_of(latest, "open_delivery o", waiting, order, ":most")}
    UNION
    SELECT {ROW} FROM {sql.first_of(strict, "open_delivery o", waiting_strictly, order, "1")}
    WHERE NOT EXISTS (
        SELECT 1 FROM open_delivery h
        WHERE h.route = o.route AND h.lane = o.lane AND h.state IN ('ready', 'in_flight', 'blocked')
          AND (h.seq, h.route) NOT IN (SELECT seq, route FROM given)
          AND (h.state <> 'ready' OR (h.occurred_at, h.seq) < (o.occurred_at, o.seq)))
), free AS MATERIALIZED (
    SELECT o.seq, o.route FROM {sql.looked_up("wanted", "open_delivery o", "o.seq = wanted.seq AND o.route = wanted.route")}
    FOR UPDATE OF o SKIP LOCKED
)
SELECT {ROW} FROM wanted o WHERE NOT EXISTS (SELECT 1 FROM free WHERE free.seq = o.seq AND free.route = o.route)
""")
