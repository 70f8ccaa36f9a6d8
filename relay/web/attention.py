"""Problems that need a person: findings of the health check, firing alerts, and what has a next step. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal
from urllib.parse import urlencode

import msgspec

from relay.next_steps import NextStep, Verb, next_steps
from relay.store.overview import FiringAlert, Overview
from relay.store.stuck_check import Trouble

Level = Literal["critical", "warning"]
"""Webhooks are lost or late now; or something waits for a person."""

MOST_NAMED = 5
"""Routes or gates of one problem that have a line of their own."""


class Remedy(msgspec.Struct, frozen=True):
    """The act of the page that mends a problem, or else the screen that shows more."""

    label: str
    act: str | None = None
    """Kind of the act; only operators get a button for it."""
    fields: Mapping[str, str] = {}
    path: str | None = None
    """The screen, where there is no act."""


class Concern(msgspec.Struct, frozen=True):
    """Something that needs a person."""

    level: Level
    what: str
    why: str | None = None
    since: datetime | None = None
    remedy: Remedy | None = None
    command: str | None = None
    """The same for a terminal."""


def concerns(seen: Overview, findings: Sequence[Trouble]) -> tuple[Concern, ...]:
    """List what needs a person: critical ones first, otherwise as they were found. Empty when all is well."""
    steps = list(next_steps(seen, findings, MOST_NAMED))
    alerts = [alert for alert in seen.alerts if not _is_over(alert, seen)]
    found = [*_of_findings(findings, steps, alerts), *_of_steps(steps, alerts), *map(_of_alert, alerts)]
    return tuple(sorted(found, key=lambda concern: _LEVELS.index(concern.level)))


def _is_over(alert: FiringAlert, seen: Overview) -> bool:
    """Tell whether the dead letters of an alert are gone: a relay ends the alert only half a minute later."""
    routes = {route.route: route for route in seen.routes}
    if alert.kind != "delivery_dead" or alert.subject not in routes:
        return False
    route = routes[alert.subject]
    return not route.dead and not route.blocked


_LEVELS: tuple[Level, ...] = ("critical", "warning")
_CRITICAL = frozenset({"no_relay", "crash_loop", "unordered", "stuck", "intake_stopped", "step_failed"})
"""Findings and alerts of this level."""


def _of_findings(findings: Iterable[Trouble], steps: list[NextStep], alerts: list[FiringAlert]) -> Iterator[Concern]:
    """Yield the findings; their steps and alerts are taken out of the lists, as they say the same."""
    for trouble in findings:
        step = next((each for each in steps if _mends(each, trouble)), None)
        if step is not None:
            steps.remove(step)
        alert = None
        if trouble.finding == "step_failed":
            _take(alerts, "step_failed", None)
        elif trouble.finding == "blocked":
            alert = _take(alerts, "delivery_dead", trouble.route)
        level: Level = "critical" if trouble.finding in _CRITICAL else "warning"
        remedy = _remedy_of(step) if step is not None else _screen_of(trouble)
        why, since = (alert.text, alert.since) if alert else (None, None)
        yield Concern(level, trouble.why, why, since, remedy, step.command if step else None)


def _mends(step: NextStep, trouble: Trouble) -> bool:
    if trouble.finding in {"no_relay", "crash_loop"}:
        return step.verb == "run"
    is_of_blocked = trouble.finding == "blocked" and step.text.endswith("blocked")
    return is_of_blocked and step.verb == "dead" and step.fields.get("route") == trouble.route


def _screen_of(trouble: Trouble) -> Remedy | None:
    if trouble.finding in {"command", "command_failed"}:
        return Remedy("Commands", path="/commands")
    if trouble.finding == "blocked":
        return Remedy("Dead letters", path=_path("/dead", {"route": trouble.route or ""}))
    if trouble.finding in {"stuck", "failing"}:
        fields = {"route": trouble.route or "", **({"state": "ready"} if trouble.finding == "stuck" else {})}
        return Remedy("Deliveries", path=_path("/deliveries", fields))
    return Remedy("Doctor", path="/doctor")


def _of_steps(steps: Iterable[NextStep], alerts: list[FiringAlert]) -> Iterator[Concern]:
    """Yield what has a step. The alert about the same says since when, and why."""
    for step in steps:
        alert = _alert_of(step, alerts)
        since, why = step.since, step.why
        if alert is not None:
            since, why = since or alert.since, why or alert.text
        yield Concern("warning", step.text, why, since, _remedy_of(step), step.command)


_ALERTS_OF: Mapping[Verb, tuple[str, ...]] = {
    "dead": ("delivery_dead",),
    "resume": ("breaker_open", "endpoint_retired"),
    "sweep": ("sweep_failed",),
}


def _alert_of(step: NextStep, alerts: list[FiringAlert]) -> FiringAlert | None:
    if len(step.fields) != 1:
        return None
    ((kind, name),) = step.fields.items()
    subject = f"{kind} {name}" if step.verb == "resume" else name
    taken = [_take(alerts, each, subject) for each in _ALERTS_OF.get(step.verb, ())]
    return next((alert for alert in taken if alert is not None), None)


def _take(alerts: list[FiringAlert], kind: str, subject: str | None) -> FiringAlert | None:
    """Take the alerts of this kind about a subject out of the list. Those of sweeps also name the type of entity."""
    found = [
        alert
        for alert in alerts
        if alert.kind == kind
        and (subject is None or alert.subject == subject or alert.subject.startswith(f"{subject} "))
    ]
    for alert in found:
        alerts.remove(alert)
    return found[0] if found else None


def _of_alert(alert: FiringAlert) -> Concern:
    level: Level = "critical" if alert.kind in _CRITICAL else "warning"
    return Concern(level, alert.text, None, alert.since, remedy_of_alert(alert))


def remedy_of_alert(alert: FiringAlert) -> Remedy:
    """Return the screen on which an alert is looked into."""
    if alert.kind == "backlog_old":
        return Remedy("Deliveries", path=_path("/deliveries", {"route": alert.subject}))
    if alert.kind == "source_silent":
        return Remedy("Rejected requests", path=_path("/rejected", {"source": alert.subject}))
    if alert.kind in {"breaker_open", "endpoint_retired", "sweep_failed", "webhooks_missed"}:
        return Remedy("Gates and sweeps", path="/gates")
    if alert.kind == "delivery_dead":
        return Remedy("Dead letters", path=_path("/dead", {"route": alert.subject}))
    return Remedy("Doctor", path="/doctor")


_ACTS: Mapping[Verb, str] = {"resume": "Resume", "cancel": "Cancel", "retry": "Retry now", "sweep": "Sweep now"}


def _remedy_of(step: NextStep) -> Remedy | None:
    if step.verb in _ACTS:
        return Remedy(_ACTS[step.verb], step.verb, step.fields)
    if step.verb == "dead":
        return Remedy("Dead letters", path=_path("/dead", step.fields))
    return Remedy("All gates", path="/gates") if step.verb == "pause" else None


def _path(path: str, fields: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(fields)}" if fields else path
