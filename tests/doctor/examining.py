"""An installation for tests of examinations, and what one of them finds there."""

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
"""Engines that a test's installations use; `conftest.py` disposes of them."""


def installation(
    folder: Path, database_url: str, more: str = "", *, config: str = CONFIG, seconds: float = 5.0
) -> Installation:
    """An installation with this database and an inbox.toml in `folder`."""
    path = folder / "inbox.toml"
    path.write_text(config.format(database=database_url) + more, encoding="utf-8")
    path.chmod(0o600)
    file = load_text(path.read_text(encoding="utf-8"), str(path), ENVIRONMENT)
    engine = connect_read_only(database_url, application="inbox-doctor", seconds=seconds)
    OPENED.append(engine)
    return Installation(path, file, SystemClock().now(), HOST, engine)


def examined(place: Installation, name: str) -> ExaminationResult:
    """The result of one examination."""
    (result,) = [each for each in run(place, [named(name)]) if each.name == name]
    return result


def named(name: str) -> Examination:
    """The examination of this name."""
    return next(each for each in EXAMINATIONS if each.name == name)


def found(place: Installation, name: str) -> list[tuple[str, str]]:
    """Names and subjects of an examination's findings; it must have been made in full, and information is none."""
    result = examined(place, name)
    assert result.needs is None
    return [(each.kind, each.subject) for each in result.findings if each.level != "information"]


def told(place: Installation, name: str) -> dict[str, Finding]:
    """The findings and the information of an examination, by their names."""
    return {each.kind: each for each in examined(place, name).findings}


def run_sql(engine: Engine, *statements: str, **values: object) -> None:
    """Run statements, each committed for itself."""
    for statement in statements:
        with engine.begin() as connection:
            connection.execute(text(statement), values)


def start_a_relay(engine: Engine, node: str = "r1", *, host: str = HOST, **other: str) -> None:
    """Store a relay process that is alive; `other` are expressions of columns."""
    now = Sql(engine.dialect.name).now
    columns = {"started_at": now, "heartbeat_at": now, "version": f"'{version('inbox-relay')}'", **other}
    values = ", ".join(columns.values())
    statement = (
        f"INSERT INTO relay_node (id, host, pid, {', '.join(columns)}) VALUES ('{node}', '{host}', 4711, {values})"
    )
    run_sql(engine, statement, **({"now": None} if ":now" in values else {}))


def environment_of(place: Installation) -> Mapping[str, str]:
    """Variables with which a command sees this installation."""
    return {"INBOX_CONFIG": str(place.path), **ENVIRONMENT}
