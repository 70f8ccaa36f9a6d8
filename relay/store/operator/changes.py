"""Replays, retries, cancels and unblocks deliveries for an operator, under the order lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec

from relay.delivery import facts
from relay.delivery.lifecycle import TRANSITIONS, OpenDelivery, State, apply_fact, get_step
from relay.delivery.ordering import has_begun
from relay.delivery.policy import Policies
from relay.operations.table import MOST_OPEN
from relay.store import gates
from relay.store.deliveries import Key, read_deliveries, write_back
from relay.store.operator.selection import GIVEN_UP, Choice, select_keys
from relay.store.reopen import find_open_or_ended, keep_payloads, reinsert_and_settle
from relay.store.sequence import read_heads, read_last_delivered, settle_lanes
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction
from relay.store.work import Work


class Changed(NamedTuple):
    """The result of a batch."""

    number: int
    """Number of changed deliveries or requests."""
    skipped: Mapping[str, int] = {}
    """Number of skipped deliveries or requests by reason."""


def change(
    transaction: Transaction,
    choice: Choice,
    keys: Sequence[Key],
    now: datetime,
    *,
    who: str,
    why: str,
    command: int,
    policies: Policies,
    changed_fields: tuple[str, ...] = (),
) -> Changed:
    """Replay, cancel, unblock or retry these deliveries.

    Deliveries whose state has changed meanwhile, by a claim or by another command, are skipped.

    A replayed delivery begins a new run, bypasses deduplication, and is placed in its lane by its own time: on a `latest`
    route, a newer waiting delivery supersedes it. A retried delivery keeps its attempts and its place in its lane.
    `changed_fields` are those of an edited body.
    """
    act, first = choice.act, keys[0][0]
    said: dict[str, Any] = {"who": who, "why": why, "command": command}
    keys = sorted(select_keys(transaction, choice, keys))

    def make_fact(row: OpenDelivery) -> facts.AnyFact:
        if act == "replay":
            return facts.Replayed(**said, edited_body=choice.selection.edited_body, changed=changed_fields)
        if act == "retry":
            return facts.Rescheduled(due_at=now, was_due_at=row.due_at or now, **said)
        return facts.Cancelled(**said) if act == "cancel" else facts.Unblocked(**said)

    if act == "replay":
        found = find_replayable(transaction, choice, keys, first=first)
        again = [apply_fact(row, make_fact(row), now) for row in found.again]
        reinsert_and_settle(transaction, found.again, again, policies)
        return Changed(len(again), Counter(found.skipped.values()))
    changed = [
        apply_fact(row, fact, now)
        for row in find_open_or_ended(transaction, choice.config, keys)
        if row.state is not State.ENDED and get_step(fact := make_fact(row)) in TRANSITIONS[row.state]
    ]
    # Written before settling, which reads the rest of these lanes.
    write_back(transaction, changed)
    if act != "retry":
        lanes = {(row.route, row.lane) for row in changed}
        write_back(transaction, settle_lanes(transaction, [], policies, now, lanes))
    return Changed(len(changed))


SkipReason = Literal["overtaken", "route_removed", "payload_gone", "unreadable", "rejected"]
"""The reason a replay skips a selected delivery, or a readmission a request."""
SKIP_REASONS: Mapping[SkipReason, str] = {
    "overtaken": "older than the last one sent in their lane; `force` replays them too",
    "route_removed": "ended on a route that is no longer configured; configure it again to replay them",
    "payload_gone": "without headers and body, which retention or erasure deleted; `relay cancel` ends dead ones",
    "unreadable": "have a row that can't be read; `relay verify` names it",
    "rejected": "still rejected",
}


class Replayable(msgspec.Struct, frozen=True):
    """The selected deliveries that a replay takes, and those that it skips."""

    again: Sequence[OpenDelivery]
    """The deliveries to replay."""
    skipped: dict[Key, SkipReason]


def find_replayable(
    transaction: Transaction, choice: Choice, keys: Sequence[Key], *, first: int = 0, locked: bool = True
) -> Replayable:
    """Find these deliveries, and decide which can be replayed. Plans call it without locks, replays with them.

    Without `force`, deliveries that would overwrite the last delivered state with an older one are skipped.
    """
    found = find_open_or_ended(transaction, choice.config, keys, locked=locked)
    possible = [row for row in found if row.state in GIVEN_UP | {State.ENDED}]
    known = {(row.seq, row.route) for row in found}
    skipped: dict[Key, SkipReason] = {key: "route_removed" for key in keys if key not in known}
    if not choice.selection.force:
        skipped |= dict.fromkeys(_find_overtaken(transaction, choice, possible, first, locked=locked), "overtaken")
    kept = keep_payloads(transaction, (row.seq for row in possible), locked=locked)
    skipped |= {(row.seq, row.route): "payload_gone" for row in possible if row.seq not in kept}
    return Replayable([row for row in possible if (row.seq, row.route) not in skipped], skipped)


def _find_overtaken(
    transaction: Transaction, choice: Choice, rows: Sequence[OpenDelivery], first: int, *, locked: bool
) -> set[Key]:
    """Return the deliveries that would overwrite the last delivered state with an older one.

    Deliveries that fetch always carry the newest state. Others would overwrite a newer one whose attempt has begun. They are
    safe if the last delivered one is replayed too, as it then comes last. They are also safe if an earlier batch of the
    command has replayed that one and its attempt has not begun.
    """
    routes = choice.config.routes
    bodies = [row for row in rows if row.route not in routes or routes[row.route].api is None]
    if not bodies:
        return set()
    lanes, now = {(row.route, row.lane) for row in bodies}, transaction.now()
    heads = {(head.route, head.lane): head for head in read_heads(transaction, lanes, locked=locked)}
    behind = {
        (row.seq, row.route)
        for row in bodies
        if (head := heads.get((row.route, row.lane))) and row.position < head.position and has_begun(head, now)
    }
    former = choice.selection.open_on
    lasts = read_last_delivered(
        transaction, lanes if former is None else {*lanes, *((former, lane) for _, lane in lanes)}
    )
    older = {
        (row.seq, row.route): (last.seq, row.route)
        for row in bodies
        for route in (row.route, former)
        if route is not None and (last := lasts.get((route, row.lane))) and row.position < last.position
    }
    wanted = sorted(set(older.values()))
    if not wanted:
        return behind
    begins = read_deliveries(
        transaction, wanted, State.RECEIVED, State.WAITING, State.READY, lock="wait" if locked else "none"
    )
    untouched = {(row.seq, row.route) for row in begins if row.attempt == 0}
    comes_last = select_keys(transaction, choice, wanted, first=first) | untouched
    # one without its payload is skipped, and would not come last
    kept = keep_payloads(transaction, (seq for seq, _ in comes_last), locked=locked)
    comes_last = {key for key in comes_last if key[0] in kept}
    return behind | {key for key, last in older.items() if last not in comes_last}


def find_reason_to_wait(work: Work, act: str, keys: Sequence[Key], *, affected: int) -> str | None:
    """Return the reason why a replay or retry waits: one of its routes has too many due deliveries. None to continue.

    It applies after the first `MOST_OPEN` deliveries. Deliveries behind a closed gate or of a paused entity don't count:
    they may stay due for long, and would hold up the command on all its routes.
    """
    if act not in {"replay", "retry"} or affected < MOST_OPEN:
        return None
    closed = gates.read_gates(work)
    for route in sorted({route for _, route in keys} & work.policies.keys()):
        if closed.admit(work.policies[route].gates) == "all":
            with work.database.read() as transaction:
                due = transaction.execute(_DUE, route=route, most=MOST_OPEN)[0].count
            if due >= MOST_OPEN:
                return f"waits: {MOST_OPEN} deliveries are due on route {route}"
    return None


_DUE = Statement(f"""
SELECT count(*) AS count FROM (
    SELECT 1 FROM open_delivery o
    WHERE o.state = 'ready' AND o.route = :route AND o.due_at <= (SELECT {sql.now}) AND {gates.ENTITY_NOT_PAUSED}
    LIMIT :most) due
""")
