"""Runs each examination on its own, and skips those that need the database while it does not respond."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db.dialect import is_damage, trouble_text
from inbox.db.engine import connect_read_only, format_url, parse_url
from inbox.errors import ConfigError, NotExamined
from inbox.loader.load import ConfigFile, config_path, load_file, load_text
from relay.findings import Finding, FindingKind
from relay.store.reads import sqlite_file


class Installation(msgspec.Struct, frozen=True):
    """An installation, as seen by the commands on this host."""

    path: Path
    """Path of the configuration."""
    file: ConfigFile
    now: datetime
    """The host's clock."""
    host: str
    engine: Engine
    """Opened by `connect_read_only`, which limits each statement to some seconds."""

    @property
    def config(self) -> Config:
        """The configuration without its invalid tables."""
        return self.file.sound

    @property
    def sqlite_path(self) -> Path | None:
        """Return the SQLite file; None on Postgres, and for a URI of SQLite."""
        return sqlite_file(self.config)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a read-only transaction."""
        with self.engine.connect() as connection, connection.begin():
            yield connection


@contextmanager
def open_installation(running: Config | None = None) -> Iterator[Installation]:
    """Open the installation of the current file, or of the running configuration.

    Raises:
        ConfigError: the file can't be read, or the database's URL is unusable.
    """
    path = config_path()
    file = load_file(path) if running is None else msgspec.structs.replace(load_text(""), sound=running)
    engine = connect_read_only(file.sound.database.url, application="inbox-doctor")
    try:
        yield Installation(path, file, SystemClock().now(), socket.gethostname(), engine)
    finally:
        engine.dispose()


class Examination(msgspec.Struct, frozen=True):
    """An examination: a function from an installation to its findings."""

    name: str
    examine: Callable[[Installation], Iterable[Finding]]
    """A function whose docstring names its subject. It raises NotExamined if it lacks a requirement; findings until then count."""
    kinds: tuple[FindingKind, ...]
    needs_database: bool = True


class ExaminationResult(msgspec.Struct, frozen=True):
    """The result of one examination."""

    name: str
    needs: str | None
    """The missing requirement of an examination that was not completed."""
    findings: tuple[Finding, ...]


UNREACHABLE = FindingKind(
    "database_unreachable",
    "critical",
    "The database does not answer, or can't be read: every webhook gets 503, and nothing is delivered.",
    "inbox check --online",
)


def run(installation: Installation, examinations: Iterable[Examination]) -> list[ExaminationResult]:
    """Run the examinations in order; skip those that need the database if it does not respond.

    A failed examination is reported, and the others still run.
    """
    results: list[ExaminationResult] = []
    is_gone = False
    for each in examinations:
        found: list[Finding] = []
        needs = "needs the database" if each.needs_database and is_gone else None
        try:
            found += () if needs else each.examine(installation)
        except Exception as error:  # noqa: BLE001  # the other examinations still run
            found += _find_damage(installation, error) if each.needs_database else ()
            needs = _needs(error)
        meanings = {kind.name: kind.meaning for kind in each.kinds}
        told = tuple(msgspec.structs.replace(one, why=one.why or meanings.get(one.kind, "")) for one in found)
        results.append(ExaminationResult(each.name, needs, told))
        is_gone = is_gone or any(one.kind == UNREACHABLE.name for one in found)
    return results


def report_unreachable(installation: Installation, why: str) -> Finding:
    """Return the finding for a database that does not respond, or can't be read."""
    path = installation.sqlite_path
    if path is None:
        url = format_url(parse_url(installation.config.database.url))
        return UNREACHABLE.found(url, f"{url} does not answer: {why}")
    places = shlex.quote(str(path)), shlex.quote(str(path.parent))
    remedy = "ls -l {}; df -h {} # restore a damaged file from its backup".format(*places)
    return UNREACHABLE.found(str(path), f"{path} can't be read: {why}", remedy=remedy)


def _find_damage(installation: Installation, error: Exception) -> Iterator[Finding]:
    """Yield a finding if the error shows a damaged database. Other parts of it may be readable."""
    if isinstance(error, DBAPIError) and is_damage(error):
        yield report_unreachable(installation, trouble_text(error))


_UNDEFINED = ("42P01", "42703", "42883")
"""SQLSTATE of an undefined table, column or function."""


def _needs(error: Exception) -> str:
    """Describe the missing requirement of an examination."""
    if isinstance(error, NotExamined | ConfigError):
        return str(error)
    why = trouble_text(error)
    if getattr(getattr(error, "orig", None), "sqlstate", None) in _UNDEFINED or why.startswith("no such "):
        return f"needs the schema of this version: run `inbox migrate` ({why})"
    return f"needs {'the database to answer' if isinstance(error, DBAPIError) else 'a fix in its code'}: {why}"


def exclude_information(results: Sequence[ExaminationResult]) -> list[Finding]:
    """List the findings, excluding those of level `information`."""
    return [each for result in results for each in result.findings if each.level != "information"]
