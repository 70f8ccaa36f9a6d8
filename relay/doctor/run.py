"""Runs the examinations: each apart from the others, within its time, and none that asks a database which is gone."""

from __future__ import annotations

import shlex
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db.dialect import failure_of, trouble_text
from inbox.db.engine import connect_read_only, parse_url, shown
from inbox.errors import ConfigError, NotExamined
from inbox.loader.load import ConfigFile, config_path, load_file, load_text
from relay.findings import Finding, FindingKind
from relay.store.reads import sqlite_file

LONGEST_SECONDS = 10.0
"""Longest time of an examination: a disk that hangs lets no call return. Statements end earlier by themselves."""


class Installation(msgspec.Struct, frozen=True):
    """An installation, as the commands on this host see it."""

    path: Path
    """Path of the configuration."""
    file: ConfigFile
    now: datetime
    """The host's clock."""
    host: str
    engine: Engine | None = None
    """Opened by `connect_read_only`; None while the URL can't be used."""

    @property
    def config(self) -> Config:
        """The tables of the configuration without a mistake."""
        return self.file.sound

    @property
    def reader(self) -> Engine:
        """The engine.

        Raises:
            NotExamined: the URL of the database can't be used.
        """
        if self.engine is None:
            raise NotExamined("needs a database url that can be used: run `inbox check`")
        return self.engine

    @property
    def sqlite_path(self) -> Path | None:
        """Return the SQLite file; None on Postgres, and for a URI of SQLite."""
        return sqlite_file(self.config)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a read-only transaction, which ends after some seconds whatever it does. Raises as `reader`."""
        with self.reader.connect() as connection, connection.begin():
            yield connection


@contextmanager
def installed(running: Config | None = None) -> Iterator[Installation]:
    """Open the installation of the present file; with `running`, on its database, and with itself where there is no file.

    Raises:
        ConfigError: the file can't be read, and nothing is running.
    """
    path = config_path()
    try:
        file = load_file(path)
        if running is not None:
            sound = msgspec.structs.replace(file.sound, database=running.database)
            file = msgspec.structs.replace(file, sound=sound)
    except ConfigError:
        if running is None:
            raise
        file = msgspec.structs.replace(load_text(""), sound=running)
    try:
        engine = connect_read_only(file.sound.database.url, application="inbox-doctor")
    except ConfigError:  # the examination of the database says so
        engine = None
    try:
        yield Installation(path, file, SystemClock().now(), socket.gethostname(), engine)
    finally:
        if engine is not None:
            engine.dispose()


class Examination(msgspec.Struct, frozen=True):
    """An examination: a function from an installation to its findings."""

    name: str
    examine: Callable[[Installation], Iterable[Finding]]
    """Its docstring says what it looks at. It raises NotExamined with what it needs; the findings until then count."""
    kinds: tuple[FindingKind, ...]
    needs_database: bool = True


class ExaminationResult(msgspec.Struct, frozen=True):
    """The result of one examination."""

    name: str
    needs: str | None
    """Its requirement, if it was not made, or only in part."""
    findings: tuple[Finding, ...]


UNREACHABLE = FindingKind(
    "database_unreachable",
    "critical",
    "The database does not answer, can't be read, or its URL can't be used: every webhook gets 503, and nothing is delivered.",
    "inbox check --online",
)


def unreachable(installation: Installation, error: Exception) -> Finding:
    """Make the finding that the database can't be read."""
    why = str(error) if isinstance(error, OSError) else trouble_text(error)
    path = installation.sqlite_path
    if path is None:
        url = shown(parse_url(installation.config.database.url))
        return UNREACHABLE.found(url, f"{url} does not answer: {why}")
    remedy = f"ls -l {shlex.quote(str(path))}; df -h {shlex.quote(str(path.parent))} # a damaged file needs its backup"
    return UNREACHABLE.found(str(path), f"{path} can't be read: {why}", remedy=remedy)


def run(installation: Installation, examinations: Sequence[Examination]) -> list[ExaminationResult]:
    """Run the examinations in their order, after one that stopped answering without those that need a database.

    One that fails is reported, and stops no other.
    """
    results: list[ExaminationResult] = []
    is_gone = False
    for examination in examinations:
        if examination.needs_database and is_gone:
            results.append(ExaminationResult(examination.name, "needs the database", ()))
            continue
        results.append(_examined(installation, examination))
        is_gone = is_gone or any(each.kind == UNREACHABLE.name for each in results[-1].findings)
    return results


def _examined(installation: Installation, examination: Examination) -> ExaminationResult:
    """Run one examination in a thread of its own."""
    found: list[Finding] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            found.extend(examination.examine(installation))
        except Exception as error:  # noqa: BLE001  # whatever it is, the other examinations are made
            failed.append(error)

    thread = threading.Thread(target=work, name=f"examine-{examination.name}", daemon=True)
    thread.start()
    thread.join(LONGEST_SECONDS)
    needs = f"needs more than {LONGEST_SECONDS:.0f} s" if thread.is_alive() else _needs(failed[0]) if failed else None
    if failed and _is_gone(failed[0]):
        found.append(unreachable(installation, failed[0]))
    meanings = {kind.name: kind.meaning for kind in examination.kinds}
    told = (msgspec.structs.replace(each, why=each.why or meanings.get(each.kind, "")) for each in found)
    return ExaminationResult(examination.name, needs, tuple(told))


_UNDEFINED = ("42P01", "42703", "42883")
"""SQLSTATE of an undefined table, column or function."""


def _needs(error: Exception) -> str:
    """Word what an examination would have needed."""
    if isinstance(error, NotExamined | ConfigError):
        return str(error)
    why = trouble_text(error)
    if not isinstance(error, DBAPIError):
        return f"needs a repair of its own: {why}"
    if getattr(error.orig, "sqlstate", None) in _UNDEFINED or why.startswith("no such "):
        return f"needs the schema of this version: run `inbox migrate` ({why})"
    return f"needs the database to answer: {why}"


_SQLITE_INTERRUPT = 9
_TOO_SLOW, _ON_STANDBY = "57014", "25006"


def _is_gone(error: Exception) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else None
    is_slow = getattr(cause, "sqlite_errorcode", None) == _SQLITE_INTERRUPT
    is_alive = is_slow or getattr(cause, "sqlstate", None) in {_TOO_SLOW, _ON_STANDBY}
    return cause is not None and not is_alive and failure_of(error) == "unreachable"


def in_need(results: Sequence[ExaminationResult]) -> list[Finding]:
    """List the findings, and no information."""
    return [each for result in results for each in result.findings if each.level != "information"]
