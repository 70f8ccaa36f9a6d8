"""Finds deliveries in any state, ended ones too, and takes them up again. Call under the order lock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import TextClause, text

from inbox.config.model import Config
from inbox.config.routing import lane_of
from inbox.db.dialect import Sql, rows_param
from inbox.errors import UnreadableLog
from inbox.events.timestamps import as_time
from relay.delivery import facts
from relay.delivery.lifecycle import OpenDelivery, State, fold
from relay.delivery.policy import Policies
from relay.store.deliveries import ROW, Key, as_open_delivery, fields_param, keys_param, run_begins, write_back
from relay.store.events import payload_rows
from relay.store.sequence import settle_lanes
from relay.store.transaction import Transaction


def find(transaction: Transaction, config: Config, keys: Sequence[Key], *, locked: bool = True) -> list[OpenDelivery]:
    """Find these deliveries: from their row, which is locked, or from the facts of their last run and the configuration.

    One that has ended on a route which is not configured any more is left out: there is nowhere to send it.

    Raises:
        UnreadableLog: one without a row has a fact that this version can't read.
    """
    if not keys:
        return []
    wanted = rows_param({"seq": seq, "route": route} for seq, route in keys)
    present = [
        as_open_delivery(row) for row in transaction.execute(_present(transaction.sql, locked=locked), wanted=wanted)
    ]
    there = {(row.seq, row.route) for row in present}
    absent = keys_param(key for key in keys if key not in there)
    history: dict[Key, list[Any]] = defaultdict(list)
    for row in transaction.execute(_history(transaction.sql), wanted=absent):
        history[row.seq, row.route].append(row)
    return present + [
        _from_facts(event, [_decoded(row) for row in history[event.seq, event.route]], config)
        for event in transaction.execute(_events(transaction.sql), wanted=wanted)
        if (event.seq, event.route) not in there and event.route in config.routes
    ]


def keep_payloads(transaction: Transaction, seqs: Iterable[int], *, locked: bool = True) -> set[int]:
    """Return which of these events still have their payload; with `locked`, none goes before the transaction ends.

    Raises:
        RuntimeError: the transaction was to lock them, and did not do so when it took the order lock.
    """
    if locked and not transaction.has_payloads:
        raise RuntimeError("take the order lock with keeps_payloads before deliveries are opened again")
    return {row.seq for row in payload_rows(transaction, seqs, "seq")}


def take_up(
    transaction: Transaction,
    found: Iterable[OpenDelivery],
    again: Sequence[OpenDelivery],
    policies: Policies,
) -> None:
    """Give `again`, which are of those that were `found`, with the fact that takes each up, their places in their lanes."""
    ended = {(row.seq, row.route) for row in found if row.state is State.ENDED}
    reopened = [row for row in again if (row.seq, row.route) in ended]
    if reopened:
        insert(transaction, reopened)
    write_back(transaction, settle_lanes(transaction, again, policies, transaction.now()))


def insert(transaction: Transaction, deliveries: Iterable[OpenDelivery]) -> None:
    """Insert rows of these deliveries, as received; settling their lanes gives them their state."""
    transaction.execute(_insert(transaction.sql), new=fields_param(deliveries, _NEW))


def _decoded(row: Any) -> facts.AnyFact:  # noqa: ANN401  # a result row
    try:
        return facts.decode(row.kind, row.detail)
    except (msgspec.MsgspecError, RecursionError) as error:
        if row.kind not in facts.KINDS:
            raise UnreadableLog(f"fact {row.id}, a {row.kind}, is of a newer version: let that do it") from error
        raise UnreadableLog(f"fact {row.id}, a {row.kind}, can't be read: relay rebuild puts that right") from error


def _from_facts(event: Any, history: Sequence[facts.AnyFact], config: Config) -> OpenDelivery:  # noqa: ANN401  # a result row
    standing = fold(history)
    lane = lane_of(
        config.routes[event.route], entity_type=event.entity_type, entity_id=event.entity_id, key=event.dedup_key
    )
    return OpenDelivery(
        seq=event.seq,
        route=event.route,
        lane=lane,
        occurred_at=as_time(event.occurred_at),
        state=standing.state if history else State.ENDED,  # its event has not taken this route so far
        attempt=standing.attempt,
        run=standing.run,
    )


def _wanted(sql: Sql) -> str:
    return sql.rows("wanted", seq="bigint", route="text")


@cache
def _present(sql: Sql, *, locked: bool = True) -> TextClause:
    lock = sql.for_update and "FOR UPDATE OF o" if locked else ""
    return text(f"""
SELECT {ROW}
FROM {sql.deliveries("wanted")}
ORDER BY o.seq, o.route
{lock}
""")


@cache
def _history(sql: Sql) -> TextClause:
    return text(f"""
SELECT l.seq, l.route, l.id, l.kind, CAST(l.detail AS text) AS detail
FROM {_wanted(sql)} JOIN delivery_log l ON l.seq = wanted.seq AND l.route = wanted.route
    AND l.id >= {run_begins("wanted.seq", "wanted.route")}
ORDER BY l.id
""")


@cache
def _events(sql: Sql) -> TextClause:
    return text(f"""
SELECT i.seq, wanted.route, i.entity_type, i.entity_id, i.dedup_key, i.occurred_at
FROM {_wanted(sql)} JOIN inbox i ON i.seq = wanted.seq
ORDER BY i.seq, wanted.route
""")


_NEW = {"seq": "bigint", "route": "text", "lane": "text", "occurred_at": "time", "run": "int"}


@cache
def _insert(sql: Sql) -> TextClause:
    return text(f"""
INSERT INTO open_delivery (seq, route, lane, occurred_at, state, run)
SELECT seq, route, lane, occurred_at, 'received', run FROM {sql.rows("new", **_NEW)}
""")
