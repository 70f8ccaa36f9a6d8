"""The disk of the database: its free space, the days that it lasts, and file systems that SQLite can't be on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from inbox.config.model import RetentionKind
from inbox.db.dialect import SQLITE, Sql
from inbox.db.pruning import states
from inbox.events.timestamps import as_time, time_text
from inbox.examination import DoctorFinding, Examination, FindingKind, Installation

FILLING = FindingKind(
    "disk_filling",
    "critical",
    "The disk of the database is nearly full, or will be within two weeks.",
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
SPACE = FindingKind("disk_space", "information", "Size of the database, its growth, and free disk.")

_MB, _GB = 1e6, 1e9
_LEAST_BYTES = 500 * _MB
_LEAST_PART = 0.05
_LEAST_DAYS = 14
_ROW_BYTES = 1100
"""Disk of an event beside its body, with its index entries and facts."""
_GROWING: tuple[RetentionKind, ...] = ("payloads", "events")
_LEAST_EVENTS = 100
_LEAST_DAYS_SEEN = 1 / 24
"""Figures of less than an hour are taken for those of one: a burst is no day."""
_NETWORK_TYPES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs", "fuse.glusterfs"}
)
_MOUNTS = Path("/proc/self/mounts")


class Space(msgspec.Struct, frozen=True):
    """Bytes of a file system."""

    free: int
    whole: int


def space_of(folder: Path) -> Space:
    """Return the space that is free for users other than root, and the whole."""
    found = os.statvfs(folder)
    return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


def judge(folder: str, size: int, space: Space | None, per_day: float | None) -> Iterator[DoctorFinding]:
    """Yield what the sizes mean. Pure.

    Args:
        folder: the place of the database.
        size: the database's bytes.
        space: bytes of its disk; None where nobody here can tell.
        per_day: bytes that are added in a day; None where too little arrived to say.
    """
    parts = [f"the database has {size / _MB:,.0f} MB"]
    parts += [] if per_day is None else [f"about {per_day / _MB:,.0f} MB are added in a day"]
    if space is None:
        parts.append("only the server's host knows its free disk")
        yield SPACE.found(folder, ", ".join(parts))
        return
    days = None if not per_day else space.free / per_day
    free = f"{space.free / _GB:,.1f} of {space.whole / _GB:,.1f} GB are free"
    lasts = "" if days is None else f", which lasts {days:,.0f} days"
    yield SPACE.found(folder, f"{', '.join(parts)}, {free}{lasts}")
    if space.free < min(_LEAST_BYTES, _LEAST_PART * space.whole) or (days is not None and days < _LEAST_DAYS):
        yield FILLING.found(folder, f"{folder}: {free}{lasts}", folder=shlex.quote(folder))


def _disk(installation: Installation) -> Iterator[DoctorFinding]:
    path = installation.sqlite_path
    with installation.reading() as connection:
        per_day = bytes_per_day(connection, installation.now)
        if connection.dialect.name == SQLITE:
            if path is None:
                return
            size = sum(each.stat().st_size for each in (path, path.with_name(path.name + "-wal")) if each.exists())
            if kind := network_type(path.parent):
                yield NETWORK.found(str(path), f"{path} is on a file system of the type {kind}")
            yield from judge(str(path.parent), size, space_of(path.parent), per_day)
            return
        size = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
        folder = _data_directory(connection)
    yield from judge(str(folder or "the server"), size, space_of(folder) if folder else None, per_day)


def _data_directory(connection: Connection) -> Path | None:
    """Return the server's folder, where it runs on this host and may be looked at."""
    try:
        with connection.begin_nested():
            row = connection.execute(
                text(
                    "SELECT current_setting('data_directory') AS folder,"
                    " coalesce(inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() = '::1', true) AS is_local"
                )
            ).one()
    except DBAPIError:  # only some roles may know it
        return None
    folder = Path(row.folder)
    try:
        return folder if row.is_local and folder.is_dir() else None
    except OSError:
        return None


def bytes_per_day(connection: Connection, now: datetime) -> float | None:
    """Estimate the bytes by which the database grows in a day: what arrived in the last one, without what retention took."""
    since = time_text(now - timedelta(days=1))
    row = connection.execute(
        text(f"{_STORED} >= {Sql(connection.dialect.name).time(':since')}"), {"since": since}
    ).one()
    if row.first is None or row.events < _LEAST_EVENTS:
        return None
    days = max((now - as_time(row.first)) / timedelta(days=1), _LEAST_DAYS_SEEN)
    every = states(connection)
    # where retention keeps pace, as much goes as arrives
    stays = {kind: 0 if every[kind].rows and every[kind].behind_since is None else 1 for kind in _GROWING}
    return (float(row.bytes) * stays["payloads"] + float(row.events) * _ROW_BYTES * stays["events"]) / days


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


_STORED = """
SELECT min(minute) AS first, coalesce(sum(count), 0) AS events, coalesce(sum(bytes), 0) AS bytes
FROM throughput_minute
WHERE kind = 'source' AND outcome IN ('stored', 'swept') AND minute"""

EXAMINATIONS = (
    Examination(
        "disk",
        "Disk",
        "Size and growth of the database, free disk, and its file system.",
        _disk,
        (FILLING, NETWORK, SPACE),
    ),
)
