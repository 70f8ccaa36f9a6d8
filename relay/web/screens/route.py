"""`/route`: one route with its settings, mapping, figures, last errors and latency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import text

from inbox.config.model import Config, Route
from inbox.db.dialect import as_json
from inbox.db.reads import has
from inbox.errors import NothingThere
from inbox.events.timestamps import as_time
from relay.findings import Finding, list_findings, read_stuck
from relay.store import reads
from relay.store.overview import HeldGate, read_overview
from relay.store.route_states import RouteState, Span, read_figures
from relay.store.statement import Statement, sql
from relay.web.query import Text
from relay.web.reading import Reading
from relay.web.screens.overview import RouteLine, SweepLine, make_route_line, sweep_lines

_MOST_COUNTED, _NEWEST_FACTS = 1000, 20_000


class RouteQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of a route's page."""

    name: Text
    range: Span = "hour"
    """Time of the figures."""


class RouteSettings(msgspec.Struct, frozen=True):
    """The settings of a configured route, without secrets."""

    kind: str
    """Kind of its destination."""
    ordering: str
    lane: str
    on_dead: str
    when: dict[str, tuple[str, ...]]
    """Conditions on events; empty: all events of the source."""
    schedule: tuple[float, ...]
    """Delays in seconds between the attempts."""
    window: float | None
    """Seconds from the first attempt within which retries may begin."""
    timeout: float
    """Seconds for one call."""
    concurrency: int
    rates: dict[str, float]
    """Maximum calls per second, by destination and api."""
    calls: dict[str, str]
    """Method and path of each step of a sync route."""
    mapping: dict[str, str]
    """Expression of each field of a sync route's counterpart; a field with a table is shown as JSON."""


class FailedAttempt(msgspec.Struct, frozen=True):
    """A failed attempt."""

    seq: int
    at: datetime
    kind: str
    attempt: int
    cause: str | None
    error: str | None
    status: int | None


class Percentiles(msgspec.Struct, frozen=True):
    """Seconds that deliveries took."""

    of: str
    median: float
    p95: float
    longest: float


class RoutePage(msgspec.Struct, frozen=True):
    """One route at one moment."""

    at: datetime
    """The database's clock."""
    line: RouteLine
    began_at: datetime
    """Beginning of the first step of the figures."""
    step_seconds: int
    findings: tuple[Finding, ...]
    gates: tuple[HeldGate, ...]
    """Gates that hold the route back."""
    settings: RouteSettings | None
    """None if the configuration lacks the route."""
    sweeps: tuple[SweepLine, ...]
    """Sweeps of the route's source."""
    errors: tuple[FailedAttempt, ...]
    """The route's last failed attempts, among the newest 20,000 facts of all routes."""
    latency: tuple[Percentiles, ...]
    """Percentiles of the route's last 200 deliveries, among the same facts; empty without a delivery."""


def read_route(reading: Reading, query: RouteQuery) -> RoutePage:
    """Read a route.

    Raises:
        NothingThere: neither the configuration nor the database has the route.
    """
    database, config, name = reading.database, reading.config, query.name
    seen = read_overview(database, reading.policies, _MOST_COUNTED)
    state = next((each for each in seen.routes if each.route == name), None)
    if state is None and not has(database.engine, "route", name):
        raise NothingThere(f"there is no route {name!r}")
    found = read_stuck(database)
    with database.read() as transaction:
        figures = read_figures(transaction, seen.at, query.range)
        errors = [_fail(row) for row in transaction.execute(_FAILURES, route=name, most=_NEWEST_FACTS)]
        latency = tuple(_measure(transaction.execute(_DELIVERED, route=name, most=_NEWEST_FACTS)))
        watermarks = transaction.fetch_rows(reads.SWEEPS)
    configured = config.routes.get(name)
    return RoutePage(
        at=seen.at,
        line=make_route_line(state or RouteState(name, is_configured=False), found, figures, config),
        began_at=figures.began_at,
        step_seconds=figures.step_seconds,
        findings=tuple(
            each
            for each in list_findings(seen, found, _MOST_COUNTED)
            if name in {each.fields.get("route"), each.subject}
        ),
        gates=tuple(gate for gate in seen.gates if name in gate.routes and gate.kind != "entity"),
        settings=None if configured is None else describe_settings(configured, config),
        sweeps=tuple(
            each
            for each in sweep_lines(config, watermarks, seen.at)
            if configured is not None and each.source == configured.source
        ),
        errors=tuple(errors),
        latency=latency,
    )


def describe_settings(route: Route, config: Config) -> RouteSettings:
    """Describe a configured route. Pure."""
    destination, steps = config.destinations[route.destination], route.sync
    calls = {step: getattr(steps, step, None) for step in ("fetch", "find", "create", "update", "delete")}
    api = None if calls["fetch"] is None else config.apis[calls["fetch"].api]
    limited = [each for each in (destination, api) if each is not None and each.rate is not None]
    return RouteSettings(
        kind=str(destination.__struct_config__.tag),
        ordering=config.get_ordering(route),
        lane=route.lane,
        on_dead=route.on_dead,
        when={name: tuple(map(str, values)) for name, values in msgspec.structs.asdict(route.when).items() if values},
        schedule=tuple(map(float, route.retry.schedule)),
        window=None if route.retry.window is None else float(route.retry.window),
        timeout=float(destination.timeout),
        concurrency=destination.concurrency,
        rates={each.name: float(each.rate or 0) for each in limited},
        calls={
            step: " ".join(filter(None, (getattr(call, "method", None), call.path)))
            for step, call in calls.items()
            if call is not None
        },
        mapping={} if steps is None else {field: _describe_rule(rule) for field, rule in steps.map.items()},
    )


def _describe_rule(rule: str | msgspec.Struct) -> str:
    if isinstance(rule, str):
        return rule
    given = {name: value for name, value in msgspec.structs.asdict(rule).items() if value not in (None, False)}
    return msgspec.json.encode(given).decode()


def _detail(row: Any) -> dict[str, Any]:  # noqa: ANN401  # a row
    """Return the detail of a fact; empty if a manual edit has broken it."""
    detail = as_json(row.detail)
    return detail if isinstance(detail, dict) else {}


def _fail(row: Any) -> FailedAttempt:  # noqa: ANN401  # a row
    detail = _detail(row)
    cause, error = detail.get("cause", detail.get("error_class")), detail.get("error")
    return FailedAttempt(
        row.seq,
        as_time(row.at),
        row.kind,
        row.attempt,
        None if cause is None else str(cause),
        None if error is None else str(error),
        row.status,
    )


def _measure(rows: Sequence[Any]) -> Iterator[Percentiles]:
    """Yield the durations of the successful attempts' calls, and the times from arrival until delivery."""
    calls, whole = list[float](), list[float]()
    for row in rows:
        made = _detail(row).get("calls")
        took = [call.get("milliseconds") for call in made if isinstance(call, dict)] if isinstance(made, list) else []
        calls.append(sum(each for each in took if isinstance(each, int | float)) / 1000)
        whole.append(max((as_time(row.at) - as_time(row.received_at)).total_seconds(), 0))
    for name, seconds in (("Calls of the successful attempt", calls), ("Arrival until delivered", whole)):
        if seconds:
            ordered, last = sorted(seconds), len(seconds) - 1
            yield Percentiles(name, ordered[last // 2], ordered[round(last * 0.95)], ordered[last])


_FAILURES = Statement(f"""
SELECT l.seq, l.at, l.kind, l.attempt, l.detail, {sql.extract_status("l")} AS status FROM (
    SELECT * FROM delivery_log ORDER BY id DESC LIMIT :most) l
WHERE l.route = :route AND l.kind IN ('attempt_failed', 'abandoned', 'dead') ORDER BY l.id DESC LIMIT 10
""")
_DELIVERED = text("""
SELECT l.at, l.detail, i.received_at FROM (
    SELECT n.* FROM (SELECT * FROM delivery_log ORDER BY id DESC LIMIT :most) n
    WHERE n.route = :route AND n.kind IN ('delivered', 'unchanged') ORDER BY n.id DESC LIMIT 200) l
JOIN inbox i ON i.seq = l.seq
""")
