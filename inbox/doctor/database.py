"""The database: does it answer, has it the schema of this version, and what do stored webhooks rest on?"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.db import guarantees, migrate
from inbox.db.dialect import POSTGRES, SQLITE, trouble_text
from inbox.errors import ConfigError
from inbox.events.timestamps import as_time, rfc3339
from inbox.examination import Examination, Finding, FindingKind, Installation

UNREACHABLE = FindingKind(
    "database_unreachable",
    "critical",
    "The database does not answer, or its URL can't be used.",
    "every webhook gets 503, and nothing is delivered",
    "inbox check --online",
)
UNREADABLE = FindingKind(
    "database_unreadable",
    "critical",
    "The SQLite file does not exist, or can't be read.",
    "every webhook gets 503, and nothing is delivered",
    "ls -l {path}; df -h {folder} # mend its rights or make room; a damaged file needs its last backup",
)


def _database(installation: Installation) -> Iterator[Finding]:
    try:
        engines.parse_url(installation.config.database.url)
    except ConfigError as error:
        yield UNREACHABLE.found("url", str(error), remedy="inbox check")
        return
    path = installation.sqlite_path
    try:
        if path is not None and not path.exists():
            yield UNREADABLE.found(str(path), f"there is no file {path}", remedy="inbox migrate")
            return
        with installation.reading() as connection:
            # SQLite opens any file, and looks into it only for its schema
            is_sqlite = connection.dialect.name == SQLITE
            connection.exec_driver_sql("PRAGMA schema_version" if is_sqlite else "SELECT 1")
    except (DBAPIError, OSError) as error:
        yield unreachable(installation, error)


def unreachable(installation: Installation, error: Exception) -> Finding:
    """Make the finding that the database can't be read."""
    why = str(error) if isinstance(error, OSError) else trouble_text(error)
    path = installation.sqlite_path
    if path is not None:
        places = {"path": shlex.quote(str(path)), "folder": shlex.quote(str(path.parent))}
        return UNREADABLE.found(str(path), f"{path} can't be read: {why}", **places)
    url = engines.shown(engines.parse_url(installation.config.database.url))
    return UNREACHABLE.found(url, f"{url} does not answer: {why}")


PENDING = FindingKind(
    "migrations_pending",
    "critical",
    "The database lacks migrations of this version.",
    "receiver and relay of this version don't start",
    "inbox migrate",
)
TO_CONTRACT = FindingKind(
    "migrations_to_contract",
    "information",
    "Migrations wait until no older program runs.",
    "they remove what only older versions use",
    "inbox migrate --contract",
)
NEWER = FindingKind(
    "database_newer",
    "critical",
    "The database belongs to a newer version.",
    "receiver and relay of this version don't start",
    "pip install --upgrade inbox-relay",
)


def _migrations(installation: Installation) -> Iterator[Finding]:
    try:
        lacking = migrate.plan(installation.reader)
    except ConfigError as error:
        yield NEWER.found("alembic_version", str(error))
        return
    adding = [step for step in lacking if not step.contracts]
    if adding:
        yield PENDING.found("alembic_version", f"{len(adding)} to run: {', '.join(map(str, adding))}")
    elif lacking:
        yield TO_CONTRACT.found("alembic_version", f"to follow: {', '.join(map(str, lacking))}")


SKEW = FindingKind(
    "clock_skew",
    "warning",
    "The clocks of this host and of the database differ.",
    "secrets become valid and expire by the host's clock, and leases and retries follow the database's: signatures with a time"
    " are rejected, and ages in listings are wrong",
    "timedatectl timesync-status # on both hosts",
)
BACK = FindingKind(
    "clock_went_back",
    "warning",
    "Stored times lie in the future of the database's clock.",
    "a clock went back, or a host's clock is ahead: deliveries are due later than they should be, and ages are wrong",
    "timedatectl timesync-status # on the database's host and the receiver's",
)
_LARGEST_SKEW_SECONDS, _LARGEST_LEAD_SECONDS = 2.0, 5.0
_NEWEST_TIMES = {
    "delivery_log.at": "SELECT at FROM delivery_log ORDER BY id DESC LIMIT 1",
    "inbox.received_at": "SELECT received_at FROM inbox ORDER BY seq DESC LIMIT 1",
}


def _clock(installation: Installation) -> Iterator[Finding]:
    with installation.reading() as connection:
        began = time.monotonic()
        before = SystemClock().now()
        database = before  # SQLite has no clock of its own
        if connection.dialect.name == POSTGRES:
            database = as_time(connection.execute(text("SELECT clock_timestamp()")).scalar_one())
        took = time.monotonic() - began
        rows = {name: connection.execute(text(statement)).first() for name, statement in _NEWEST_TIMES.items()}
    skew = (database - before).total_seconds() - took / 2
    if abs(skew) > _LARGEST_SKEW_SECONDS + took / 2:
        side = "ahead of" if skew > 0 else "behind"
        yield SKEW.found("clock", f"the database's clock is {abs(skew):.1f} s {side} this host's")
    for name, row in rows.items():
        newest = database if row is None else as_time(row[0])
        lead = (newest - database).total_seconds()
        if lead > _LARGEST_LEAD_SECONDS:
            yield BACK.found(name, f"the newest {name} is {lead:.0f} s in the future: {rfc3339(newest)}")


LOST = FindingKind(
    "setting_lost",
    "critical",
    "A setting that both programs make on each connection does not hold.",
    "a guarantee does not hold",
    "inbox check --online",
)
DOUBTFUL = FindingKind(
    "setting_doubtful",
    "warning",
    "A setting of the server puts stored webhooks at risk.",
    "what was acknowledged can be lost",
    "ALTER SYSTEM RESET {setting}; SELECT pg_reload_conf();",
)
BEHIND = FindingKind(
    "sequence_behind",
    "critical",
    "The next number of a sequence is in use already.",
    "nothing can be stored in its table: every webhook gets 503, or the relay stands still",
    "SELECT setval('SEQUENCE', HIGHEST)",
)


def _durability(installation: Installation) -> Iterator[Finding]:
    with installation.reading() as connection:
        mode = (
            None if connection.dialect.name == POSTGRES else connection.exec_driver_sql("PRAGMA journal_mode").scalar()
        )
        if mode is None:
            yield from _settings(connection)
            for doubtful in guarantees.doubtful_settings(connection):
                yield DOUBTFUL.found(doubtful.subject, doubtful.what, why=doubtful.why, setting=doubtful.subject)
            for behind in guarantees.sequences_behind(connection):
                yield BEHIND.found(behind.subject, behind.what, remedy=behind.remedy.removeprefix("Run: "))
            return
    if mode != "wal":
        told = f"the SQLite file has journal_mode = {mode}, not wal: readers and the receiver stop each other"
        yield LOST.found("journal_mode", told, remedy="PRAGMA journal_mode = WAL;")
        return
    # The other pragmas, on a connection as both programs make it. In a file with WAL it changes nothing.
    made = engines.connect(installation.config.database.url, application="inbox-doctor")
    try:
        with made.connect() as connection:
            yield from _settings(connection)
            connection.rollback()
    finally:
        made.dispose()


def _settings(connection: Connection) -> Iterator[Finding]:
    for lost in guarantees.lost_settings(connection):
        yield LOST.found(lost.subject, lost.what, why=lost.why)


FILLING = FindingKind(
    "disk_filling",
    "critical",
    "The disk of the database is nearly full.",
    "when it is full, every webhook gets 503 and nothing is delivered",
    "df -h {folder} # make room, or keep payloads for less time",
)
NETWORK = FindingKind(
    "network_disk",
    "critical",
    "The SQLite file lies on a network file system.",
    "its locks don't hold there, and the file can be damaged (https://sqlite.org/wal.html)",
    "INBOX_DATABASE_URL=sqlite:////var/lib/inbox-relay/inbox.db # a folder on a local disk",
)
_LEAST_BYTES, _LEAST_PART = 500e6, 0.05
_NETWORK_TYPES = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs", "fuse.glusterfs"}
_MOUNTS = Path("/proc/self/mounts")


def _disk(installation: Installation) -> Iterator[Finding]:
    path = installation.sqlite_path
    if path is not None and (kind := network_type(path.parent)):
        yield NETWORK.found(str(path), f"{path} is on a file system of the type {kind}")
    with installation.reading() as connection:
        folder = _data_directory(connection) if connection.dialect.name == POSTGRES else path and path.parent
    if folder is not None:
        found = os.statvfs(folder)
        yield from judge_space(folder, found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


def judge_space(folder: Path, free: float, whole: float) -> Iterator[Finding]:
    """Yield a finding where little of a disk is free for users other than root."""
    if free < min(_LEAST_BYTES, _LEAST_PART * whole):
        told = f"{folder}: {free / 1e9:,.1f} of {whole / 1e9:,.1f} GB are free"
        yield FILLING.found(str(folder), told, folder=shlex.quote(str(folder)))


def _data_directory(connection: Connection) -> Path | None:
    """Return the server's folder, where it runs on this host and may be looked at. Only some roles may know it."""
    row = connection.execute(_DATA_DIRECTORY).one()
    try:
        return Path(row.folder) if row.is_local and row.folder and Path(row.folder).is_dir() else None
    except OSError:
        return None


_DATA_DIRECTORY = text("""
SELECT (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS folder,
       coalesce(inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() = '::1', true) AS is_local
""")


def network_type(folder: Path, mounts: Path = _MOUNTS) -> str | None:
    """Return the type of the folder's file system, if it is one of a network."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = ("", "")
    for line in lines:
        _, where, kind, *_ = [*line.split(" "), "", "", ""]
        place = where.replace("\\040", " ")
        if folder.resolve().is_relative_to(place or "/nowhere") and len(place) >= len(found[0]):
            found = (place, kind)
    return found[1] if found[1] in _NETWORK_TYPES else None


RETENTION = FindingKind(
    "retention_behind",
    "warning",
    "Rows stay for longer than their age, or can't be pruned.",
    "more arrives than relays prune, no relay runs, or somebody holds rows locked: the disk fills up",
    "inbox prune --dry-run",
)
_IDLE_DAYS = 1


def _retention(installation: Installation) -> Iterator[Finding]:
    with installation.reading() as connection:
        ran_at: Any = connection.execute(text("SELECT ran_at FROM pruner WHERE id = 1")).scalar()
        rows = connection.execute(
            text("SELECT kind, behind_seconds, behind_since, error FROM pruning ORDER BY kind")
        ).all()
    if ran_at is not None and (installation.now - as_time(ran_at)).days >= _IDLE_DAYS:
        yield RETENTION.found("pruner", f"a relay pruned last at {as_time(ran_at):%Y-%m-%d %H:%M}Z")
    for row in rows:
        age = getattr(installation.config.retention, row.kind, None)
        if age is not None and age.is_forever:
            continue
        remedy = f"inbox prune --kind {row.kind}"
        if row.behind_since is not None:
            late = f"{row.kind}: the oldest expired row is {row.behind_seconds / 86_400:,.1f} d late"
            yield RETENTION.found(row.kind, late, remedy=remedy)
        if row.error:
            yield RETENTION.found(row.kind, f"{row.kind}: {row.error}", remedy=remedy)


DATABASE = Examination(
    "database", "Does the database answer?", _database, (UNREACHABLE, UNREADABLE), needs_database=False
)
EXAMINATIONS = (
    DATABASE,
    Examination("migrations", "Migrations that the database lacks.", _migrations, (PENDING, NEWER, TO_CONTRACT)),
    Examination("clock", "Clocks of this host and of the database.", _clock, (SKEW, BACK)),
    Examination(
        "durability",
        "Settings that an acknowledged webhook rests on, read back from a connection; sequences and their tables.",
        _durability,
        (LOST, DOUBTFUL, BEHIND),
    ),
    Examination("disk", "Free disk of the database, and its file system.", _disk, (FILLING, NETWORK)),
    Examination("retention", "Progress of retention, kind by kind.", _retention, (RETENTION,)),
)
