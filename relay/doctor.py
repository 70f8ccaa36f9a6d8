"""The relay's part in `inbox doctor`: relays, gates, deliveries, commands and sweeps, as `relay status` reads them."""

from __future__ import annotations

import shlex
import ssl
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import version as version_of

import msgspec

from inbox.config.model import Config, Destination, Endpoint, PythonDestination, SyncDestination
from inbox.errors import ConfigError, InboxRelayError, NotExamined
from inbox.events.timestamps import as_time, rfc3339
from inbox.examination import DoctorFinding, Examination, FindingKind, Installation
from relay.delivery.gates import resume_command
from relay.delivery.policy import policies
from relay.http.target import Target, certificate_end, prepare
from relay.store import stuck_check
from relay.store.database import Database
from relay.store.overview import Overview, read_overview

# --- relays

NO_RELAY = FindingKind(
    "no_relay", "critical", "No relay is alive.", "webhooks are stored and nothing is delivered", "relay run"
)
CRASH_LOOP = FindingKind(
    "crash_loop",
    "critical",
    "Relays of a host die soon after they start.",
    "deliveries stop, and attempts in flight are repeated",
    "relay run --verbose",
)
FAILING = FindingKind(
    "step_failed",
    "critical",
    "A step of a running relay fails.",
    "the relay's other steps go on, and this one is retried",
    "relay status --check",
)
GONE = FindingKind(
    "relay_gone",
    "warning",
    "A relay died within the last minutes.",
    "its attempts in flight were repeated by another; its log, or the system's, says why it ended",
    "relay status # shows which one; read its log",
)
VERSION = FindingKind(
    "version_differs",
    "warning",
    "A running relay has another version than the programs installed here.",
    "receiver and relay are tested together in one version; an upgrade may have forgotten a process",
    "relay status # shows host and pid; start that relay again",
)
DIFFERS = FindingKind(
    "configuration_differs",
    "warning",
    "Running relays have different apis, destinations or routes.",
    "which of them delivers an event decides what becomes of it",
    "kill -HUP {pid} # each relay, after giving all of them the same inbox.toml",
)
RELOAD = FindingKind(
    "configuration_changed",
    "information",
    "inbox.toml is newer than a relay of this host.",
    "a process reads it at its start and on SIGHUP, and nothing stores whether it has been told",
    "kill -HUP {pid}",
)


def _relays(installation: Installation) -> Iterator[DoctorFinding]:
    database = _database(installation)
    kinds = {"no_relay": NO_RELAY, "crash_loop": CRASH_LOOP, "step_failed": FAILING, "config_differs": DIFFERS}
    for trouble in (*stuck_check.relays_alive(database), *stuck_check.relays_in_trouble(database)):
        yield kinds[trouble.finding].found(trouble.route or "relay", trouble.why, pid="PID")
    here = version_of("inbox-relay")
    changed = _changed_at(installation)
    for relay in _overview(installation).relays:
        name = f"{relay.host} pid {relay.pid}"
        if relay.health != "running":
            yield GONE.found(
                name, f"relay {name} has been silent for {relay.silent_seconds:.0f} s, and did not stop by itself"
            )
            continue
        if relay.version != here:
            yield VERSION.found(name, f"relay {name} has version {relay.version}; {here} is installed here")
        started = as_time(relay.started_at)
        if relay.host == installation.host and changed is not None and started.timestamp() < changed:
            what = f"{installation.path} was changed after relay {name} had started"
            yield RELOAD.found(name, what, pid=relay.pid)


def _changed_at(installation: Installation) -> float | None:
    try:
        return installation.path.stat().st_mtime
    except OSError:
        return None


# --- gates

PAUSED = FindingKind(
    "paused_for_days",
    "warning",
    "A gate has been paused for days.",
    "its deliveries wait, and their payloads and rows stay; somebody may have forgotten it",
    "relay resume",
)
RETIRED = FindingKind(
    "endpoint_retired",
    "warning",
    "An endpoint is gone for good: it answered 410.",
    "it is not called until somebody resumes it",
    "relay resume",
)
BREAKER = FindingKind(
    "breaker_open_long",
    "warning",
    "A circuit breaker has been open for an hour.",
    "the other system fails or rejects the credentials; its deliveries wait, and use no attempt",
    "relay resume",
)
HELD = FindingKind(
    "gate_closed", "information", "A gate holds deliveries back.", "a pause, breaker or hold is meant to"
)
_PAUSED_FOR, _OPEN_FOR = timedelta(days=3), timedelta(hours=1)


def _gates(installation: Installation) -> Iterator[DoctorFinding]:
    seen = _overview(installation)
    for gate in seen.gates:
        if gate.state in {"limited", "held"}:
            continue
        mend = resume_command(gate.kind, gate.name)
        since = None if gate.since is None else as_time(gate.since)
        lasts = timedelta() if since is None else as_time(seen.at) - since
        words = f"{gate.title} is {gate.state}" + (f" since {rfc3339(since, 'seconds')}" if since else "")
        words += (f" by {gate.by}" if gate.by else "") + (f": {gate.why}" if gate.why else "")
        if gate.state == "paused":
            kind = PAUSED if lasts > _PAUSED_FOR else HELD
        elif gate.state == "retired":
            kind = RETIRED
        else:
            kind = BREAKER if lasts > _OPEN_FOR else HELD
        yield kind.found(gate.title, words, mend=mend)


# --- deliveries

STUCK = FindingKind(
    "route_stuck",
    "critical",
    "Something has been due for a minute, and nothing moves.",
    "webhooks are not delivered although nothing holds them back",
    "relay status",
)
ROUTE_FAILING = FindingKind(
    "route_failing",
    "critical",
    "Every attempt of a route since its last success failed.",
    "nothing of it arrives, although relays try",
    "inbox list --route {route}",
)
BLOCKED = FindingKind(
    "lanes_blocked",
    "warning",
    "A dead delivery blocks its lane.",
    "later events of the same entity wait behind it",
    "relay dead",
)
DEAD = FindingKind(
    "delivery_dead",
    "warning",
    "Deliveries were given up.",
    "the other system lacks these changes, and nobody tries again by himself",
    "relay dead --route {route}",
)
UNCONFIGURED = FindingKind(
    "route_unconfigured",
    "warning",
    "Deliveries are open on a route that inbox.toml lacks.",
    "no relay works on them, and their payloads stay",
    "relay cancel --route {route} --reason WHY",
)


def _deliveries(installation: Installation) -> Iterator[DoctorFinding]:
    database = _database(installation)
    seen = _overview(installation)
    if (first := stuck_check.unordered(database)) is not None:
        yield STUCK.found("order", f"event {first} has waited a minute for its place in its lane")
    for route in stuck_check.stuck_routes(database, policies(installation.config)):
        yield STUCK.found(route, f"route {route}: due for a minute, and nothing moves")
    for trouble in stuck_check.routes_in_trouble(database):
        yield ROUTE_FAILING.found(trouble.route or "", trouble.why, route=shlex.quote(trouble.route or ""))
    for each in seen.routes:
        quoted = shlex.quote(each.route)
        if each.blocked:
            more = " or more" if "blocked" in each.at_least else ""
            what = f"route {each.route}: {each.blocked:,}{more} blocked"
            yield BLOCKED.found(each.route, what, mend=f"relay dead --route {quoted}")
        if each.dead:
            more = " or more" if "dead" in each.at_least else ""
            yield DEAD.found(each.route, f"route {each.route}: {each.dead:,}{more} dead", route=quoted)
        if each.open and not each.is_configured:
            yield UNCONFIGURED.found(each.route, f"route {each.route}: {each.open:,} open", route=quoted)


# --- commands, sweeps, alerts

WAITING = FindingKind(
    "command_waiting",
    "warning",
    "A command has waited for a minute.",
    "no relay takes it up, so what an operator asked for does not happen",
    "relay run",
)
COMMAND_FAILED = FindingKind(
    "command_failed",
    "warning",
    "A command failed within the last hour, or could not change some deliveries.",
    "what an operator asked for did not happen, or not wholly",
    "relay status",
)
SWEEP_FAILED = FindingKind(
    "sweep_failed",
    "warning",
    "The last sweep of a source failed.",
    "changes that no webhook reported are not found",
    "relay sweep --source {source}",
)
ALERT = FindingKind(
    "alert_open",
    "warning",
    "An alert has not recovered.",
    "a condition that relays or the receiver watch has begun and not ended",
    "relay status",
)
_OTHERWISE = frozenset(
    {"delivery_dead", "breaker_open", "endpoint_retired", "source_silent", "sweep_failed", "step_failed"}
)
"""Alerts whose condition another examination looks at."""


def _commands(installation: Installation) -> Iterator[DoctorFinding]:
    kinds = {"command": WAITING, "command_failed": COMMAND_FAILED}
    for trouble in stuck_check.commands_in_trouble(_database(installation)):
        yield kinds[trouble.finding].found("command", trouble.why)


def _sweeps(installation: Installation) -> Iterator[DoctorFinding]:
    for row in _overview(installation).sweeps:
        if row["error"]:
            what = f"source {row['source']} {row['entity_type']}: {row['error']}"
            yield SWEEP_FAILED.found(row["source"], what, source=shlex.quote(row["source"]))


def _alerts(installation: Installation) -> Iterator[DoctorFinding]:
    for alert in _overview(installation).alerts:
        if alert.kind not in _OTHERWISE:
            yield ALERT.found(alert.subject, f"since {rfc3339(as_time(alert.since), 'seconds')}: {alert.text}")


# --- certificates of the other systems

TLS_EXPIRING = FindingKind(
    "tls_expiring",
    "warning",
    "The certificate of an api or a destination expires within 30 days.",
    "calls fail from then on, unless its operator renews it",
    "openssl s_client -connect {place} </dev/null | openssl x509 -noout -enddate",
)
TLS_REJECTED = FindingKind(
    "tls_rejected",
    "critical",
    "The certificate of an api or a destination is not accepted.",
    "every call to it fails before anything is sent",
    "openssl s_client -connect {place} </dev/null | openssl x509 -noout -text",
)
_SOON = timedelta(days=30)


def _tls(installation: Installation) -> Iterator[DoctorFinding]:
    for key, target in _targets(installation.config):
        host = target.base.partition("://")[2].partition("/")[0]
        place = shlex.quote(host if host.rpartition(":")[2].isdigit() else f"{host}:443")
        try:
            end = certificate_end(target)
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or "no TLS"
            yield TLS_REJECTED.found(key, f"{key}: the certificate of {host} is not accepted: {reason}", place=place)
            continue
        except (OSError, InboxRelayError):  # not reached, which the examination `systems` finds
            continue
        if end is not None and end <= installation.now + _SOON:
            yield TLS_EXPIRING.found(key, f"{key}: the certificate of {host} ends at {rfc3339(end)}", place=place)


def _targets(config: Config) -> Iterator[tuple[str, Target]]:
    """Yield every endpoint that can be called, without its credentials."""
    for name, api in config.apis.items():
        yield from _target(f"apis.{name}", api, api.base_url, config)
    for name, destination in config.destinations.items():
        if not isinstance(destination, PythonDestination):
            yield from _target(f"destinations.{name}", destination, _url_of(destination), config)


def _url_of(destination: Destination) -> str:
    if isinstance(destination, PythonDestination):
        return ""
    if isinstance(destination, SyncDestination):
        return destination.base_url
    try:
        return destination.url.reveal()
    except ConfigError:  # it is told as a mistake
        return ""


def _target(key: str, endpoint: Endpoint, url: str, config: Config) -> Iterator[tuple[str, Target]]:
    try:
        yield key, prepare(msgspec.structs.replace(endpoint, auth=None, headers={}), url, key, config.outbound)
    except ConfigError:  # likewise
        return


def _database(installation: Installation) -> Database:
    if installation.engine is None:
        raise NotExamined("needs a database url that can be used: run `inbox check`")
    return Database(installation.engine)


def _overview(installation: Installation) -> Overview:
    return read_overview(_database(installation), policies(installation.config))


EXAMINATIONS = (
    Examination(
        "relays",
        "Relays",
        "Heartbeats, crash loops, failing steps and versions of relays.",
        _relays,
        (NO_RELAY, CRASH_LOOP, FAILING, GONE, VERSION, DIFFERS, RELOAD),
    ),
    Examination("alerts", "Relays", "Alerts that have not recovered.", _alerts, (ALERT,)),
    Examination("commands", "Relays", "Commands that wait or failed.", _commands, (WAITING, COMMAND_FAILED)),
    Examination("sweeps", "Relays", "The last sweep of each source.", _sweeps, (SWEEP_FAILED,)),
    Examination("gates", "Deliveries", "Pauses and circuit breakers.", _gates, (PAUSED, RETIRED, BREAKER, HELD)),
    Examination(
        "deliveries",
        "Deliveries",
        "Routes that stand still, blocked lanes and dead deliveries.",
        _deliveries,
        (STUCK, ROUTE_FAILING, BLOCKED, DEAD, UNCONFIGURED),
    ),
    Examination(
        "tls",
        "Other systems",
        "Certificates that apis and destinations present.",
        _tls,
        (TLS_EXPIRING, TLS_REJECTED),
        needs_database=False,
        is_online=True,
    ),
)
