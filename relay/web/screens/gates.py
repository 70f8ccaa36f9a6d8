"""`/gates`: pauses, circuit breakers, rate limits and sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from sqlalchemy import text

from inbox.config.model import Config
from inbox.db.reads import Row
from inbox.events.timestamps import as_time
from relay.delivery.gates import GateKey, RateLimit
from relay.delivery.policy import Policies
from relay.store import reads
from relay.store.overview import HeldGate, read_held_gates
from relay.web.query import Text
from relay.web.reading import Reading, Screen, rows_of

MOST_SHOWN = 200
"""Gates of one page: thousands of entities may be paused."""
Kind = Literal["source", "route", "destination", "api", "entity"]
KINDS: tuple[Kind, ...] = ("source", "route", "destination", "api", "entity")


class GatesQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on the gates that hold something back."""

    kind: Kind | None = None
    """Kind of gate."""
    name: Text | None = None
    """A part of its name, in any case; of an entity: of its source, type or id."""


class RateLine(msgspec.Struct, frozen=True):
    """A rate limit of the configuration."""

    kind: str
    name: str
    per_second: float
    calls: int
    """Most calls of one attempt."""
    opens_in_seconds: float
    """Seconds until the next attempt may be claimed; 0: now."""
    routes: tuple[str, ...]


class SweepLine(msgspec.Struct, frozen=True):
    """A sweep of the configuration, and its watermark."""

    source: str
    entity_type: str
    every_seconds: float | None
    """Its interval; None: it runs only when somebody asks."""
    is_running: bool
    watermark: Annotated[Row, rows_of("sweep_watermark")] | None
    """Its row of `sweep_watermark`; None: it has never run."""


class GatesPage(msgspec.Struct, frozen=True):
    """Everything that stands between deliveries and their calls."""

    at: datetime
    """The database's clock."""
    gates: tuple[HeldGate, ...]
    """Matching gates that hold something back; entities last."""
    more: int
    """Further ones that match."""
    rates: tuple[RateLine, ...]
    sweeps: tuple[SweepLine, ...]
    names: Mapping[str, tuple[str, ...]]
    """Names that can be paused, by kind."""


def read(reading: Reading, query: GatesQuery) -> GatesPage:
    """Read gates and sweeps."""
    database = reading.database
    held = read_held_gates(database, reading.policies)
    with database.read() as transaction:
        now = transaction.now()
        used = {(row.kind, row.name): as_time(row.rate_used_until) for row in transaction.execute(_RATES)}
        watermarks = transaction.rows_of(reads.SWEEPS)
    matching = sorted((gate for gate in held if _matches(gate, query)), key=lambda gate: gate.kind == "entity")
    return GatesPage(
        now,
        tuple(matching[:MOST_SHOWN]),
        max(len(matching) - MOST_SHOWN, 0),
        tuple(rate_lines(reading.policies, used, now)),
        tuple(sweep_lines(reading.config, watermarks, now)),
        names_of(reading.config),
    )


def _matches(gate: HeldGate, query: GatesQuery) -> bool:
    is_named = query.name is None or query.name.casefold() in gate.title.casefold()
    return is_named and query.kind in {None, gate.kind}


def rate_lines(policies: Policies, used: Mapping[GateKey, datetime], now: datetime) -> Iterator[RateLine]:
    """Yield every rate limit of the configuration, by kind and name. Pure."""
    limits: dict[GateKey, RateLimit] = {}
    routes: dict[GateKey, list[str]] = {}
    for name, policy in sorted(policies.items()):
        for limit in policy.rate_limits:
            strictest = max(limit, limits.get(limit.key, limit), key=lambda each: each.calls)
            limits[limit.key] = strictest
            routes.setdefault(limit.key, []).append(name)
    for key, limit in sorted(limits.items()):
        seconds = round(limit.opens_in(used.get(key), now), 3)
        yield RateLine(*key, limit.rate, limit.calls, seconds, tuple(routes[key]))


def sweep_lines(config: Config, watermarks: Sequence[Row], now: datetime) -> Iterator[SweepLine]:
    """Yield every sweep of the configuration, and watermarks of sweeps that it lacks. Pure."""
    known = {(row["source"], row["entity_type"]): row for row in watermarks}
    for name, source in sorted(config.sources.items()):
        for sweep in source.sweeps:
            row = known.pop((name, sweep.entity_type), None)
            every = None if sweep.every is None else float(sweep.every)
            yield SweepLine(name, sweep.entity_type, every, _is_running(row, now), row)
    for (name, entity_type), row in sorted(known.items()):
        yield SweepLine(name, entity_type, None, _is_running(row, now), row)


def _is_running(row: Row | None, now: datetime) -> bool:
    return row is not None and row["lease_until"] is not None and row["lease_until"] > now


def names_of(config: Config) -> Mapping[str, tuple[str, ...]]:
    """Return the names that can be paused, by kind."""
    named: Mapping[str, Mapping[str, object]] = {
        "source": config.sources,
        "route": config.routes,
        "destination": config.destinations,
        "api": config.apis,
    }
    return {kind: tuple(sorted(names)) for kind, names in named.items()}


_RATES = text("SELECT kind, name, rate_used_until FROM gate WHERE rate_used_until IS NOT NULL AND kind <> 'entity'")

SCREEN = Screen(
    name="gates",
    path="/gates",
    title="Gates and sweeps",
    query=GatesQuery,
    page=GatesPage,
    read=read,
    template="gates.html",
    is_live=False,
)
