"""Finds everything that needs an operator, with its remedy. The status command, its check, the page and the doctor share it.

`read_stuck` reads the view `stuck`: conditions in which nothing moves. `list_findings` adds those of the overview.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Literal, get_args

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.health_views import AFTER_SECONDS, MOST_LISTED, Kind
from inbox.events.states import GONE_SECONDS
from inbox.events.timestamps import rfc3339
from relay.delivery.gates import format_resume_command
from relay.store.database import Database
from relay.store.overview import FiringAlert, HeldGate, Overview
from relay.store.route_states import RouteState
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction
from relay.words import format_count, format_relative

Level = Literal["critical", "warning", "information"]
"""Critical: webhooks are lost, late or at risk. Warning: they soon will be, or an operator must decide. Information: the rest."""
LEVELS: tuple[Level, ...] = ("critical", "warning", "information")


class Finding(msgspec.Struct, frozen=True):
    """A problem that needs an operator, or a line of information."""

    kind: str
    level: Level
    sentence: str
    subject: str = ""
    """Name of the affected route, gate, file or table."""
    why: str = ""
    """The cause, if known."""
    since: datetime | None = None
    remedy: str = ""
    """The command that fixes it; empty for information."""
    fields: Mapping[str, str] = {}
    """Values for the remedy's placeholders, or the fields that select the subject."""


class FindingKind(msgspec.Struct, frozen=True):
    """A kind of finding."""

    name: str
    level: Level
    meaning: str
    """The condition and its consequence."""
    remedy: str = ""
    """The command, with `{…}` placeholders for fields."""

    def found(
        self,
        subject: str,
        sentence: str,
        *,
        level: Level | None = None,
        why: str = "",
        since: datetime | None = None,
        remedy: str | None = None,
        fields: Mapping[str, str] = {},
    ) -> Finding:
        """Make a finding of this kind. `level` and `remedy` override the kind's own."""
        quoted = {name: shlex.quote(value) for name, value in fields.items()}
        command = self.remedy.format_map(quoted) if remedy is None else remedy
        return Finding(self.name, level or self.level, sentence, subject, why, since, command, fields)


_REASON = " --reason '…'"
_KINDS = (
    FindingKind("no_relay", "critical", "No relay is alive: nothing is delivered.", "relay run"),
    FindingKind("crash_loop", "critical", "Relays of a host die soon after they start.", "relay run --verbose"),
    FindingKind("step_failed", "critical", "A step of a running relay fails; the others go on.", "relay status"),
    FindingKind(
        "config_differs",
        "warning",
        "Running relays have different configurations for a minute.",
        "kill -HUP PID # each",
    ),
    FindingKind(
        "failing",
        "critical",
        "The last attempts of a route failed. A single failure, or failures for less than a minute, are a warning.",
        "inbox list --route {route}",
    ),
    FindingKind("unordered", "critical", "An event has no place in its lane after a minute.", "relay status"),
    FindingKind(
        "stuck",
        "critical",
        "A delivery has been due for a minute and its route does not move, although no gate holds it back.",
        "inbox list --route {route} --state ready",
    ),
    FindingKind(
        "blocked", "warning", "A dead delivery blocks later events of its entity.", "relay dead --route {route}"
    ),
    FindingKind("command", "warning", "No relay has taken up a command for a minute.", "relay run"),
    FindingKind(
        "command_failed", "warning", "A command failed, or could not change some deliveries.", "inbox commands"
    ),
    FindingKind(
        "gate_closed",
        "warning",
        "A gate has been paused for three days, a breaker open for an hour, or an endpoint is gone. Until then, information.",
        f"relay resume --KIND NAME{_REASON}",
    ),
    FindingKind(
        "delivery_dead", "warning", "Deliveries were given up: changes are missing.", "relay dead --route {route}"
    ),
    FindingKind(
        "unconfigured",
        "warning",
        "Deliveries are open on a route missing from inbox.toml: no relay delivers them, and their payloads are kept.",
        f"relay cancel --route {{route}}{_REASON}",
    ),
    FindingKind(
        "renamed",
        "warning",
        "Deliveries are open on a route missing from inbox.toml, and one other route has taken such events since.",
        f"relay replay --route {{route}} --backfill --open-on {{open_on}}{_REASON}",
    ),
    FindingKind(
        "retrying",
        "information",
        "Retries are due in more than a minute; once the cause is fixed, `relay retry` makes them due now.",
        f"relay retry --route {{route}}{_REASON}",
    ),
    FindingKind(
        "clock_went_back",
        "warning",
        "Stored times are ahead of the database's clock, as after it was set back: retries are late by as much.",
        f"relay retry --all{_REASON}",
    ),
    FindingKind("sweep_failed", "warning", "The last sweep of a source failed.", "relay sweep --source {source}"),
    FindingKind("alert", "warning", "An alert is firing.", "relay status"),
)
KINDS: Mapping[str, FindingKind] = {kind.name: kind for kind in _KINDS}
CHECKED = tuple(name for name in KINDS if name in get_args(Kind))
"""Kinds that `relay status --check` looks for: those of the view `stuck`."""
_FOR_A_RESTART = ("step_failed", "crash_loop", "unordered", "stuck")
"""Kinds other than `no_relay` that a restart of a relay may fix."""


# --- conditions of the view


def read_stuck(database: Database, *, host: str | None = None) -> list[Finding]:
    """Read the findings of `relay status --check`, grouped by route.

    With a `host`, a relay must be alive there, and findings that a restart can't fix are skipped.
    """
    with database.read() as transaction:
        if host is None:
            return [*_read_view(transaction, CHECKED)]
        alive = transaction.execute(_ALIVE_ON, host=host, ago=-float(GONE_SECONDS))
        none = KINDS["no_relay"].found("", f"no relay on {host} has sent a heartbeat for {GONE_SECONDS} s")
        return [*([] if alive else [none]), *_read_view(transaction, _FOR_A_RESTART)]


def _read_view(transaction: Transaction, kinds: tuple[str, ...]) -> Iterator[Finding]:
    now = transaction.now()
    for row in sorted(transaction.execute(_select_branches(kinds)), key=lambda row: kinds.index(row.finding)):
        why = "; ".join(row.why.splitlines())
        sentence, subject, fields = f"route {row.route}: {why}", row.route or why, {"route": row.route or ""}
        if row.finding == "unordered":  # names the event, so that two checks can be compared
            sentence = subject = f"event {row.first} has waited a minute for its place in its lane"
            fields = {}
        elif row.finding == "blocked":
            more = " or more" if row.found >= MOST_LISTED else ""
            sentence = f"route {row.route}: {row.found}{more} {'lane is' if row.found == 1 else 'lanes are'} blocked"
        elif row.route is None:
            sentence, fields = why, {}
        since = None if row.seconds is None else now - timedelta(seconds=float(row.seconds))
        is_new = row.finding == "failing" and (row.number == 1 or float(row.seconds) <= AFTER_SECONDS)
        level: Level | None = "warning" if is_new else None
        yield KINDS[row.finding].found(subject, sentence, level=level, since=since, fields=fields)


@cache
def _select_branches(kinds: tuple[str, ...]) -> TextClause:
    """Select the first rows of some branches of the view. Both databases omit the other branches from the query plan."""
    return text(f"""
SELECT finding, route, why, min(seq) AS first, count(*) AS found, max(for_seconds) AS seconds, max(number) AS number
FROM stuck WHERE finding IN ({", ".join(f"'{kind}'" for kind in kinds)})
GROUP BY finding, route, why ORDER BY route, why LIMIT {_MOST_CHECKED}
""")


_MOST_CHECKED = 1000


_ALIVE_ON = Statement(f"""
SELECT 1 FROM relay_node n
WHERE n.host = :host AND n.stopped_at IS NULL
  AND n.heartbeat_at >= {sql.plus_seconds(f"(SELECT {sql.now})", ":ago")}
LIMIT 1
""")


# --- all findings

MOST_NAMED = 3
"""Findings of one kind that the command line lists separately; the rest are summarised."""
_SOON = timedelta(minutes=1)
"""Retries due within this time are not findings."""
_END_SOON = frozenset({"limited", "held"})
"""States of a gate that end on their own."""
_PAUSED_FOR, _OPEN_FOR = timedelta(days=3), timedelta(hours=1)
"""Age at which a pause, or an open breaker, becomes a warning: pauses are deliberate, and breakers close on their own."""
_CRITICAL_ALERTS = frozenset({"intake_stopped", "step_failed"})
_SAID_OTHERWISE = frozenset({"delivery_dead", "breaker_open", "endpoint_retired", "step_failed"})
"""Alerts about routes, gates and steps, which already have their own findings."""
_OF_ALL = {
    "blocked": "relay dead",
    "delivery_dead": "relay dead",
    "gate_closed": "relay status --wide",
    "retrying": f"relay retry --all{_REASON}",
}
"""The command that lists all findings of a kind."""


def list_findings(seen: Overview, checked: Sequence[Finding], most_named: int = MOST_NAMED) -> tuple[Finding, ...]:
    """List all findings, the most urgent first and information last.

    Args:
        seen: the overview.
        checked: the findings of `read_stuck`, read at the same time.
        most_named: the maximum number of findings of one kind to list separately.
    """
    found = [
        *checked,
        *(_from_gate(gate, seen.at) for gate in seen.gates if gate.state not in _END_SOON),
        *_from_routes(seen),
        *(
            KINDS["clock_went_back"].found(name, f"the newest {name} is {format_relative(at, seen.at)}: {rfc3339(at)}")
            for name, at in seen.ahead.items()
        ),
        *(from_alert(alert) for alert in seen.alerts if alert.kind not in _SAID_OTHERWISE),
    ]
    named: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in _sort_by_urgency(found):
        named[finding.kind].append(finding)
    few = [each for some in named.values() for each in some[:most_named]]
    for kind, some in named.items():
        if more := some[most_named:]:
            everything = {"everything": "true"} if kind == "retrying" else {}
            sentence = f"{kind.replace('_', ' ')}: {len(more):,} more like it, list them all"
            few.append(
                Finding(kind, more[0].level, sentence, remedy=_OF_ALL.get(kind, "relay status"), fields=everything)
            )
    return _sort_by_urgency(few)


def is_well(findings: Iterable[Finding]) -> bool:
    """Return whether all findings are information."""
    return all(finding.level == "information" for finding in findings)


def _sort_by_urgency(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))


def from_alert(alert: FiringAlert) -> Finding:
    """Return the finding for a firing alert."""
    if alert.kind == "sweep_failed":
        fields = {"source": alert.subject.partition(" ")[0]}  # the entity type follows
        return KINDS["sweep_failed"].found(alert.subject, alert.text, since=alert.since, fields=fields)
    level: Level = "critical" if alert.kind in _CRITICAL_ALERTS else "warning"
    fields = {"alert": alert.kind}
    return KINDS["alert"].found(alert.subject, alert.text, level=level, since=alert.since, fields=fields)


def _from_gate(gate: HeldGate, now: datetime) -> Finding:
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
    command = f"{format_resume_command(gate.kind, gate.name)}{_REASON}"
    return KINDS["gate_closed"].found(
        gate.title, sentence, level=level, why=why, since=gate.since, remedy=command, fields=gate.fields
    )


def _from_routes(seen: Overview) -> Iterator[Finding]:
    died = {alert.subject: alert for alert in seen.alerts if alert.kind == "delivery_dead"}
    for route in seen.routes:
        fields = {"route": route.route}
        if route.dead:
            alert, more = died.get(route.route), " or more" if "dead" in route.at_least else ""
            verb = "delivery is dead" if route.dead == 1 else "deliveries are dead"
            sentence = f"route {route.route}: {route.dead:,}{more} {verb}"
            why, since = (alert.text, alert.since) if alert else ("", None)
            yield KINDS["delivery_dead"].found(route.route, sentence, why=why, since=since, fields=fields)
        if not route.is_configured and route.open:
            number = format_count(route.open, "delivery")
            sentence = f"{number} of route {route.route}, which is missing from inbox.toml: "
            if route.new_name is None:
                yield KINDS["unconfigured"].found(
                    route.route, f"{sentence}end them for good, or replay them on another", fields=fields
                )
            else:
                sentence += f"if {route.new_name} is its new name, deliver them there, then cancel them here"
                move = {"route": route.new_name, "backfill": "true", "open_on": route.route}
                yield KINDS["renamed"].found(route.route, sentence, fields=move)
        if route.next_due_at is not None and route.next_due_at > seen.at + _SOON and not route.held_back_by:
            due, more = format_relative(route.next_due_at, seen.at), " or more" if "retrying" in route.at_least else ""
            verb = f"attempt waits, due {due}" if route.retrying == 1 else f"attempts wait, the first is due {due}"
            sentence = f"route {route.route}: {route.retrying:,}{more} {verb}"
            yield KINDS["retrying"].found(route.route, sentence, fields=fields)


def get_route_state(route: RouteState, findings: Iterable[Finding]) -> str:
    """Return the worst state of a route, as one word."""
    kinds = {finding.kind for finding in findings if finding.subject == route.route}
    states = (
        ("gone", not route.is_configured and route.open),
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
