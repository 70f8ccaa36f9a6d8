"""The state of everything at one moment, for `relay status`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from sqlalchemy import text

from inbox.db.dialect import as_json
from inbox.db.health_views import FAILED_FOR_SECONDS
from inbox.db.reads import Row
from inbox.events.states import CRASH_LOOP_SECONDS, GONE_SECONDS
from inbox.events.timestamps import as_time
from relay.delivery.alerts import SENTENCES, Alert, format_sentence
from relay.delivery.gates import GateKey, format_gate, parse_entity_key
from relay.delivery.policy import Policies, RoutePolicy
from relay.store import gates, reads
from relay.store.alerts import NEWEST
from relay.store.database import Database
from relay.store.nodes import read_nodes
from relay.store.route_states import MOST_COUNTED, RouteState, find_new_name, read_routes
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction

MOST_LISTED = 20
"""Maximum number of open commands, of failed commands, and of dead relays to list."""
_LEAD = timedelta(seconds=5)
"""Largest lead over the database's clock that clock skew or slow commits can explain."""


class HeldGate(msgspec.Struct, frozen=True):
    """A gate that holds deliveries back."""

    kind: str
    name: str
    state: str
    """`paused`; `open`, `half_open` or `retired` for a breaker; `limited` by its rate; `held` at the endpoint's request."""
    why: str | None
    by: str | None = None
    """The operator who paused it."""
    since: datetime | None = None
    until: datetime | None = None
    routes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Kind and name of the gate in words."""
        return format_gate(self.kind, self.name)

    @property
    def fields(self) -> Mapping[str, str]:
        """The selection fields that name the gate."""
        entity = parse_entity_key(self.name) if self.kind == "entity" else None
        if entity is None:
            return {self.kind: self.name}
        return dict(zip(("source", "entity_type", "entity_id"), entity, strict=True))


class RelayState(msgspec.Struct, frozen=True):
    """A relay process that has not stopped gracefully."""

    id: str
    host: str
    pid: int
    version: str
    health: Literal["running", "gone"]
    started_at: datetime
    heartbeat_at: datetime
    silent_seconds: float
    in_flight: int
    failing: Mapping[str, str]
    """Failing steps with their errors."""


class FiringAlert(msgspec.Struct, frozen=True):
    """A firing alert."""

    kind: str
    subject: str
    since: datetime
    text: str


class Overview(msgspec.Struct, frozen=True):
    """The state of all routes, gates, relays, alerts, commands and sweeps at one moment."""

    at: datetime
    routes: tuple[RouteState, ...]
    gates: tuple[HeldGate, ...]
    relays: tuple[RelayState, ...]
    """Running relays, and those that died in the last minutes."""
    alerts: tuple[FiringAlert, ...]
    commands: tuple[Row, ...]
    """Open commands, and recently failed ones; the newest first."""
    sweeps: tuple[Row, ...]
    retention: tuple[Row, ...] = ()
    """Progress of pruning for each kind of rows."""
    ahead: Mapping[str, datetime] = {}
    """The newest stored times that are ahead of the database's clock, by column."""


def read_overview(database: Database, policies: Policies, most: int = MOST_COUNTED) -> Overview:
    """Read the overview in one snapshot. Counts stop at `most`."""
    with database.snapshot() as transaction:
        now = transaction.now()
        alerts = tuple(read_firing(transaction))
        held = tuple(_find_held(transaction, policies, alerts, now))
        held_back: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
        for gate in held:
            # An entity's pause holds back few deliveries, and a used-up rate opens again soon.
            for route in gate.routes if gate.kind != "entity" and gate.state != "limited" else ():
                held_back[route] += (f"{gate.kind} {gate.name}",)
        routes, in_flight = read_routes(transaction, policies, held_back, now, most)
        routes = [
            route
            if route.is_configured
            else msgspec.structs.replace(route, new_name=find_new_name(transaction, route.route, policies))
            for route in routes
        ]
        return Overview(
            now,
            tuple(routes),
            held,
            tuple(_read_relays(transaction, in_flight)),
            alerts,
            tuple(transaction.fetch_rows(_OPEN_OR_FAILED, most=MOST_LISTED, since=-float(FAILED_FOR_SECONDS))),
            tuple(transaction.fetch_rows(reads.SWEEPS)),
            tuple(transaction.fetch_rows(reads.RETENTION)),
            {row.name: at for row in transaction.execute(NEWEST_TIMES) if (at := as_time(row.at)) > now + _LEAD},
        )


def read_held_gates(database: Database, policies: Policies) -> tuple[HeldGate, ...]:
    """Read the gates that hold back deliveries, in one snapshot."""
    with database.snapshot() as transaction:
        return tuple(_find_held(transaction, policies, tuple(read_firing(transaction)), transaction.now()))


def _find_held(
    transaction: Transaction, policies: Policies, alerts: Sequence[FiringAlert], now: datetime
) -> Iterator[HeldGate]:
    fired = {alert.subject: alert.since for alert in alerts if alert.kind in {"breaker_open", "endpoint_retired"}}
    for row in gates.read_closed_gates_in(transaction):
        key = (row["kind"], row["name"])
        routes = tuple(sorted(name for name, policy in policies.items() if _goes_through(policy, key)))
        if row["paused_at"] is not None:
            yield HeldGate(*key, "paused", row["pause_reason"], row["paused_by"], row["paused_at"], None, routes)
        if row["breaker"] != "closed":
            since = fired.get(" ".join(key))
            yield HeldGate(*key, row["breaker"], row["breaker_cause"], None, since, row["breaker_until"], routes)
        if row["held_until"] is not None:
            yield HeldGate(*key, "held", row["hold_reason"], None, None, row["held_until"], routes)
    yield from _find_limited(transaction, policies, now)


def _goes_through(policy: RoutePolicy, key: GateKey) -> bool:
    kind, name = key
    entity = parse_entity_key(name) if kind == "entity" else None
    return (key if entity is None else ("source", entity[0])) in policy.gates


def _find_limited(transaction: Transaction, policies: Policies, now: datetime) -> Iterator[HeldGate]:
    """Yield the gates whose rate limit is used up."""
    used = {(row.kind, row.name): as_time(row.rate_used_until) for row in transaction.execute(_RATES_USED)}
    limits = {limit.key: limit for policy in policies.values() for limit in policy.rate_limits}
    for key, limit in sorted(limits.items()):
        seconds = limit.opens_in(used.get(key), now)
        if seconds > 0:
            routes = tuple(sorted(name for name, policy in policies.items() if limit in policy.rate_limits))
            why = f"rate of {limit.rate:g}/s is used up"
            yield HeldGate(*key, "limited", why, None, None, now + timedelta(seconds=seconds), routes)


def _read_relays(transaction: Transaction, in_flight: Mapping[str, int]) -> Iterator[RelayState]:
    gone = 0
    for row in read_nodes(transaction, CRASH_LOOP_SECONDS):
        is_gone = row["silent_seconds"] > GONE_SECONDS
        gone += is_gone
        if not is_gone or gone <= MOST_LISTED:
            del row["config_hash"]
            yield RelayState(**row, health="gone" if is_gone else "running", in_flight=in_flight.get(row["id"], 0))


def read_firing(transaction: Transaction) -> Iterator[FiringAlert]:
    """Read the firing alerts, the oldest first."""
    for row in transaction.execute(_FIRING):
        text_of_it = format_alert(row.kind, row.subject, as_json(row.detail))
        yield FiringAlert(row.kind, row.subject, as_time(row.at), text_of_it)


def format_alert(kind: str, subject: str, detail: object, *, firing: bool = True) -> str:
    """Return a row of `alert` as one line; only kind and subject if this version has no sentence for it."""
    known: Any = kind
    if kind not in SENTENCES or not isinstance(detail, dict):
        return f"{kind} {subject}"  # from a newer version, or written by hand
    return "; ".join(format_sentence(Alert(known, subject, firing=firing, detail=detail)).splitlines())


NEWEST_TIMES = text("""
SELECT 'delivery_log.at' AS name, at FROM (SELECT at FROM delivery_log ORDER BY id DESC LIMIT 1) fact
UNION ALL
SELECT 'inbox.received_at' AS name, at FROM (SELECT received_at AS at FROM inbox ORDER BY seq DESC LIMIT 1) event
""")
_FIRING = text(f"{NEWEST} WHERE a.firing ORDER BY a.at, a.id")


_RATES_USED = Statement(f"SELECT kind, name, rate_used_until FROM gate WHERE rate_used_until > (SELECT {sql.now})")


_COMMANDS = "id, kind, selection, reason, asked_by, asked_at, state, affected, finished_at, answer, failed, error"
_OPEN_OR_FAILED = Statement(f"""
SELECT {_COMMANDS} FROM (
    SELECT * FROM (
        SELECT {_COMMANDS} FROM relay_command WHERE state IN ('asked', 'running') ORDER BY id DESC LIMIT :most) opened
    UNION ALL
    SELECT * FROM (
        SELECT {_COMMANDS} FROM (SELECT {_COMMANDS} FROM relay_command ORDER BY id DESC LIMIT 1000) newest
        WHERE (state IN ('failed', 'refused') OR failed > 0) AND finished_at > {sql.plus_seconds(f"(SELECT {sql.now})", ":since")}
        ORDER BY id DESC LIMIT :most) failures
) found
ORDER BY id DESC
""")
