"""The relay's part in `inbox doctor`: what needs a person, as `relay status` finds it, and relays that run otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version as version_of

import msgspec

from inbox.examination import Examination, Finding, FindingKind, Installation
from relay.delivery.policy import policies
from relay.findings import KINDS, checked, findings
from relay.store.database import Database
from relay.store.nodes import hash_of, running
from relay.store.overview import read_overview

VERSION = FindingKind(
    "version_differs",
    "warning",
    "A running relay has another version than the programs installed here.",
    "receiver and relay are tested together in one version; an upgrade may have forgotten a process",
    "relay status # shows host and pid; start that relay again",
)
CHANGED = FindingKind(
    "configuration_changed",
    "warning",
    "A running relay has other apis, destinations or routes than inbox.toml here.",
    "a process reads it at its start and on SIGHUP",
    "kill -HUP {pid} # on {host}, where inbox.toml may differ",
)


def _needing_a_person(installation: Installation) -> Iterator[Finding]:
    database = Database(installation.reader)
    seen = read_overview(database, policies(installation.config))
    for finding in findings(seen, checked(database)):
        consequence = finding.why or KINDS[finding.kind].why
        yield msgspec.structs.replace(finding, why=consequence)


def _relays(installation: Installation) -> Iterator[Finding]:
    here, own = version_of("inbox-relay"), hash_of(installation.config)
    for relay in running(Database(installation.reader)):
        name = f"relay {relay.host} pid {relay.pid}"
        if relay.version != here:
            yield VERSION.found(name, f"{name} has version {relay.version}; {here} is installed here")
        if relay.config_hash not in {None, own}:
            told = f"{name} runs with other routes or destinations than {installation.path}"
            yield CHANGED.found(name, told, pid=str(relay.pid), host=relay.host)


EXAMINATIONS = (
    Examination(
        "relay",
        "Relays, routes, gates, commands, sweeps and alerts that need a person, as `relay status` shows them.",
        _needing_a_person,
        tuple(KINDS.values()),
    ),
    Examination("relays", "Versions and configurations of running relays.", _relays, (VERSION, CHANGED)),
)
