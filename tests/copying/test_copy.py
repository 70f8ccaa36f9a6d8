"""A copy has every row of every table with every value, goes on after an interrupt, and adds to no other installation."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import pytest
from sqlalchemy import Connection, Engine, text

from inbox.db import migrate
from inbox.db.copying import run
from inbox.db.copying.rows import Rows
from inbox.db.copying.tables import copied_tables
from inbox.db.schema import metadata
from inbox.errors import ConfigError, CopyFailed
from tests.copying.conftest import Databases, url_of
from tests.copying.installation import everything
from tests.helpers.reading import count, rows
from tests.helpers.storing import Intake, an_event


class Interrupted(Exception):
    """Ctrl-C, in a test."""


def silent(_step: str, _table: str, _done: int) -> None:
    """Tell nobody."""


class Ends(NamedTuple):
    source: Engine
    target: Engine

    def copy(self, report: run.Report = silent, name: str = "the source") -> run.CopyResult:
        return run.copy(self.source, self.target, name, report)

    def interrupt(self, *at: str) -> None:
        """Copy until a chunk of this step (and table) is done."""

        def report(*now: object) -> None:
            if now[: len(at)] == at:
                raise Interrupted

        with pytest.raises(Interrupted):
            self.copy(report)


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
    assert {each.table: each.rows for each in result.tables} == {name: len(found) for name, found in before.items()}
    assert sum(each.copied_again for each in result.tables) == 0
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
    assert seq is not None
    assert last is not None
    assert seq > last


def _drop_triggers(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        for name in connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            connection.execute(text(f"DROP TRIGGER {name}"))
    else:
        for table in metadata.tables:
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))


def test_the_copy_is_as_append_only_as_the_source(ends: Ends) -> None:
    ends.copy()
    for statement in (
        "DELETE FROM inbox",
        "UPDATE delivery_log SET attempt = 9",
        "DELETE FROM delivery_log",
        "DELETE FROM inbox_payload",
    ):
        with pytest.raises(Exception, match="append-only"), ends.target.begin() as connection:
            connection.execute(text(statement))


@pytest.mark.parametrize("step", [("copying", "inbox"), ("copying", "delivery_log"), ("comparing", "inbox")])
def test_an_interrupted_copy_goes_on_where_it_was(
    ends: Ends, step: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inbox.db.copying.rows.CHUNK_ROWS", 5)
    ends.interrupt(*step)
    with pytest.raises(ConfigError, match="unfinished copy"):
        migrate.require_current(ends.target)
    assert run.plan(ends.source, ends.target, "the source").resumes

    steps: list[tuple[str, str, int]] = []
    result = ends.copy(lambda *now: steps.append(now))

    assert everything(ends.target) == everything(ends.source)
    assert ("copying", "inbox", 5) not in steps, "it begins behind the rows that are copied"
    assert sum(each.copied_again for each in result.tables) == 0


def test_rows_that_the_source_changed_between_two_runs_are_copied_again(ends: Ends) -> None:
    ends.interrupt("comparing")
    with ends.source.begin() as connection:
        connection.execute(text("UPDATE gate SET breaker = 'retired'"))
        connection.execute(text("DELETE FROM open_delivery WHERE state = 'waiting'"))
    Intake(url_of(ends.source)).append(an_event(70, "new"))

    result = ends.copy()

    assert everything(ends.target) == everything(ends.source)
    again = {each.table: each.copied_again for each in result.tables}
    assert again["gate"] > 0
    assert again["open_delivery"] > 0
    assert again["inbox"] == 0


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
def test_a_value_that_somebody_changes_in_the_target_is_put_right(ends: Ends) -> None:
    done = False

    def change(step: str, _table: str, _done: int) -> None:
        nonlocal done
        if step == "comparing" and not done:
            done = True
            with ends.target.begin() as connection:
                connection.execute(text("UPDATE alert SET subject = 'other'"))

    result = ends.copy(change)
    assert everything(ends.target) == everything(ends.source)
    assert {each.table for each in result.tables if each.copied_again} == {"alert"}


def test_a_target_with_rows_is_left_alone(ends: Ends) -> None:
    Intake(url_of(ends.target)).append(an_event(1), an_event(2))
    with pytest.raises(ConfigError, match="not empty: inbox has 2 rows"):
        ends.copy()
    assert count(ends.target, "inbox") == 2


@up
def test_the_unfinished_copy_of_another_source_is_left_alone(ends: Ends) -> None:
    ends.interrupt()
    with pytest.raises(ConfigError, match="unfinished copy of the source"):
        ends.copy(name="another")


def test_an_empty_source_makes_an_empty_installation(engine: Engine, databases: Databases) -> None:
    target = databases.open(databases.new("postgres"))
    Ends(engine, target).copy()
    assert everything(target) == everything(engine)


def test_two_bodies_of_25_mib_are_never_in_memory_together(
    engine: Engine, database_url: str, databases: Databases
) -> None:
    for n in (1, 2):
        Intake(database_url).append(msgspec.structs.replace(an_event(n), body=bytes([n]) * (25 * 1024 * 1024)))
    (table,) = (each for each in copied_tables() if each.name == "inbox_payload")
    with engine.connect() as connection, connection.begin():
        assert [len(chunk.rows) for chunk in Rows(connection).chunks(table)] == [1, 1]

    ends = Ends(engine, databases.open(databases.new("postgres")))
    ends.copy()
    assert everything(ends.target) == everything(engine)


@up
def test_what_postgres_can_not_store_gets_escapes_and_is_said(ends: Ends) -> None:
    with ends.source.begin() as connection:
        change = "UPDATE alert SET error = 'a' || char(0) || 'b', detail = :detail"
        connection.execute(text(change), {"detail": '{"a": "\\u0000", "b": "\\ud800"}'})
        connection.execute(text("UPDATE relay_node SET version = CAST(x'ff61' AS text)"))
    alerts = count(ends.source, "alert")

    result = ends.copy()

    assert rows(ends.target, "SELECT DISTINCT error FROM alert") == [{"error": "a\\x00b"}]
    assert rows(ends.target, "SELECT detail FROM alert")[0]["detail"] == {"a": "\\x00", "b": "\\ud800"}
    assert {row["version"] for row in rows(ends.target, "SELECT version FROM relay_node")} == {"\\udcffa"}
    assert result.escaped == 2 * alerts + count(ends.source, "relay_node")
    assert any(value.startswith("relay_node id=r1: version gets escapes") for value in result.escaped_values)


BAD = {
    "a time that no calendar has": ("relay_node", "id", "stopped_at", "'2026-13-45 00:00:00.000000Z'", "stopped_at"),
    "JSON that can't be read": ("relay_node", "id", "failing", "'{'", "rejects it"),
    "JSON with a number that is none": ("relay_node", "id", "failing", "'{\"a\": NaN}'", "rejects it"),
    "a number that is too large": ("gate", "name", "failures", "99999999999", "rejects it"),
    "bytes in a text": ("gate", "name", "hold_reason", "x'00'", "hold_reason is a bytes, not a text"),
    "a NUL in a key": ("gate", "name", "name", "'strict' || char(0)", "is a key that only escapes could write"),
}


@up
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_row_is_named_and_the_copy_goes_on_when_it_is_repaired(ends: Ends, bad: str) -> None:
    table, key, column, value, said = BAD[bad]
    one = f"(SELECT min({key}) FROM {table})"
    before = rows(ends.source, f"SELECT {key}, {column} AS value FROM {table} WHERE {key} = {one}")[0]
    with ends.source.begin() as connection:
        connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        connection.exec_driver_sql(f"UPDATE {table} SET {column} = {value} WHERE {key} = {one}")

    odd = [each for each in run.check(ends.source, silent) if not each.is_copied]
    assert [each.table for each in odd] == ([] if column == "failures" else [table])
    with pytest.raises(CopyFailed, match=f"^{table} .*{said}"):
        ends.copy()
    with pytest.raises(ConfigError, match="unfinished copy"):
        migrate.require_current(ends.target)

    with ends.source.begin() as connection:
        repair = f"UPDATE {table} SET {column} = :value WHERE {column} IS {value}"
        connection.execute(text(repair.replace(":0", "\\:0").replace(": NaN", "\\: NaN")), before)
    ends.copy()
    assert everything(ends.target) == everything(ends.source)


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
