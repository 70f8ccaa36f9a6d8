"""Findings about a running installation, the examinations that make them, and the installation that they look at.

An examination only reads. Each kind of finding is declared once, with its reason and its remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
from sqlalchemy import Connection, Engine

from inbox.config.model import Config
from inbox.db.dialect import POSTGRES, SQLITE
from inbox.db.engine import parse_url
from inbox.errors import NotExamined
from inbox.loader.load import ConfigFile

Level = Literal["critical", "warning", "information"]
"""Webhooks are lost, late or in danger now; they will be, or something waits for a person; a fact, which is no finding."""
LEVELS: tuple[Level, ...] = ("critical", "warning", "information")

BOTH = (POSTGRES, SQLITE)


class Finding(msgspec.Struct, frozen=True):
    """Something that needs a person, or a line of information."""

    kind: str
    level: Level
    sentence: str
    subject: str = ""
    """Name of the route, gate, file or table that it is about."""
    why: str = ""
    """Its cause, where one is known, or else its consequence."""
    since: datetime | None = None
    remedy: str = ""
    """The command that mends it; empty for information that needs none."""
    step: str = ""
    """The next thing to do, in words; empty: the sentence says it."""
    fields: Mapping[str, str] = {}
    """Fields of a selection that name what the remedy is about."""


class FindingKind(msgspec.Struct, frozen=True):
    """A kind of finding."""

    name: str
    level: Level
    meaning: str
    why: str = ""
    """Its consequence; empty for information that has none."""
    remedy: str = ""
    """The command, with `{…}` where `found` puts a value."""

    def found(self, subject: str, sentence: str, *, remedy: str | None = None, why: str = "", **values: str) -> Finding:
        """Make a finding of this kind. `remedy` and `why` replace the kind's own where they are known better."""
        command = self.remedy.format_map(values) if remedy is None else remedy
        return Finding(self.name, self.level, sentence, subject, why or self.why, None, command)


class Installation(msgspec.Struct, frozen=True):
    """An installation, as the commands on this host see it."""

    path: Path
    """Path of the configuration."""
    file: ConfigFile
    now: datetime
    """The host's clock."""
    host: str
    engine: Engine | None = None
    """Opened by `inbox.db.engine.connect_read_only`; None while the URL can't be used."""

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
        parsed = parse_url(self.config.database.url)
        if parsed.get_backend_name() != SQLITE or (parsed.database or "").startswith("file:"):
            return None
        return Path(parsed.database or "").absolute()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a read-only transaction, which ends after some seconds whatever it does. Raises as `reader`."""
        with self.reader.connect() as connection, connection.begin():
            yield connection


class Examination(msgspec.Struct, frozen=True):
    """An examination: a function from an installation to its findings."""

    name: str
    looks_at: str
    examine: Callable[[Installation], Iterable[Finding]]
    """Raises NotExamined with what it needs; the findings until then count."""
    kinds: tuple[FindingKind, ...]
    on: tuple[str, ...] = BOTH
    needs_database: bool = True
