"""The current state: `/` with the findings and their buttons, `/gates` with the sweeps, and `/doctor`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from sqlalchemy import text

from inbox.config.model import Config
from inbox.db.reads import Row
from relay.doctor.examinations import EXAMINATIONS
from relay.doctor.run import ExaminationResult, open_installation, run
from relay.findings import LEVELS, Finding, get_route_state, is_well, list_findings, read_stuck
from relay.store import reads
from relay.store.overview import HeldGate, RelayState, read_held_gates, read_overview
from relay.store.reads import Disk, read_disk, sqlite_file
from relay.store.route_states import Counts, Figures, RouteState, Span, read_figures
from relay.web.query import Text, url
from relay.web.reading import Reading, describe_rows

_MOST_COUNTED = 1000
"""Largest count of deliveries. Smaller than that of `relay status`, since an open page keeps refreshing."""
_HEALTH_SECONDS, _DISK_SECONDS, _FIGURES_SECONDS = 15.0, 60.0, 30.0
"""Cache times of health, disk sizes and figures: expensive values that change slowly."""


class NoQuery(msgspec.Struct, frozen=True):
    """A query without parameters."""


class OverviewQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of the overview."""

    range: Span = "hour"
    """Time of the figures."""


_NOT_SHOWN = ("position", "lap_began_at")


class RouteLine(msgspec.Struct, frozen=True):
    """A route with its figures."""

    is_busy: bool
    """True if deliveries are open or held back, or have ended within the range."""
    word: str
    """Its worst state, in a word."""
    state: RouteState
    source: str | None
    destination: str | None
    """None if the configuration lacks the route."""
    arrived: Counts
    """Events of the route's source in each step, including those that the route does not take."""
    ended: Counts
    failed: Counts


class SourceLine(msgspec.Struct, frozen=True):
    """A source, as in the view `source_health`."""

    health: Annotated[Row, describe_rows("source_health")]
    arrived: Counts


class OverviewPage(msgspec.Struct, frozen=True):
    """The state of the whole installation at one moment."""

    at: datetime
    """The database's clock."""
    is_well: bool
    """True if no finding needs an operator; some may be informational."""
    findings: tuple[Finding, ...]
    """Findings: critical ones first, information last."""
    began_at: datetime
    """Beginning of the first step of the figures."""
    step_seconds: int
    """Length of a step: a minute for the range of an hour, and an hour for the others."""
    arrived: Counts
    """Events of all sources in each step. The current minute or hour is excluded."""
    ended: Counts
    """Deliveries that ended in each step."""
    failed: Counts
    """Attempts that failed in each step."""
    routes: tuple[RouteLine, ...]
    gates: tuple[HeldGate, ...]
    more_gates: int
    sources: tuple[SourceLine, ...]
    destinations: tuple[Annotated[Row, describe_rows("destination_health")], ...]
    """Rows of the view `destination_health`."""
    relays: tuple[RelayState, ...]
    retention: tuple[Annotated[Row, describe_rows("pruning", *_NOT_SHOWN)], ...]
    """Progress for each kind of rows with a retention."""
    disk: Disk


def overview(reading: Reading, query: OverviewQuery) -> OverviewPage:
    """Read the overview."""
    database, config, role, kept = reading.database, reading.config, reading.actor.role, reading.kept
    seen = read_overview(database, reading.policies, _MOST_COUNTED)
    found = read_stuck(database)
    attention = list_findings(seen, found, _MOST_NAMED)
    file = sqlite_file(config)
    with database.read() as transaction:
        seconds = 0.0 if query.range == "hour" else _FIGURES_SECONDS
        key = ("figures", role, query.range)
        figures: Figures = kept(key, seconds, lambda: read_figures(transaction, seen.at, query.range))
        sources = kept(("sources", role), _HEALTH_SECONDS, lambda: transaction.fetch_rows(_SOURCES))
        destinations = kept(("destinations", role), _HEALTH_SECONDS, lambda: transaction.fetch_rows(_DESTINATIONS))
        disk = kept(("disk", role), _DISK_SECONDS, lambda: read_disk(transaction, file))
    return OverviewPage(
        seen.at,
        is_well=is_well(attention),
        findings=attention,
        began_at=figures.began_at,
        step_seconds=figures.step_seconds,
        arrived=figures.add_up(figures.arrived),
        ended=figures.add_up(figures.ended),
        failed=figures.add_up(figures.failed),
        routes=tuple(make_route_line(route, found, figures, config) for route in seen.routes),
        gates=seen.gates[:_MOST_GATES],
        more_gates=max(len(seen.gates) - _MOST_GATES, 0),
        sources=tuple(SourceLine(row, figures.get_counts(figures.arrived, row["source"])) for row in sources),
        destinations=tuple(destinations),
        relays=seen.relays,
        retention=seen.retention,
        disk=disk,
    )


_MOST_GATES = 20
_MOST_NAMED = 5
"""Maximum routes or gates listed separately for one problem."""


def make_route_line(route: RouteState, found: Sequence[Finding], figures: Figures, config: Config) -> RouteLine:
    """Put the state of a route, its findings and its figures together. Pure."""
    configured = config.routes.get(route.route)
    ended, failed = (figures.get_counts(counts, route.route) for counts in (figures.ended, figures.failed))
    return RouteLine(
        bool(route.open or route.held_back_by or any(ended) or any(failed)),
        get_route_state(route, found),
        route,
        configured.source if configured else None,
        configured.destination if configured else None,
        figures.get_counts(figures.arrived, configured.source if configured else ""),
        ended,
        failed,
    )


_SOURCES = text("SELECT * FROM source_health ORDER BY source LIMIT 200")
_DESTINATIONS = text("SELECT * FROM destination_health WHERE kind <> 'route' ORDER BY kind DESC, name LIMIT 200")


class Button(msgspec.Struct, frozen=True):
    """A button that leads to the act that fixes a problem, or otherwise to the screen with the details."""

    label: str
    path: str
    is_act: bool = False
    """True: shown only to operators."""


_ACTS = {
    "gate_closed": ("Resume", "resume"),
    "unconfigured": ("Cancel", "cancel"),
    "renamed": ("Deliver there", "replay"),
    "retrying": ("Retry now", "retry"),
    "sweep_failed": ("Sweep now", "sweep"),
}
_SCREENS = {
    **dict.fromkeys(("blocked", "delivery_dead"), ("Dead letters", "/dead", "route")),
    **dict.fromkeys(("stuck", "failing", "backlog_old"), ("Deliveries", "/deliveries", "route")),
    **dict.fromkeys(("command", "command_failed"), ("Commands", "/commands", "")),
    **dict.fromkeys(
        ("gate_closed", "breaker_open", "endpoint_retired", "webhooks_missed"), ("Gates and sweeps", "/gates", "")
    ),
    "source_silent": ("Rejected requests", "/rejected", "source"),
}
"""The screen for each kind of finding or alert, and the filter for its subject."""


def make_button(finding: Finding) -> Button | None:
    """Return the button for a finding; None if only a command can fix it."""
    if finding.kind in {"no_relay", "crash_loop"} or not finding.remedy:
        return None
    if finding.kind in _ACTS and finding.fields:
        label, act = _ACTS[finding.kind]
        return Button(label, url(f"/acts/{act}", finding.fields), is_act=True)
    label, path, name = _SCREENS.get(finding.fields.get("alert", finding.kind), ("Doctor", "/doctor", ""))
    subject = finding.subject if "alert" in finding.fields else finding.fields.get(name)
    return Button(label, url(path, {name: subject} if name else {}))


# --- gates and sweeps

MOST_SHOWN = 200
"""Maximum number of gates on a page, since thousands of entities may be paused."""


class GatesQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on the gates that hold something back."""

    kind: Literal["source", "route", "destination", "api", "entity"] | None = None
    """Kind of gate."""
    name: Text | None = None
    """Part of the gate's name, or of an entity's source, type or id; case-insensitive."""


class SweepLine(msgspec.Struct, frozen=True):
    """A configured sweep and its watermark."""

    source: str
    entity_type: str
    every_seconds: float | None
    """Interval of the sweep; None if it runs only on demand."""
    is_running: bool
    watermark: Annotated[Row, describe_rows("sweep_watermark")] | None
    """Row of the sweep in `sweep_watermark`; None if it has never run."""


class GatesPage(msgspec.Struct, frozen=True):
    """The gates that hold deliveries back, and the sweeps."""

    at: datetime
    """The database's clock."""
    gates: tuple[HeldGate, ...]
    """Matching gates that hold something back; entities last."""
    more: int
    """Number of further matching gates."""
    sweeps: tuple[SweepLine, ...]


def gates(reading: Reading, query: GatesQuery) -> GatesPage:
    """Read gates and sweeps."""
    database = reading.database
    held = read_held_gates(database, reading.policies)
    with database.read() as transaction:
        now = transaction.now()
        watermarks = transaction.fetch_rows(reads.SWEEPS)
    matching = sorted((gate for gate in held if _matches(gate, query)), key=lambda gate: gate.kind == "entity")
    return GatesPage(
        now,
        tuple(matching[:MOST_SHOWN]),
        max(len(matching) - MOST_SHOWN, 0),
        tuple(sweep_lines(reading.config, watermarks, now)),
    )


def _matches(gate: HeldGate, query: GatesQuery) -> bool:
    is_named = query.name is None or query.name.casefold() in gate.title.casefold()
    return is_named and query.kind in {None, gate.kind}


def sweep_lines(config: Config, watermarks: Sequence[Row], now: datetime) -> Iterator[SweepLine]:
    """Yield every configured sweep, and the watermarks of removed ones. Pure."""
    known = {(row["source"], row["entity_type"]): row for row in watermarks}
    planned = {
        (name, sweep.entity_type): sweep.every
        for name, source in sorted(config.sources.items())
        for sweep in source.sweeps
    }
    for key in (*planned, *sorted(known.keys() - planned.keys())):
        every, row = planned.get(key), known.get(key)
        is_running = row is not None and row["lease_until"] is not None and row["lease_until"] > now
        yield SweepLine(*key, None if every is None else float(every), is_running, row)


# --- the doctor

KEPT_SECONDS = 60.0
"""Cache time of a report: the examinations cost the database a few seconds of work."""


class DoctorPage(msgspec.Struct, frozen=True, kw_only=True):
    """The latest report, shared by all users and made again on request after a minute."""

    began_at: datetime
    seconds: float
    """Duration of the examinations."""
    findings: tuple[Finding, ...]
    """Critical findings first, then warnings, then information."""
    not_examined: tuple[ExaminationResult, ...]
    """Examinations that could not be completed, with the missing requirement."""
    clean: tuple[str, ...]
    """Examinations without findings."""


def doctor(reading: Reading, _query: NoQuery) -> DoctorPage:
    """Return the latest report, or make a new one."""
    page: DoctorPage = reading.kept("doctor", KEPT_SECONDS, lambda: _examine(reading))
    return page


def _examine(reading: Reading) -> DoctorPage:
    began = time.monotonic()
    with open_installation(reading.config) as installation:
        results = run(installation, EXAMINATIONS)
    found = [finding for result in results for finding in result.findings]
    return DoctorPage(
        began_at=reading.now,
        seconds=round(time.monotonic() - began, 3),
        findings=tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level))),
        not_examined=tuple(result for result in results if result.needs),
        clean=tuple(result.name for result in results if not result.needs and not result.findings),
    )
