"""Pulls in times of leases, gates, sweeps and alerts that lie further ahead than any rule allows. There are few of them.

They were set while the database's clock ran ahead, or by hand. `relay.delivery.time_bounds` says how far a time may lie
ahead. An index or a small table finds all of them, and one transaction changes at most `BATCH` rows.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache
from typing import NamedTuple

import msgspec
from sqlalchemy import TextClause, text

from inbox.config.model import Api, Config
from inbox.db.dialect import Sql, rows_param
from inbox.events.timestamps import as_time, time_text
from relay.delivery.audit import Difference
from relay.delivery.gates import LONGEST_HOLD, GateKey
from relay.delivery.policy import Policies, breaker_limits, limits_of
from relay.delivery.rate_holds import longest_holds
from relay.delivery.time_bounds import SLACK, breaker_within, within
from relay.store.alerts import POST_AGAIN_AFTER, POSTED_WITHIN
from relay.store.claim import PROBE_GIVEN_UP_AFTER
from relay.store.database import Database
from relay.store.gates import GATE_COLUMNS, as_breaker
from relay.store.leases import LEASE_SECONDS
from relay.store.sweeps import lease_seconds
from relay.store.transaction import Transaction

BATCH = 500


class TooFarAhead(msgspec.Struct, frozen=True):
    """A time that lies further ahead than any rule allows."""

    column: str
    about: str
    stored: datetime
    furthest: datetime
    seq: int | None = None
    route: str | None = None

    @property
    def difference(self) -> Difference:
        """The same as a finding of `relay verify`."""
        said, stored = f"{self.column} not after {self.furthest}", f"{self.stored} of {self.about}"
        return Difference("ahead", self.seq, self.route, None, said, stored)


def times_too_far_ahead(transaction: Transaction, config: Config, policies: Policies) -> list[TooFarAhead]:
    """Leases, alerts, heartbeats, sweeps and gates that lie too far ahead."""
    now = transaction.now()
    return [
        *_too_far_ahead(transaction, config, now),
        *(ahead for ahead, _ in _gates(transaction, config, policies, now)),
    ]


def pull_in_times(database: Database, config: Config, policies: Policies) -> list[TooFarAhead]:
    """Pull in leases, alerts, heartbeats, sweeps and gates."""
    with database.read() as transaction:
        now = transaction.now()
        few = _too_far_ahead(transaction, config, now)
        gates = _gates(transaction, config, policies, now)
    pulled = list(few)
    if few:
        with database.write() as transaction:
            now = transaction.now()
            for time in _TIMES:
                if any(one.column == time.column for one in few):
                    transaction.execute(_pull(transaction.sql, time), **_bounds(time, config, now))
    if gates:
        with database.write() as transaction:
            held = _gates(transaction, config, policies, transaction.now(), locked=True)
            transaction.execute(_set_gates(transaction.sql), gates=rows_param(row for _, row in held))
        pulled += [ahead for ahead, _ in held]
    return pulled


class _Time(NamedTuple):
    """A column of times that were the present, or at most `at_most_ahead` later, when they were set."""

    table: str
    column: str
    key: str
    about: str
    """The row's key, as an SQL expression."""
    condition: str
    """The rows to check, as an SQL condition; an index answers it, or there are few."""
    at_most_ahead: timedelta | None = timedelta(0)
    """None: as long as the lease of a sweep."""


_TIMES = (
    _Time(
        "open_delivery",
        "lease_until",
        "seq, route",
        "'seq=' || seq || ' route=' || route",
        "state = 'in_flight'",
        timedelta(seconds=LEASE_SECONDS),
    ),
    _Time("alert", "post_after", "id", "'alert ' || id", "sent_at IS NULL AND at > {since}", POST_AGAIN_AFTER),
    _Time("relay_node", "heartbeat_at", "id", "'relay ' || id", "stopped_at IS NULL"),
    _Time("sweep_watermark", "lease_until", "source, entity_type", "'sweep of ' || source", "true", None),
    _Time("sweep_watermark", "swept_at", "source, entity_type", "'sweep of ' || source", "true"),
)


def _too_far_ahead(transaction: Transaction, config: Config, now: datetime) -> list[TooFarAhead]:
    found = []
    for time in _TIMES:
        bounds = _bounds(time, config, now)
        furthest = as_time(str(bounds.pop("furthest")))
        rows = transaction.execute(_find(transaction.sql, time), **bounds)
        found += [TooFarAhead(time.column, row.about, as_time(row.stored), furthest) for row in rows]
    return found


def _bounds(time: _Time, config: Config, now: datetime) -> dict[str, object]:
    sweeps = (lease_seconds(config.apis[table.api]) for source in config.sources.values() for table in source.sweeps)
    at_most_ahead = timedelta(seconds=max(sweeps, default=0)) if time.at_most_ahead is None else time.at_most_ahead
    bounds: dict[str, object] = {
        "furthest": time_text(now + at_most_ahead),
        "later": time_text(now + at_most_ahead + SLACK),
    }
    return bounds | ({"since": time_text(now - POSTED_WITHIN)} if "{since}" in time.condition else {})


def _beyond(sql: Sql, time: _Time) -> str:
    condition = time.condition.format(since=sql.time(":since"))
    return f"FROM {time.table} WHERE {condition} AND {time.column} > {sql.time(':later')} LIMIT {BATCH}"


@cache
def _find(sql: Sql, time: _Time) -> TextClause:
    return text(f"SELECT {time.about} AS about, {time.column} AS stored {_beyond(sql, time)}")


@cache
def _pull(sql: Sql, time: _Time) -> TextClause:
    """Skip a row that is locked at this moment: a later round pulls it in."""
    return text(f"""
UPDATE {time.table} SET {time.column} = {sql.time(":furthest")}
WHERE ({time.key}) IN (SELECT {time.key} {_beyond(sql, time)} {sql.skip_locked})
""")


_GATE_TIMES = ("breaker_until", "window_began_at", "rate_used_until", "held_until")


def _gates(
    transaction: Transaction, config: Config, policies: Policies, now: datetime, *, locked: bool = False
) -> list[tuple[TooFarAhead, dict[str, object]]]:
    """The first time too far ahead of each gate, and its corrected row; gates without configuration are left alone."""
    # Sweeps hold the gates of apis that no route asks, too.
    of_apis: dict[GateKey, Api] = {("api", name): api for name, api in config.apis.items()}
    limits = {key: limits_of(api) for key, api in of_apis.items()} | breaker_limits(policies)
    holds = dict.fromkeys(of_apis, LONGEST_HOLD) | longest_holds(policies)
    used: dict[GateKey, datetime] = {}
    for rate_limit in (rate_limit for policy in policies.values() for rate_limit in policy.rate_limits):
        used[rate_limit.key] = max(used.get(rate_limit.key, now), rate_limit.furthest(now))
    found = []
    for row in transaction.execute(_gates_ahead(transaction.sql, locked=locked), later=time_text(now + SLACK)):
        key, breaker = (row.kind, row.name), as_breaker(row)
        if key not in limits:
            continue
        held = breaker_within(breaker, limits[key], PROBE_GIVEN_UP_AFTER, now)
        rate = None if row.rate_used_until is None else as_time(row.rate_used_until)
        hold = None if row.held_until is None else as_time(row.held_until)
        # Without a rate it counts for nothing; if one is configured again, nothing of it is used up.
        longest_hold = now + holds.get(key, timedelta(0))
        times = (held.until, held.window_began_at, within(rate, used.get(key, now)), within(hold, longest_hold))
        before = (breaker.until, breaker.window_began_at, rate, hold)
        for column, was, to in zip(_GATE_TIMES, before, times, strict=True):
            if was is not None and to is not None and was != to:
                corrected = {"kind": row.kind, "name": row.name, **dict(zip(_GATE_TIMES, times, strict=True))}
                found.append((TooFarAhead(column, " ".join(key), was, to), corrected))
                break
    return found


@cache
def _gates_ahead(sql: Sql, *, locked: bool) -> TextClause:
    later = " OR ".join(f"g.{column} > {sql.time(':later')}" for column in _GATE_TIMES)
    return text(f"""
SELECT {GATE_COLUMNS}, g.rate_used_until, g.held_until
FROM gate g
WHERE {later}
ORDER BY g.kind, g.name
{sql.for_update if locked else ""}
""")


@cache
def _set_gates(sql: Sql) -> TextClause:
    times: dict[str, str] = dict.fromkeys(_GATE_TIMES, "time")
    changes = ", ".join(f"{column} = gates.{column}" for column in _GATE_TIMES)
    return text(f"""
UPDATE gate AS g SET {changes}
FROM {sql.rows("gates", kind="text", name="text", **times)}
WHERE g.kind = gates.kind AND g.name = gates.name
""")
