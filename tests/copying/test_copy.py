"""A copy has every row of every table with every value, leaves nothing after an interrupt, and adds to no other installation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from sqlalchemy import Connection, Engine, Table, text

from inbox.db import copying, migrate
from inbox.db.schema import metadata
from inbox.errors import ConfigError, CopyFailed
from tests.copying.conftest import Databases, everything, url_of
from tests.docs.pages import PAGES, blocks, find_expected, shell
from tests.helpers.processes import Ended, Site, site
from tests.helpers.storing import Intake, an_event
from tests.helpers.tables import count, rows
from tests.helpers.webhooks import config_text


class Interrupted(Exception):
    """Ctrl-C, in a test."""


def silent(_step: str, _table: str, _done: int) -> None:
    """Report nothing."""


class Ends(NamedTuple):
    source: Engine
    target: Engine

    def copy(self, report: copying.Report = silent) -> list[copying.CopiedTable]:
        return copying.copy(self.source, self.target, report)


@pytest.fixture(params=["sqlite to postgres", "postgres to sqlite"])
def ends(request: pytest.FixtureRequest, databases: Databases, templates: dict[str, str]) -> Ends:
    """A source with rows in every table, and an empty database, which may be migrated already."""
    source, _, target, *bare = request.param.split()
    like = None if bare else templates[f"empty {target}"]
    return Ends(databases.open(databases.new(source, templates[source])), databases.open(databases.new(target, like)))


up = pytest.mark.parametrize("ends", ["sqlite to postgres"], indirect=True)


@pytest.mark.parametrize(
    "ends",
    ["sqlite to postgres bare", "postgres to sqlite bare", "sqlite to sqlite", "postgres to postgres"],
    indirect=True,
)
def test_every_value_of_every_table_is_the_same_in_the_copy(ends: Ends) -> None:
    before = everything(ends.source)
    assert [name for name, found in before.items() if not found] == [], "every table has a row to be copied"

    result = ends.copy()

    assert everything(ends.target) == before == everything(ends.source)
    assert {each.table: each.rows for each in result} == {name: len(found) for name, found in before.items()}
    migrate.require_current(ends.target)


def test_the_copy_gives_no_number_that_the_source_gave(ends: Ends) -> None:
    last = Intake(url_of(ends.source)).append(an_event(99, "gone"))[0]
    with ends.source.begin() as connection:  # as retention may delete the newest
        _drop_triggers(connection)
        for table in metadata.tables.values():
            if "seq" in table.c and table.name != "delivery_log":
                connection.execute(text(f"DELETE FROM {table.name} WHERE seq = :last"), {"last": last})

    ends.copy()

    (seq,) = Intake(url_of(ends.target)).append(an_event(100, "new"))
    assert (seq or 0) > (last or 0)


def _drop_triggers(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        for name in connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            connection.execute(text(f"DROP TRIGGER {name}"))
    else:
        for table in metadata.tables:
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))


def test_an_interrupted_copy_leaves_nothing_and_begins_again(ends: Ends) -> None:
    def report(*now: object) -> None:
        if now[:2] == ("comparing", "inbox"):
            raise Interrupted

    with pytest.raises(Interrupted):
        ends.copy(report)
    assert copying.plan(ends.source, ends.target)["inbox"] == count(ends.source, "inbox")
    assert count(ends.target, "order_lock") == 1, "it is as after a migration"
    ends.copy()
    assert everything(ends.target) == everything(ends.source)


@up
def test_copied_payloads_are_in_leaves_that_retention_can_empty(ends: Ends) -> None:
    with ends.source.begin() as connection:
        connection.execute(text("UPDATE sqlite_sequence SET seq = 250000 WHERE name = 'inbox'"))
    Intake(url_of(ends.source)).append(an_event(98, "far"))
    ends.copy()
    assert count(ends.target, "inbox_payload_200001") == 1
    assert count(ends.target, "inbox_payload_default") == 0
    assert everything(ends.target) == everything(ends.source)


@up
def test_a_target_that_differs_is_told_and_not_kept(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    def insert(target: Connection, table: Table, found: copying.Rows) -> None:
        intact(target, table, found)
        if table.name == "alert":
            target.execute(text("UPDATE alert SET subject = 'other'"))

    intact = copying._insert  # there is no other way to a target that differs
    monkeypatch.setattr(copying, "_insert", insert)
    with pytest.raises(CopyFailed, match="alert differs in the target"):
        ends.copy()
    assert count(ends.target, "inbox") == 0


def test_a_target_with_rows_is_left_alone(ends: Ends) -> None:
    Intake(url_of(ends.target)).append(an_event(1), an_event(2))
    with pytest.raises(ConfigError, match="not empty: inbox has 2 rows"):
        ends.copy()
    assert count(ends.target, "inbox") == 2


def test_large_bodies_are_copied_one_by_one(
    databases: Databases, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "CHUNK_BYTES", 1000)
    for n in (1, 2):
        Intake(sqlite_database_url).append(msgspec.structs.replace(an_event(n), body=bytes([n]) * 999))
    with databases.open(sqlite_database_url).connect() as connection, connection.begin():
        chunks = copying._chunks(connection, metadata.tables["inbox_payload"])  # memory can't be seen from outside
        assert [len(chunk) for chunk in chunks] == [1, 1]


@up
@pytest.mark.parametrize("bad", ["a time that no calendar has", "JSON with a NUL"])
def test_a_bad_row_is_named_and_the_copy_succeeds_when_it_is_repaired(ends: Ends, bad: str) -> None:
    table, key, column, value, said = BAD[bad]
    (before,) = rows(ends.source, f"SELECT {key}, {column} AS value FROM {table} ORDER BY {key} LIMIT 1")

    def change(value: str, *given: object) -> None:
        with ends.source.begin() as connection:
            connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
            statement = f"UPDATE {table} SET {column} = {value} WHERE {key} = ?"
            connection.exec_driver_sql(statement, (*given, before[key]))

    change(value)
    with pytest.raises(CopyFailed, match=f"^{table} .*{key}={before[key]}.*{said}"):
        ends.copy()
    assert count(ends.target, "inbox") == 0
    change("?", before["value"])
    ends.copy()
    assert everything(ends.target) == everything(ends.source)


BAD = {
    "a time that no calendar has": ("relay_node", "id", "stopped_at", "'2026-13-45 00:00:00.000000Z'", "can't be read"),
    "JSON with a NUL": ("alert", "id", "detail", '\'{"a": "\\u0000"}\'', "rejects it"),
}


def test_nothing_is_written_to_the_source_while_it_is_copied(ends: Ends, databases: Databases) -> None:
    other = databases.open(url_of(ends.source))
    refused: list[str] = []

    def write(*_: object) -> None:
        if not refused:
            with pytest.raises(Exception, match=r"locked|lock timeout") as raised, other.begin() as connection:
                connection.execute(text("UPDATE gate SET failures = 1"))
            refused.append(str(raised.value))

    ends.copy(write)
    assert refused
    assert everything(ends.target) == everything(ends.source)


# --- `inbox copy` shows its plan, copies when it is told to, and says what to do next


@pytest.fixture
def source(databases: Databases, templates: dict[str, str]) -> Engine:
    return databases.open(databases.new("sqlite", templates["sqlite"]))


@pytest.fixture
def place(source: Engine, tmp_path: Path) -> Iterator[Site]:
    source.dispose()  # else the test itself has the file open
    with site(tmp_path, config_text(url_of(source))) as made:
        yield made


def copy(place: Site, url: str, *options: str) -> Ended:
    return place.invoke("inbox", "copy", "--to", "env:THERE", *options, THERE=url)


def test_without_yes_it_shows_the_plan_and_changes_nothing(place: Site, databases: Databases) -> None:
    url = databases.new("postgres")
    shown = copy(place, url)
    assert shown.status == 0
    assert "--yes copies them" in shown.stdout
    planned = json.loads(copy(place, url, "--json").stdout)
    assert {each["table"]: each["rows"] for each in planned["tables"]}["gate"] > 0
    assert planned["running"] == []
    systems = "SELECT oid FROM pg_namespace WHERE nspname IN ('pg_catalog', 'information_schema', 'pg_toast')"
    assert count(databases.open(url), f"pg_class WHERE relnamespace NOT IN ({systems})") == 0


def test_a_plan_makes_no_file_that_would_be_the_target(place: Site, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for options in ((), ("--json",)):
        assert copy(place, f"sqlite:///{tmp_path}/new/there.db", *options).status == 0
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("url", ["postgresql+psycopg://inbox@127.0.0.1:9/inbox", "sqlite:////no/such/folder/there.db"])
def test_a_target_that_can_not_be_there_is_no_traceback(place: Site, url: str) -> None:
    ran = copy(place, url)
    assert (ran.status, ran.stderr.startswith("error: ")) == (2, True), ran


def test_an_open_file_and_a_running_relay_prevent_a_copy(place: Site, source: Engine, databases: Databases) -> None:
    with source.connect():
        used = copy(place, databases.new("sqlite"), "--yes")
    assert used.status == 2
    assert "in use: stop the program that has the file open" in used.stderr
    with source.begin() as connection:
        connection.exec_driver_sql("UPDATE relay_node SET heartbeat_at = strftime('%Y-%m-%d %H:%M:%f000Z', 'now')")
    source.dispose()
    assert "in use: stop the relay h pid 7" in copy(place, databases.new("sqlite"), "--yes").stderr


# --- The page about moving to Postgres works from its first command to its last, with a real Postgres


PAGE = "docs/how-to/move-to-postgres.md"
NAMED = "postgresql+psycopg://inbox@db.example.com/inbox"


@pytest.mark.long
def test_the_commands_of_the_page_move_an_installation(tmp_path: Path, databases: Databases) -> None:
    page = PAGES[PAGE]
    assert NAMED in page
    read = blocks(page.replace(NAMED, f"'{databases.new('postgres')}'"))
    with shell(tmp_path) as terminal:
        for position, block in enumerate(read):
            if block.info == "toml":
                (tmp_path / "here" / "inbox.toml").write_text(block.text, encoding="utf-8")
            elif block.info == "sh":
                terminal.run(block, find_expected(read, position))
