"""Examinations of a running installation: their form, their findings, and the installation that they look at.

An examination only reads. Each kind of finding is declared once, with its reason and the command that mends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
from sqlalchemy import Connection, Engine, text

from inbox.config.model import Config
from inbox.db.dialect import POSTGRES, SQLITE
from inbox.db.engine import parse_url
from inbox.errors import NotExamined
from inbox.loader.load import ConfigFile

Severity = Literal["critical", "warning", "information"]
"""Webhooks are lost, late or in danger now; they will be; a fact to know, which is no finding."""

Section = Literal["Database", "Server", "Disk", "Configuration", "Traffic", "Relays", "Deliveries", "Other systems"]

BOTH = (POSTGRES, SQLITE)


class DoctorFinding(msgspec.Struct, frozen=True):
    """A finding, or a line of information."""

    name: str
    subject: str
    severity: Severity
    what: str
    why: str
    mend: str
    """The command that mends it; empty for information that needs none."""


class FindingKind(msgspec.Struct, frozen=True):
    """A kind of finding."""

    name: str
    severity: Severity
    summary: str
    why: str = ""
    """Its consequence; empty for information that has none."""
    mend: str = ""
    """The command, with `{…}` where `found` puts a value."""

    def found(
        self, subject: str, what: str, *, why: str = "", mend: str | None = None, **values: object
    ) -> DoctorFinding:
        """Make a finding of this kind. `why` and `mend` replace the kind's own where they are known better."""
        command = self.mend.format_map(values) if mend is None else mend
        return DoctorFinding(self.name, subject, self.severity, what, why or self.why, command)


class Installation(msgspec.Struct, frozen=True):
    """An installation, as the commands on this host see it."""

    path: Path
    """Path of the configuration."""
    file: ConfigFile
    now: datetime
    """The host's clock."""
    host: str
    engine: Engine | None = None
    """Opened by `inbox.db.read_only`; None while the URL can't be used."""

    @property
    def config(self) -> Config:
        """The tables of the configuration without a mistake."""
        return self.file.sound

    @property
    def sqlite_path(self) -> Path | None:
        """Return the SQLite file; None on Postgres, and for a URI of SQLite."""
        parsed = parse_url(self.config.database.url)
        if parsed.get_backend_name() != SQLITE or (parsed.database or "").startswith("file:"):
            return None
        return Path(parsed.database or "").absolute()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a read-only transaction, which ends after some seconds whatever it does.

        Raises:
            NotExamined: the URL of the database can't be used.
        """
        if self.engine is None:
            raise NotExamined("needs a database url that can be used: run `inbox check`")
        with self.engine.connect() as connection, connection.begin():
            yield connection


class Examination(msgspec.Struct, frozen=True):
    """An examination: a function from an installation to its findings."""

    name: str
    section: Section
    looks_at: str
    examine: Callable[[Installation], Iterable[DoctorFinding]]
    """Raises NotExamined with what it needs; the findings until then count."""
    kinds: tuple[FindingKind, ...]
    on: tuple[str, ...] = BOTH
    needs_database: bool = True
    is_online: bool = False
    """It asks other systems, and only with `--online`."""


def require_membership(connection: Connection, role: str) -> None:
    """Require that the present user of Postgres has the rights of a predefined role.

    Raises:
        NotExamined: it has not; the message names the statement for it.
    """
    row = connection.execute(
        text("SELECT pg_has_role(current_user, :role, 'USAGE') AS has, quote_ident(current_user) AS name"),
        {"role": role},
    ).one()
    if not row.has:
        raise NotExamined(f"needs a role with more rights: GRANT {role} TO {row.name}")


def sql_name(name: str) -> str:
    """Quote an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def sql_text(value: str) -> str:
    """Quote a text of SQL."""
    return "'" + value.replace("'", "''") + "'"
