"""The examinations, and the kinds of findings that they add to those of `relay.findings`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import version as version_of
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.db import guarantees, migrate
from inbox.db.dialect import POSTGRES, SQLITE, trouble_text
from inbox.errors import ConfigError
from inbox.events.timestamps import as_time
from relay import check
from relay.delivery.policy import policies
from relay.doctor import schema_drift
from relay.doctor.run import UNREACHABLE, Examination, Installation, report_unreachable
from relay.findings import KINDS, Finding, FindingKind, list_findings, read_stuck
from relay.store.database import Database
from relay.store.nodes import hash_config, read_nodes
from relay.store.overview import read_overview
from relay.store.reads import Space, read_space


def _database(installation: Installation) -> Iterator[Finding]:
    """Availability of the database."""
    path = installation.sqlite_path
    try:
        if path is not None and not path.exists():
            yield UNREACHABLE.found(str(path), f"there is no file {path}", remedy="inbox migrate")
            return
        with installation.reading() as connection:
            # SQLite opens any file, and reads it only once it needs the schema
            is_sqlite = connection.dialect.name == SQLITE
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master" if is_sqlite else "SELECT 1")
    except (DBAPIError, OSError) as error:
        why = str(error) if isinstance(error, OSError) else trouble_text(error)
        yield report_unreachable(installation, why)


PENDING = FindingKind(
    "migrations_pending", "critical", "The database lacks some of this version's migrations.", "inbox migrate"
)
NEWER = FindingKind(
    "database_newer", "critical", "The database is of a newer version.", "pip install --upgrade inbox-relay"
)


def _migrations(installation: Installation) -> Iterator[Finding]:
    """Migrations that the database lacks."""
    try:
        adding = [step for step in migrate.plan(installation.engine) if not step.contracts]
    except ConfigError as error:
        yield NEWER.found("alembic_version", str(error))
        return
    if adding:
        yield PENDING.found("alembic_version", f"{len(adding)} to run: {', '.join(map(str, adding))}")


SKEW = FindingKind(
    "clock_skew",
    "warning",
    "The clocks of this host and of the database differ: signatures with a time are rejected, and ages are wrong.",
    "timedatectl timesync-status # on both hosts",
)
_LARGEST_SKEW_SECONDS = 2.0


def _clock(installation: Installation) -> Iterator[Finding]:
    """Difference between the clocks of this host and of the database."""
    with installation.reading() as connection:
        began = time.monotonic()
        before = SystemClock().now()
        database = before  # SQLite has no clock of its own
        if connection.dialect.name == POSTGRES:
            database = as_time(connection.execute(text("SELECT clock_timestamp()")).scalar_one())
        took = time.monotonic() - began
    skew = (database - before).total_seconds() - took / 2
    if abs(skew) > _LARGEST_SKEW_SECONDS + took / 2:
        side = "ahead of" if skew > 0 else "behind"
        yield SKEW.found("clock", f"the database's clock is {abs(skew):.1f} s {side} this host's")


LOST = FindingKind(
    "setting_lost",
    "critical",
    "A guarantee does not hold: a connection setting is lost, or a sequence yields numbers already in use.",
    "inbox check --online",
)
DOUBTFUL = FindingKind(
    "setting_doubtful",
    "warning",
    "A setting of the server puts stored webhooks at risk: acknowledged webhooks can be lost.",
    "ALTER SYSTEM RESET {setting}; SELECT pg_reload_conf();",
)


def _durability(installation: Installation) -> Iterator[Finding]:
    """Settings that protect acknowledged webhooks, as read from a connection; sequences and their tables."""
    with installation.reading() as connection:
        if connection.dialect.name == POSTGRES:
            yield from _lost(connection)
            for line in guarantees.list_doubts(connection):
                setting = line.removeprefix("the database has ").partition(" ")[0]
                yield DOUBTFUL.found(setting, line, fields={"setting": setting})
            return
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    if mode != "wal":
        told = f"the SQLite file has journal_mode = {mode}, not wal: readers and the receiver block each other"
        yield LOST.found("journal_mode", told, remedy="PRAGMA journal_mode = WAL;")
        return
    # Check the other pragmas on a connection made as both programs do; with WAL on, that changes nothing in the file.
    made = engines.connect(installation.config.database.url, application="inbox-doctor")
    try:
        with made.connect() as connection:
            yield from _lost(connection)
            connection.rollback()
    finally:
        made.dispose()


def _lost(connection: Connection) -> Iterator[Finding]:
    for line in guarantees.list_differences(connection):
        told, _, statement = line.partition(". Run: ")
        yield LOST.found(told, told, remedy=statement or None)


FILLING = FindingKind(
    "disk_filling",
    "critical",
    "The disk of the database is nearly full: when it is full, every webhook gets 503 and nothing is delivered.",
    "df -h {folder} # make room, or keep payloads for less time",
)
NETWORK = FindingKind(
    "network_disk",
    "critical",
    "The SQLite file is on a network file system, where locks are unreliable.",
    "inbox copy # to a database on a local disk",
)
_LEAST_BYTES, _LEAST_PART = 500e6, 0.05
_NETWORK_TYPES = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs", "fuse.glusterfs"}
_MOUNTS = Path("/proc/self/mounts")


def _disk(installation: Installation) -> Iterator[Finding]:
    """Free disk of the database, and its file system."""
    path = installation.sqlite_path
    if path is not None and (kind := network_type(path.parent)):
        yield NETWORK.found(str(path), f"{path} is on a file system of type {kind}")
    with Database(installation.engine).read() as transaction:
        space = read_space(transaction, path)
    if space is not None:
        yield from judge_space(space)


def judge_space(space: Space) -> Iterator[Finding]:
    """Yield a finding if a disk has little free space."""
    if space.free < min(_LEAST_BYTES, _LEAST_PART * space.whole):
        folder = str(space.folder)
        told = f"{folder}: {space.free / 1e9:,.1f} of {space.whole / 1e9:,.1f} GB are free"
        yield FILLING.found(folder, told, fields={"folder": folder})


def network_type(folder: Path, mounts: Path = _MOUNTS) -> str | None:
    """Return the type of the folder's file system if it is a network file system."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    kinds = {place.replace("\\040", " "): kind for _, place, kind, *_ in (line.split(" ") for line in lines)}
    folder = folder.resolve()
    kind = next((kinds[str(each)] for each in (folder, *folder.parents) if str(each) in kinds), "")
    return kind if kind in _NETWORK_TYPES else None


MISTAKE = FindingKind("configuration_mistake", "critical", "No program starts with this configuration.", "inbox check")
DOUBT = FindingKind(
    "configuration_warning",
    "warning",
    "`inbox check` warns, for example of a secret in the file, a file that others can access, or unsigned webhooks.",
    "inbox check",
)
EXPIRING = FindingKind(
    "expiring",
    "warning",
    "A secret or certificate expires within 30 days.",
    "inbox check # after adding a new one; then reload",
)
_SOON = timedelta(days=30)


def _configuration(installation: Installation) -> Iterator[Finding]:
    """Mistakes in inbox.toml that both programs would find, and the warnings of `inbox check`."""
    for each in check.list_findings(installation.file, installation.path):
        yield (MISTAKE if each.level == "mistake" else DOUBT).found(each.key or each.text, str(each))
    over = {line.partition(": ")[0] for line in check.find_expired(installation.config, installation.now)}
    for line in check.find_expired(installation.config, installation.now + _SOON):
        key, _, _ = line.partition(": ")
        if key not in over:
            yield EXPIRING.found(key, line)


VERSION = FindingKind(
    "version_differs",
    "warning",
    "A running relay has another version than the one installed here: it was not restarted after an upgrade.",
    "relay status # shows host and pid; restart that relay",
)
CHANGED = FindingKind(
    "configuration_changed",
    "warning",
    "A running relay has other apis, destinations or routes than inbox.toml here: it reads the file at start and on SIGHUP.",
    "kill -HUP {pid} # on {host}, where inbox.toml may differ",
)


def _needing_a_person(installation: Installation) -> Iterator[Finding]:
    """Relays, routes, gates, commands, sweeps and alerts that need an operator, as `relay status` shows them."""
    database = Database(installation.engine)
    yield from list_findings(read_overview(database, policies(installation.config)), read_stuck(database))


def _relays(installation: Installation) -> Iterator[Finding]:
    """Versions and configurations of running relays."""
    here, own = version_of("inbox-relay"), hash_config(installation.config)
    with Database(installation.engine).read() as transaction:
        running = read_nodes(transaction)
    for relay in running:
        name = f"relay {relay['host']} pid {relay['pid']}"
        if relay["version"] != here:
            yield VERSION.found(name, f"{name} has version {relay['version']}; {here} is installed here")
        if relay["config_hash"] not in {None, own}:
            told = f"{name} runs with other routes or destinations than {installation.path}"
            yield CHANGED.found(name, told, fields={"pid": str(relay["pid"]), "host": relay["host"]})


EXAMINATIONS = (
    Examination("database", _database, (UNREACHABLE,), needs_database=False),
    Examination("migrations", _migrations, (PENDING, NEWER)),
    Examination("clock", _clock, (SKEW,)),
    Examination("durability", _durability, (LOST, DOUBTFUL)),
    Examination("disk", _disk, (FILLING, NETWORK)),
    Examination("schema", schema_drift.examine_schema, (schema_drift.DIFFERS,)),
    Examination("rights", schema_drift.examine_rights, (schema_drift.RIGHTS, schema_drift.UNLIMITED)),
    Examination("configuration", _configuration, (MISTAKE, DOUBT, EXPIRING), needs_database=False),
    Examination("relay", _needing_a_person, tuple(KINDS.values())),
    Examination("relays", _relays, (VERSION, CHANGED)),
)
