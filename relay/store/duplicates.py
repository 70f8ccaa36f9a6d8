"""Judges duplicate requests: a webhook that arrives again may report a second change that looks like the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from sqlalchemy import text

from inbox.db.dialect import as_list, error_text
from inbox.events.timestamps import as_time
from relay.delivery import facts
from relay.delivery.lifecycle import State, apply_fact
from relay.delivery.ordering import covers
from relay.delivery.policy import LEFT_TO_OTHERS, Policies
from relay.store.deliveries import Key
from relay.store.reopen import find_open_or_ended, keep_payloads, reinsert_and_settle
from relay.store.sequence import read_last_delivered
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction
from relay.store.work import Work, process_in_parts

EVENTS_OF_A_ROUND = 200
ROWS_OF_A_ROUND = 1_000
"""Rows per round, so that the order lock is short. An event usually has few rows, but correctness does not depend on that."""


class Unjudged(msgspec.Struct, frozen=True):
    """Events whose duplicates are not judged yet: seqs after `after`, up to `last`."""

    after: int
    last: int


class Judged(msgspec.Struct, frozen=True):
    """The result of one round."""

    handled: int
    """Rows of `duplicate_request` that were judged."""
    rearmed: int
    """Deliveries that will be attempted again."""
    rest: Unjudged | None = None
    """The events of the next round, which follows at once; None if all were judged."""


def judge_duplicates(work: Work, rest: Unjudged | None = None) -> Judged:
    """Judge the duplicates of some events: the first of `rest`, or of all.

    Events that can't be judged yet, and those of locked routes, are skipped until all others have been judged. Such a walk
    ends, as it excludes events beyond the highest seq at its start.
    """
    with work.database.read() as transaction:
        rest = rest or _all(transaction)
        if rest is None:
            return Judged(0, 0)
        page = transaction.execute(_PAGE, after=rest.after, last=rest.last, rows=ROWS_OF_A_ROUND)
    routes = {row.seq: as_list(row.routes) for row in page}
    found = list(routes)
    is_cut = len(page) == ROWS_OF_A_ROUND  # the last event may have more rows, so it begins the next page
    seqs = (found[:-1] or found if is_cut else found)[:EVENTS_OF_A_ROUND]
    if not seqs:
        return Judged(0, 0)
    parts = process_in_parts(
        work,
        "judge_duplicates",
        seqs,
        process=lambda few: judge(work, {seq: routes[seq] for seq in few}),
        quarantine_one=lambda seq, error: _store_error(work, seq, error),
        name=lambda seq: f"seq={seq}",
        routes_of=lambda seq: {name for _, name in _keys_in_question({seq: routes[seq]}, work.policies)},
    )
    handled, rearmed = 0, 0
    for part in parts:
        handled, rearmed = handled + part.handled, rearmed + part.rearmed
    looked_at_all = not is_cut and seqs == found
    return Judged(handled, rearmed, None if looked_at_all else Unjudged(seqs[-1], rest.last))


def _store_error(work: Work, seq: int, error: Exception) -> Judged:
    """Store the error with this event's duplicates. They are skipped until the error is cleared."""
    with work.write() as transaction:
        transaction.execute(_SET_ASIDE, seq=seq, error=error_text(error))
    return Judged(0, 0)


def judge(work: Work, routes: Mapping[int, Sequence[str]]) -> Judged:
    """Rearm deliveries of these events where a duplicate may report a change that the last success does not include.

    It runs in one transaction, which reads at most 1,000 rows; further ones are judged later. It locks only the routes of
    deliveries that may be rearmed.

    Only on `latest` routes that fetch can a duplicate report a second change; elsewhere it is the same event. A delivery
    that has not fetched yet includes the change anyway. A delivery in flight may have fetched already, so its duplicates
    are judged after it ends. Relays whose configuration has an unknown route get some time to judge its events first.

    Receivers don't take the order lock, and may add duplicates meanwhile, which are judged later. Rows are
    marked by the ids and counts that were read. A range of ids would be unsafe, as ids commit in any order.
    """
    policies = work.policies
    with work.write() as transaction:
        keys = _keys_in_question(routes, policies)
        now = (
            transaction.take_order_lock({route for _, route in keys}, keeps_payloads=True)
            if keys
            else transaction.now()
        )
        repeats = transaction.execute(_UNHANDLED, wanted=sorted(routes), rows=ROWS_OF_A_ROUND)
        newest: dict[int, int] = {}
        for repeat in repeats:
            newest[repeat.seq] = max(repeat.id, newest.get(repeat.seq, 0))
        found = find_open_or_ended(transaction, work.config, [key for key in keys if key[0] in newest])
        lasts = read_last_delivered(transaction, {(row.route, row.lane) for row in found})
        uncovered = [
            row
            for row in found
            if (last := lasts.get((row.route, row.lane))) is None
            or not covers(last, row.position, policies[row.route].skew)
        ]
        undecided = {row.seq for row in uncovered if row.state is State.IN_FLIGHT} | {
            row.seq
            for row in repeats
            if now - as_time(row.came_at) < LEFT_TO_OTHERS and not policies.keys() >= {*routes[row.seq]}
        }
        ended = [row for row in uncovered if row.state in (State.DEAD, State.ENDED) and row.seq not in undecided]
        kept = keep_payloads(transaction, (row.seq for row in ended)) if ended else set()
        again = [apply_fact(row, facts.Rearmed(duplicate=newest[row.seq]), now) for row in ended if row.seq in kept]
        reinsert_and_settle(transaction, found, again, policies)
        decided = [(row.id, row.times) for row in repeats if row.seq not in undecided]
        handled = transaction.execute(_HANDLE, decided=decided, at=now)
    return Judged(len(handled), len(again))


def _all(transaction: Transaction) -> Unjudged | None:
    (newest,) = transaction.execute(_NEWEST)
    return None if newest.seq is None else Unjudged(after=0, last=newest.seq)


def _keys_in_question(routes: Mapping[int, Sequence[str]], policies: Policies) -> list[Key]:
    """Return the deliveries of these events that a duplicate may rearm."""
    return [
        (seq, name)
        for seq, names in routes.items()
        for name in names
        if name in policies and policies[name].ordering == "latest" and policies[name].fetches
    ]


_WAITS = "handled_at IS NULL AND error IS NULL"
_NEWEST = text(f"SELECT max(seq) AS seq FROM duplicate_request WHERE {_WAITS}")
_SET_ASIDE = text("UPDATE duplicate_request SET error = :error WHERE seq = :seq AND handled_at IS NULL")
_PAGE = text(f"""
SELECT r.seq, i.routes FROM duplicate_request r JOIN inbox i ON i.seq = r.seq
WHERE {_WAITS} AND r.seq > :after AND r.seq <= :last ORDER BY r.seq LIMIT :rows
""")


_UNHANDLED = Statement(f"""
SELECT r.id, r.seq, r.times, coalesce(r.last_received_at, r.received_at) AS came_at
FROM {sql.look_up(sql.rows("wanted", seq="bigint"), "duplicate_request r", f"r.seq = wanted.seq AND {_WAITS}")}
ORDER BY r.seq LIMIT :rows
""")

# Skips rows that a receiver is updating: the holder of the order lock must not wait for them.
_HANDLE = Statement(f"""
WITH mine AS MATERIALIZED (
    SELECT r.id
    FROM {sql.rows("decided", id="bigint", times="bigint")}
    JOIN duplicate_request r ON r.id = decided.id AND r.times = decided.times
    {sql.lock("r", skip=True)}
)
UPDATE duplicate_request SET handled_at = {sql.time(":at")}, error = NULL
FROM mine WHERE duplicate_request.id = mine.id
RETURNING duplicate_request.id
""")
