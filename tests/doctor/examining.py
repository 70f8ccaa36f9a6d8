"""Installations for tests of examinations, and the findings of one examination."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import Engine, text

from inbox.clock import SystemClock
from inbox.db.dialect import Sql
from inbox.db.engine import connect_read_only
from inbox.loader.load import load_text
from relay.doctor.examinations import EXAMINATIONS
from relay.doctor.run import Examination, ExaminationResult, Installation, run
from relay.findings import Finding

CONFIG = """
[database]
url = {database!r}
[sources.github]
preset = "github"
secrets = ["env:GITHUB_SECRET"]
[destinations.audit]
kind = "forward"
url = "https://audit.example.com/hook"
[routes.all]
source = "github"
destination = "audit"
"""
ENVIRONMENT = {"GITHUB_SECRET": "a-secret-of-github"}
HOST = socket.gethostname()
OPENED: list[Engine] = []
"""Engines of a test's installations, which `conftest.py` disposes of."""


def installation(
    folder: Path, database_url: str, more: str = "", *, config: str = CONFIG, seconds: float = 5.0
) -> Installation:
    """Make an installation with this database and an inbox.toml in `folder`."""
    path = folder / "inbox.toml"
    path.write_text(config.format(database=database_url) + more, encoding="utf-8")
    path.chmod(0o600)
    file = load_text(path.read_text(encoding="utf-8"), str(path), ENVIRONMENT)
    engine = connect_read_only(database_url, application="inbox-doctor", seconds=seconds)
    OPENED.append(engine)
    return Installation(path, file, SystemClock().now(), HOST, engine)


def examine(place: Installation, name: str) -> ExaminationResult:
    """Run one examination and return its result."""
    (result,) = [each for each in run(place, [examination(name)]) if each.name == name]
    return result


def examination(name: str) -> Examination:
    """Return the examination of this name."""
    return next(each for each in EXAMINATIONS if each.name == name)


def findings_of(place: Installation, name: str) -> list[tuple[str, str]]:
    """Return kinds and subjects of the findings of a complete examination, without information."""
    result = examine(place, name)
    assert result.needs is None
    return [(each.kind, each.subject) for each in result.findings if each.level != "information"]


def all_findings(place: Installation, name: str) -> dict[str, Finding]:
    """Return all findings of an examination, information included, by kind."""
    return {each.kind: each for each in examine(place, name).findings}


def run_sql(engine: Engine, *statements: str, **values: object) -> None:
    """Run each statement in its own transaction."""
    for statement in statements:
        with engine.begin() as connection:
            connection.execute(text(statement), values)


def start_a_relay(engine: Engine, node: str = "r1", *, host: str = HOST, **other: str) -> None:
    """Store a living relay process; `other` has SQL expressions of columns."""
    now = Sql(engine.dialect.name).now
    columns = {"started_at": now, "heartbeat_at": now, "version": f"'{version('inbox-relay')}'", **other}
    values = ", ".join(columns.values())
    statement = (
        f"INSERT INTO relay_node (id, host, pid, {', '.join(columns)}) VALUES ('{node}', '{host}', 4711, {values})"
    )
    run_sql(engine, statement, **({"now": None} if ":now" in values else {}))


def environment_of(place: Installation) -> Mapping[str, str]:
    """Return the environment in which a command uses this installation."""
    return {"INBOX_CONFIG": str(place.path), **ENVIRONMENT}
