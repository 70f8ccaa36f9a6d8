"""Finds everything that needs a person, with its remedy, once for status, its check, the page and the doctor.

`checked` reads conditions under which nothing moves, in the words of the view `stuck`. `findings` adds to them, purely, what
the overview shows.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, get_args

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from inbox.db.stuck import MOST_LISTED, Kind, SqlClock, branches
from inbox.events.states import GONE_SECONDS
from inbox.examination import LEVELS, Finding, FindingKind, Level
from relay.delivery.gates import resume_command
from relay.store.database import Database
from relay.store.overview import FiringAlert, HeldGate, Overview
from relay.store.route_states import RouteState
from relay.store.transaction import Transaction
from relay.words import counted, relative

_REASON = " --reason '…'"
KINDS: Mapping[str, FindingKind] = {
    kind.name: kind
    for kind in (
        FindingKind(
            "no_relay", "critical", "No relay is alive.", "webhooks are stored and nothing is delivered", "relay run"
        ),
        FindingKind(
            "crash_loop",
            "critical",
            "Relays of a host die soon after they start.",
            "deliveries stop, and attempts in flight are repeated",
            "relay run --verbose",
        ),
        FindingKind(
            "step_failed",
            "critical",
            "A step of a running relay fails.",
            "the relay's other steps go on, and this one is retried",
            "relay status",
        ),
        FindingKind(
            "config_differs",
            "warning",
            "Running relays have different apis, destinations or routes.",
            "which of them delivers an event decides what becomes of it",
            "kill -HUP PID # each relay, after giving all of them the same inbox.toml",
        ),
        FindingKind(
            "failing",
            "critical",
            "Every attempt of a route since its last success failed.",
            "nothing of it arrives, although relays try",
            "inbox list --route {route}",
        ),
        FindingKind(
            "unordered",
            "critical",
            "An event has waited a minute for its place in its lane.",
            "webhooks are not delivered although nothing holds them back",
            "relay status",
        ),
        FindingKind(
            "stuck",
            "critical",
            "Something has been due for a minute, and nothing moves on its route.",
            "webhooks are not delivered although nothing holds them back",
            "inbox list --route {route} --state ready",
        ),
        FindingKind(
            "blocked",
            "warning",
            "A dead delivery blocks its lane.",
            "later events of the same entity wait behind it",
            "relay dead --route {route}",
        ),
        FindingKind(
            "command",
            "warning",
            "A command has waited for a minute.",
            "no relay takes it up, so what an operator asked for does not happen",
            "relay run",
        ),
        FindingKind(
            "command_failed",
            "warning",
            "A command failed within the last hour, or could not change some deliveries.",
            "what an operator asked for did not happen, or not wholly",
            "relay status",
        ),
        FindingKind(
            "gate_closed",
            "warning",
            "A gate has been paused for three days, its breaker open for an hour, or its endpoint is gone; before, information.",
            "its deliveries wait, and use no attempt; a pause may have been forgotten",
            "relay resume --KIND NAME",
        ),
        FindingKind(
            "delivery_dead",
            "warning",
            "Deliveries were given up.",
            "the other system lacks these changes, and nobody tries again by himself",
            "relay dead --route {route}",
        ),
        FindingKind(
            "unconfigured",
            "warning",
            "Deliveries are open on a route that inbox.toml lacks.",
            "no relay works on them, and their payloads stay",
            f"relay cancel --route {{route}}{_REASON}",
        ),
        FindingKind(
            "retrying",
            "information",
            "Attempts wait for more than a minute after a failure.",
            "they are repeated by themselves; once the cause is gone, `relay retry` need not wait",
            f"relay retry --route {{route}}{_REASON}",
        ),
        FindingKind(
            "sweep_failed",
            "warning",
            "The last sweep of a source failed.",
            "changes that no webhook reported are not found",
            "relay sweep --source {source}",
        ),
        FindingKind(
            "alert",
            "warning",
            "An alert has not recovered.",
            "a condition that relays or the receiver watch has begun and not ended",
            "relay status",
        ),
    )
}
CHECKED: frozenset[str] = frozenset(name for name in KINDS if name in get_args(Kind))
"""Kinds that `relay status --check` looks for, as the view `stuck` has them."""
_FOR_A_RESTART = ("step_failed", "crash_loop", "unordered", "stuck")
"""Of these, the kinds that may be gone after a restart of a relay, beside `no_relay`."""


def _found(kind: str, sentence: str, subject: str = "", **more: Any) -> Finding:  # noqa: ANN401  # fields of Finding
    """Make a finding; its fields fill the command of its kind, unless `remedy` is given."""
    fields: Mapping[str, str] = more.get("fields", {})
    quoted = {name: shlex.quote(value) for name, value in fields.items()}
    command = {} if "remedy" in more else {"remedy": KINDS[kind].remedy.format_map(quoted)}
    return Finding(kind, more.pop("level", KINDS[kind].level), sentence, subject, **{**command, **more})


# --- conditions of the view


def checked(database: Database, *, host: str | None = None) -> list[Finding]:
    """Read the findings of `relay status --check`; those of a route are summed up.

    With a `host`, its relay must be alive, and findings that only a person can fix are left out: a restart helps none.
    """
    with database.read() as transaction:
        if host is None:
            return [*_of_view(transaction, tuple(name for name in KINDS if name in CHECKED))]
        alive = transaction.execute(_alive_on(transaction.sql), host=host, ago=-float(GONE_SECONDS))
        told = f"no relay on {host} has sent a heartbeat for {GONE_SECONDS} s"
        none = [] if alive else [_found("no_relay", told, step=_START)]
        return [*none, *_of_view(transaction, _FOR_A_RESTART)]


_START = "no relay runs: start one"
_STEPS = {"no_relay": _START, "crash_loop": "relays die soon after they start: start one here, and read why"}


def _of_view(transaction: Transaction, kinds: tuple[str, ...]) -> Iterator[Finding]:
    now = transaction.now()
    order = {kind: number for number, kind in enumerate(kinds)}
    for row in sorted(transaction.execute(_checked(transaction.sql, kinds)), key=lambda row: order[row.finding]):
        why = "; ".join(row.why.splitlines())
        sentence, subject, fields = (
            f"route {row.route}: {why}",
            row.route or why,
            {"route": row.route} if row.route else {},
        )
        if row.finding == "unordered":  # it is named, so that two looks can tell whether it is still the same
            sentence = subject = f"event {row.first} has waited a minute for its place in its lane"
            fields = {}
        elif row.finding == "blocked":
            more = " or more" if row.number >= MOST_LISTED else ""
            sentence = f"route {row.route}: {row.number}{more} {'lane is' if row.number == 1 else 'lanes are'} blocked"
        elif row.route is None:
            sentence = why
        since = None if row.seconds is None else now - timedelta(seconds=float(row.seconds))
        yield _found(row.finding, sentence, subject, since=since, step=_STEPS.get(row.finding, ""), fields=fields)


@cache
def _checked(sql: Sql, kinds: tuple[str, ...]) -> TextClause:
    """Select the first rows of some branches of the view, by the clock of this check."""
    every = {str(kind): branch for kind, branch in branches(SqlClock(sql.name, f"(SELECT {sql.now})")).items()}
    return text(
        "\nUNION ALL\n".join(
            "SELECT * FROM (SELECT b.finding, CAST(b.route AS text) AS route, b.why, min(CAST(b.seq AS bigint)) AS first,"
            f" count(*) AS number, max(CAST(b.for_seconds AS numeric)) AS seconds FROM ({every[kind]}) b"
            " GROUP BY b.finding, b.route, b.why"
            f" ORDER BY b.route, b.why LIMIT {_MOST_OF_A_KIND}) of_{kind}"
            for kind in kinds
        )
    )


_MOST_OF_A_KIND = 100


@cache
def _alive_on(sql: Sql) -> TextClause:
    return text(f"""
SELECT 1 FROM relay_node n
WHERE n.host = :host AND n.stopped_at IS NULL
  AND n.heartbeat_at >= {sql.plus_seconds(f"(SELECT {sql.now})", ":ago")}
LIMIT 1
""")


# --- all findings

MOST_NAMED = 3
"""So many routes or gates of one problem have a finding of their own, at a terminal."""
_SOON = timedelta(minutes=1)
"""A retry that is due by then needs nobody."""
_END_SOON = frozenset({"limited", "held"})
"""States of a gate that end by themselves, as the endpoint or its rate wants it."""
_PAUSED_FOR, _OPEN_FOR = timedelta(days=3), timedelta(hours=1)
"""A pause is meant, and a breaker closes by itself: they are information for so long."""
_CRITICAL_ALERTS = frozenset({"intake_stopped", "step_failed"})
_SAID_BY = {
    "delivery_dead": ("delivery_dead", "blocked"),
    "breaker_open": ("gate_closed",),
    "endpoint_retired": ("gate_closed",),
    "sweep_failed": ("sweep_failed",),
    "step_failed": ("step_failed",),
}
"""Findings that say the same as an alert, which then only adds since when, and why."""


def findings(seen: Overview, checked: Sequence[Finding], most_named: int = MOST_NAMED) -> tuple[Finding, ...]:
    """List everything that needs a person, the most urgent first, and information last, such as a pause of today.

    Args:
        seen: the state of everything.
        checked: the findings of `checked` at the same time.
        most_named: largest number of routes or gates with the same problem that have a finding each.
    """
    gates = _by_urgency(_of_gate(gate, seen.at) for gate in seen.gates if gate.state not in _END_SOON)
    blocked = {finding.subject for finding in checked if finding.kind == "blocked"}
    if len(blocked) > most_named:
        checked, blocked = [finding for finding in checked if finding.kind != "blocked"], set()
    found = [
        *checked,
        *gates[:most_named],
        *_of_more_gates(gates[most_named:]),
        *_of_routes(seen, most_named, blocked),
        *_of_sweeps(seen),
    ]
    alerts = [alert for alert in seen.alerts if not _is_over(alert, seen)]
    said = {alert for alert in alerts for finding in (*found, *gates) if _says(finding, alert)}
    found = [_with_alert(finding, [alert for alert in alerts if _says(finding, alert)]) for finding in found]
    found += [of_alert(alert) for alert in alerts if alert not in said]
    return _by_urgency(found)


def is_well(findings: Iterable[Finding]) -> bool:
    """Tell whether nothing needs a person: information doesn't."""
    return all(finding.level == "information" for finding in findings)


def _by_urgency(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))


def _says(finding: Finding, alert: FiringAlert) -> bool:
    """Tell whether both are about the same. Alerts of sweeps also name the type of entity; those of steps no relay."""
    if finding.kind not in _SAID_BY.get(alert.kind, ()):
        return False
    is_of_subject = alert.subject == finding.subject or alert.subject.startswith(f"{finding.subject} ")
    return alert.kind == "step_failed" or (bool(finding.subject) and is_of_subject)


def _with_alert(finding: Finding, alerts: Sequence[FiringAlert]) -> Finding:
    if not alerts or alerts[0].kind == "step_failed":
        return finding
    why, since = finding.why or alerts[0].text, finding.since or alerts[0].since
    return msgspec.structs.replace(finding, why=why, since=since)


def _is_over(alert: FiringAlert, seen: Overview) -> bool:
    """Tell whether the dead letters of an alert are gone: a relay ends the alert only half a minute later."""
    route = next((route for route in seen.routes if route.route == alert.subject), None)
    return alert.kind == "delivery_dead" and route is not None and not route.dead and not route.blocked


def of_alert(alert: FiringAlert) -> Finding:
    """Return the finding of an alert that has not recovered."""
    level: Level = "critical" if alert.kind in _CRITICAL_ALERTS else "warning"
    return Finding(
        "alert", level, alert.text, alert.subject, "", alert.since, KINDS["alert"].remedy, fields={"alert": alert.kind}
    )


def _of_gate(gate: HeldGate, now: datetime) -> Finding:
    lasts = timedelta() if gate.since is None else now - gate.since
    is_long = gate.state == "retired" or lasts > (_PAUSED_FOR if gate.state == "paused" else _OPEN_FOR)
    level: Level = "warning" if is_long else "information"
    if gate.state == "paused":
        sentence = f"{gate.title} is paused: resume it to deliver again"
    elif gate.state == "retired":
        sentence = f"{gate.title} answered that it is gone (410): resume it once it is back"
    else:
        sentence = f"{gate.title} is not called, its circuit breaker is open: resume it once it works again"
    why = ": ".join(part for part in (gate.by, gate.why) if part)
    command = resume_command(gate.kind, gate.name)
    more = {"why": why, "since": gate.since, "remedy": command, "fields": gate.fields}
    return _found("gate_closed", sentence, gate.title, level=level, **more)


def _of_more_gates(more: Sequence[Finding]) -> Iterator[Finding]:
    if more:
        sentence = f"{counted(len(more), 'more gate')} let nothing through: list them all"
        yield _found("gate_closed", sentence, level=more[0].level, remedy="relay pause")


def state_of(route: RouteState, findings: Iterable[Finding]) -> str:
    """Return a route's state in a word: the worst that is true of it."""
    kinds = {finding.kind for finding in findings if finding.subject == route.route}
    states = (
        ("stuck", "stuck" in kinds),
        ("failing", "failing" in kinds),
        ("held back", route.held_back_by),
        ("blocked", route.blocked),
        ("busy", route.ready + route.in_flight + route.received),
        ("retrying", route.retrying),
        ("dead", route.dead),
        ("waiting", route.waiting),
    )
    return next((name for name, is_so in states if is_so), "ok")


def _of_routes(seen: Overview, most_named: int, blocked: set[str]) -> Iterator[Finding]:
    lanes = [route for route in seen.routes if route.blocked and route.route not in blocked]
    yield from _each("blocked", "blocked", lanes, ("lane is blocked", "lanes are blocked"), most_named)
    dead = [route for route in seen.routes if route.dead]
    yield from _each("delivery_dead", "dead", dead, ("delivery is dead", "deliveries are dead"), most_named)
    for route in seen.routes:
        if not route.is_configured and route.open:
            sentence = (
                f"{counted(route.open, 'delivery')} of route {route.route}, which inbox.toml lacks: end them for good"
            )
            yield _found("unconfigured", sentence, route.route, fields={"route": route.route})
    later = [route for route in seen.routes if _waits_long(route, seen.at)]
    first = relative(min((route.next_due_at for route in later if route.next_due_at), default=seen.at), seen.at)
    words = (f"attempt waits, due {first}", f"attempts wait, the first is due {first}")
    yield from _each("retrying", "retrying", later, words, most_named)


def _each(
    kind: str, count: str, routes: Sequence[RouteState], words: tuple[str, str], most_named: int
) -> Iterator[Finding]:
    """Yield a finding for each route, or one for all where there are many."""
    if len(routes) > most_named:
        sentence = f"{sum(getattr(route, count) for route in routes):,} {words[1]}, on {len(routes)} routes"
        of_all = {"everything": "true"} if kind == "retrying" else {}
        yield _found(kind, sentence, remedy=f"relay retry --all{_REASON}" if of_all else "relay dead", fields=of_all)
        return
    for route in routes:
        number = getattr(route, count)
        more = " or more" if count in route.at_least else ""
        sentence = f"route {route.route}: {number:,}{more} {words[number != 1]}"
        yield _found(kind, sentence, route.route, fields={"route": route.route})


def _waits_long(route: RouteState, now: datetime) -> bool:
    """Tell whether the route's retries are far away, and no gate holds them back in any case."""
    return route.next_due_at is not None and route.next_due_at > now + _SOON and not route.held_back_by


def _of_sweeps(seen: Overview) -> Iterator[Finding]:
    failed = {row["source"]: row for row in seen.sweeps if row["error"]}
    for source, row in sorted(failed.items()):
        sentence = f"source {source} can't be swept: try it now"
        more = {"why": row["error"], "since": row["swept_at"], "fields": {"source": source}}
        yield _found("sweep_failed", sentence, source, **more)
