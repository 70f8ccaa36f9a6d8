"""Repeated requests: a webhook that came again may stand for a second change that looks the same as the first."""

from __future__ import annotations

from functools import cache

import msgspec
from sqlalchemy import TextClause, text

from inbox.config import Config
from inbox.db.dialect import Sql, as_list, rows_param
from inbox.timestamps import time_text
from relay import facts
from relay.lifecycle import OpenDelivery, State, append
from relay.ordering import covers
from relay.policy import policies
from relay.store.coverage import last_delivered
from relay.store.database import Database, Key, Transaction
from relay.store.reopen import find, take_up

BATCH = 200


class Judged(msgspec.Struct, frozen=True):
    """What became of some repeats."""

    handled: int
    rearmed: int
    """Deliveries that are made again."""


def judge_repeats(database: Database, config: Config, relay_node: str) -> Judged:
    """Make deliveries again where a repeat may stand for a change that the last success of the lane does not have in it.

    Only routes in `latest` say "make the other system look like the source", so only there a repeat means anything: on
    a `strict` one it is the same event. A delivery whose fetch is still to come has it anyway; one in flight may have
    fetched already, so its repeat is judged when it has ended.
    """
    with database.read() as transaction:
        if not transaction.execute(_ANY):
            return Judged(0, 0)
    with database.write() as transaction:
        now = transaction.lock_order()
        repeats = transaction.execute(_REPEATS, batch=BATCH)
        routes = _routes_in_latest(transaction, config, {repeat.seq for repeat in repeats})
        found = find(transaction, config, routes)
        uncovered = _uncovered(transaction, config, found)
        undecided = {row.seq for row in uncovered if row.state is State.IN_FLIGHT}
        of_seq = {repeat.seq: repeat.id for repeat in repeats}
        again = [
            append(row, facts.Rearmed(repeat=of_seq[row.seq]), now)
            for row in uncovered
            if row.state in (State.DEAD, State.ENDED)
        ]
        take_up(transaction, found, again, policies(config), relay_node)
        handled = [{"id": repeat.id} for repeat in repeats if repeat.seq not in undecided]
        if handled:
            transaction.execute(_handled(database.sql), handled=rows_param(handled), at=time_text(now))
    return Judged(len(handled), len(again))


def _routes_in_latest(transaction: Transaction, config: Config, seqs: set[int]) -> list[Key]:
    """Of these events, the deliveries on routes in `latest`."""
    wanted = rows_param({"seq": seq} for seq in sorted(seqs))
    return [
        (row.seq, name)
        for row in transaction.execute(_routes(transaction.sql), wanted=wanted)
        for name in as_list(row.routes)
        if name in config.routes and config.ordering_of(config.routes[name]) == "latest"
    ]


def _uncovered(transaction: Transaction, config: Config, found: list[OpenDelivery]) -> list[OpenDelivery]:
    """Those whose change the last success of their lane may not have in it."""
    lasts = last_delivered(transaction, {(row.route, row.lane) for row in found})
    known = policies(config)
    uncovered = []
    for row in found:
        last = lasts.get((row.route, row.lane))
        if last is None or not covers(last, row.key, known[row.route].skew):
            uncovered.append(row)
    return uncovered


_ANY = text("SELECT 1 FROM repeated_request WHERE handled_at IS NULL LIMIT 1")
_REPEATS = text("SELECT id, seq FROM repeated_request WHERE handled_at IS NULL ORDER BY id LIMIT :batch")


@cache
def _routes(sql: Sql) -> TextClause:
    return text(f"""
SELECT i.seq, i.routes FROM {sql.rows("wanted", seq="bigint")} JOIN inbox i ON i.seq = wanted.seq
""")


@cache
def _handled(sql: Sql) -> TextClause:
    return text(f"""
UPDATE repeated_request SET handled_at = {sql.time(":at")}
WHERE id IN (SELECT handled.id FROM {sql.rows("handled", id="bigint")})
""")
