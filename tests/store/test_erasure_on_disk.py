"""After an erasure the files of the database hold nothing of the person: no page of a table, an index or a TOAST table.

Postgres' own log and its archive keep what was written for as long as they are kept: the guide says so.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine, text

from tests.helpers import commanding
from tests.helpers.kinds import ON_POSTGRES, ON_SQLITE
from tests.helpers.person import BODY, PERSON, TRACES, live, of_person
from tests.helpers.relaying import CONFIG, Steps

LARGE = BODY + b"\n" + b"".join(b"maria.meier@example.com %d " % n + os.urandom(16).hex().encode() for n in range(2000))
"""A body that goes to a TOAST table, and isn't compressed away."""


@pytest.fixture
def lived(steps: Steps) -> Steps:
    """The person's rows, among them many that fill pages of their own, and a large body."""
    live(steps)
    large = msgspec.structs.replace(
        of_person(40), body=LARGE, body_sha256=hashlib.sha256(LARGE).digest(), enrolments=()
    )
    steps.receive(large, *(msgspec.structs.replace(of_person(n), enrolments=()) for n in range(100, 400)))
    return steps


def erase(engine: Engine) -> None:
    assert commanding.erase(engine, CONFIG, PERSON)[1].state == "done"


def found_in(files: Iterator[Path]) -> dict[str, set[str]]:
    """The traces in each file."""
    found = {path.name: {trace for trace in TRACES if trace.encode() in path.read_bytes()} for path in files}
    return {name: traces for name, traces in found.items() if traces}


def sqlite_files(engine: Engine) -> Iterator[Path]:
    path = Path(str(engine.url.database))
    yield from sorted(path.parent.glob(f"{path.name}*"))


def checkpoint_sqlite(engine: Engine, *statements: str) -> None:
    with closing(sqlite3.connect(str(engine.url.database), isolation_level=None)) as connection:
        for statement in (*statements, "PRAGMA wal_checkpoint(TRUNCATE)"):
            connection.execute(statement)


@ON_SQLITE
@pytest.mark.usefixtures("lived")
def test_on_sqlite_the_erasure_overwrites_what_it_deletes(engine: Engine) -> None:
    checkpoint_sqlite(engine)
    assert found_in(sqlite_files(engine))["inbox.db"] == set(TRACES)
    erase(engine)
    checkpoint_sqlite(engine)
    assert found_in(sqlite_files(engine)) == {}
    checkpoint_sqlite(engine, "VACUUM")
    assert found_in(sqlite_files(engine)) == {}


def postgres_files(engine: Engine) -> Iterator[Path]:
    """The files of the database's tables and indexes, after the server has written all it holds."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CHECKPOINT"))
        folder = connection.execute(
            text(
                "SELECT current_setting('data_directory') || '/base/' || oid FROM pg_database WHERE datname = current_database()"
            )
        ).scalar_one()
    yield from (path for path in sorted(Path(folder).iterdir()) if path.is_file())


def maintain(engine: Engine, *statements: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.execute(text(statement))


@ON_POSTGRES
@pytest.mark.usefixtures("lived")
def test_on_postgres_the_files_are_clean_after_a_full_vacuum(engine: Engine) -> None:
    maintain(engine, "ANALYZE")  # the planner's statistics have the most common ids
    before = found_in(postgres_files(engine))
    assert set().union(*before.values()) == set(TRACES)
    erase(engine)
    maintain(engine, "VACUUM")
    assert found_in(postgres_files(engine)), "a VACUUM alone leaves old bytes in pages"
    maintain(engine, "ANALYZE", "VACUUM FULL")
    assert found_in(postgres_files(engine)) == {}
