"""A healthy installation has no finding; an installation that can't be looked at is said to need something."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text

from relay.doctor import run as runs
from relay.doctor.examinations import EXAMINATIONS
from relay.doctor.run import Examination, Installation
from relay.findings import Finding
from tests.doctor.examining import (
    OPENED,
    environment_of,
    examined,
    installation,
    named,
    run_sql,
    start_a_relay,
)
from tests.helpers.databases import open_engine
from tests.helpers.processes import invoke
from tests.helpers.scripted import find_closed_port

OF_THE_TESTS_SERVER = {"fsync", "full_page_writes"}
"""Settings of the tests' own Postgres, which writes nothing through to its disk."""


def test_a_healthy_installation_has_no_finding(tmp_path: Path, database_url: str, engine: Engine) -> None:
    start_a_relay(engine)
    place = installation(tmp_path, database_url)
    results = runs.run(place, EXAMINATIONS)
    wrong = [each for each in runs.in_need(results) if each.subject not in OF_THE_TESTS_SERVER]
    assert wrong == []
    assert [(each.name, each.needs) for each in results if each.needs] == []
    assert {each.name for each in results} == {each.name for each in EXAMINATIONS}


def test_the_command_exits_with_0_and_says_well(
    tmp_path: Path, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = installation(tmp_path, sqlite_database_url)
    with open_engine(sqlite_database_url) as engine:
        start_a_relay(engine)
    monkeypatch.setenv("COLUMNS", "80")
    ended = invoke("inbox", "doctor", **environment_of(place))
    assert (ended.status, ended.stderr) == (0, ""), ended.stdout
    assert ended.stdout.startswith("well: no finding; ")
    document = json.loads(invoke("inbox", "doctor", "--json", **environment_of(place)).stdout)
    assert (document["critical"], document["warning"]) == (0, 0)
    assert document["at"].endswith("Z")
    assert {each["needs"] for each in document["examinations"]} == {None}


def test_only_the_wanted_examination_is_made_and_a_wrong_name_gets_the_nearest(
    tmp_path: Path, sqlite_database_url: str
) -> None:
    place = installation(tmp_path, sqlite_database_url)
    ended = invoke("inbox", "doctor", "--only", "disk", "--json", **environment_of(place))
    assert [each["name"] for each in json.loads(ended.stdout)["examinations"]] == ["disk"]
    wrong = invoke("inbox", "doctor", "--only", "dsk", **environment_of(place))
    assert (wrong.status, wrong.stdout) == (2, "")
    assert "there is no examination 'dsk'; did you mean 'disk'?" in " ".join(wrong.stderr.split())


# --- a database that can't be looked at


def test_a_database_that_does_not_answer_is_one_finding_and_the_others_need_it(tmp_path: Path) -> None:
    place = installation(tmp_path, f"postgresql+psycopg://relay:hidden@127.0.0.1:{find_closed_port()}/inbox")
    ended = invoke("inbox", "doctor", "--json", **environment_of(place))
    document = json.loads(ended.stdout)
    assert [each["kind"] for each in document["examinations"][0]["findings"]] == ["database_unreachable"]
    needs = {each["name"]: each["needs"] for each in document["examinations"]}
    needing = {each.name for each in EXAMINATIONS if each.needs_database}
    assert ended.status == 1
    assert document["critical"] == 1
    assert {needs[name] for name in needing} == {"needs the database"}  # it was not asked again and again
    assert (needs["database"], needs["configuration"]) == (None, None)
    assert "hidden" not in ended.stdout


def test_a_url_that_can_not_be_used_is_said_without_its_password(tmp_path: Path, sqlite_database_url: str) -> None:
    place = installation(tmp_path, sqlite_database_url)
    url = "postgresql+psycopg://relay:hid@den@127.0.0.1:port/inbox"
    ended = invoke("inbox", "doctor", "--json", **{**environment_of(place), "INBOX_DATABASE_URL": url})
    assert (ended.status, "INBOX_DATABASE_URL" in ended.stderr, "den@" in ended.stderr) == (2, True, False)


def test_a_missing_sqlite_file_is_a_finding_and_is_not_made(tmp_path: Path) -> None:
    place = installation(tmp_path, f"sqlite:///{tmp_path}/none.db")
    (result,) = runs.run(place, [named("database")])
    assert [each.kind for each in result.findings] == ["database_unreachable"]
    assert not (tmp_path / "none.db").exists()


def test_an_empty_database_lacks_migrations_and_other_examinations_need_them(tmp_path: Path, postgres_url: str) -> None:
    for url in (postgres_url, f"sqlite:///{tmp_path}/empty.db"):
        if url.startswith("sqlite"):
            (tmp_path / "empty.db").touch(0o600)
        place = installation(tmp_path, url)
        assert [each.kind for each in examined(place, "migrations").findings] == ["migrations_pending"]
        result = examined(place, "relay")
        assert "run `inbox migrate`" in (result.needs or "")


def test_a_database_of_a_newer_version_is_a_finding(tmp_path: Path, database_url: str, engine: Engine) -> None:
    run_sql(engine, "UPDATE alembic_version SET version_num = '1000'")
    place = installation(tmp_path, database_url)
    assert [each.kind for each in examined(place, "migrations").findings] == ["database_newer"]
    assert "needs the schema of exactly this version" in (examined(place, "schema").needs or "")


# --- apart from each other


def test_an_examination_that_fails_or_is_slow_is_reported_and_stops_no_other(tmp_path: Path, database_url: str) -> None:
    slow = "SELECT pg_sleep(60)" if database_url.startswith("postgres") else _ENDLESS

    def fails(_place: Installation) -> Iterator[Finding]:
        yield Finding("seen", "warning", "")
        raise RuntimeError("a secret \x1b[31m")

    def is_slow(place: Installation) -> Iterator[Finding]:
        with place.reading() as connection:
            connection.execute(text(slow)).all()
        yield from ()

    place = installation(tmp_path, database_url, seconds=1.0)
    made = [Examination(each.__name__, each, ()) for each in (fails, is_slow)]
    results = {each.name: each for each in runs.run(place, [*made, named("clock")])}
    assert len(results["fails"].findings) == 1
    assert results["fails"].needs == "needs a repair of its own: RuntimeError"
    assert (results["is_slow"].needs or "").startswith("needs the database to answer: ")
    assert results["clock"].needs is None


_ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def test_a_locked_table_is_not_waited_for(tmp_path: Path, postgres_database_url: str) -> None:
    with open_engine(postgres_database_url) as engine, engine.begin() as other:
        other.execute(text("LOCK TABLE gate IN ACCESS EXCLUSIVE MODE"))
        result = examined(installation(tmp_path, postgres_database_url), "relay")
    assert "lock timeout" in (result.needs or "")


def test_a_sqlite_file_stays_byte_for_byte(tmp_path: Path, sqlite_database_url: str) -> None:
    file = Path(make_url(sqlite_database_url).database or "")
    place = installation(tmp_path, sqlite_database_url)
    before = hashlib.sha256(file.read_bytes()).digest()
    runs.run(place, EXAMINATIONS)
    assert hashlib.sha256(file.read_bytes()).digest() == before


# --- rights


def test_a_role_without_rights_sees_what_each_examination_needs(tmp_path: Path, postgres_database_url: str) -> None:
    role = "doctor_without_rights"
    with open_engine(postgres_database_url) as engine:
        run_sql(engine, f"CREATE ROLE {role} LOGIN")
        try:
            url = make_url(postgres_database_url).set(username=role).render_as_string(hide_password=False)
            place = installation(tmp_path, url)
            results = {each.name: each for each in runs.run(place, EXAMINATIONS)}
            OPENED.pop().dispose()
        finally:
            run_sql(engine, f"DROP ROLE {role}")
    of_tables = {"migrations", "schema", "relay", "relays"}
    assert {name for name, each in results.items() if each.needs} == of_tables
    for name in of_tables:
        assert "permission denied" in (results[name].needs or ""), results[name]


# --- a SQLite file that can't be read


def _become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARMS: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"this is no database " * 500),
    "damaged": lambda path: path.write_bytes(path.read_bytes()[:8192] + b"\xff" * (path.stat().st_size - 8192)),
    "a folder": _become_a_folder,
    "without rights": lambda path: path.chmod(0),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_sqlite_file_that_can_not_be_read_is_a_finding(tmp_path: Path, sqlite_database_url: str, harm: str) -> None:
    place = installation(tmp_path, sqlite_database_url)
    path = Path(make_url(sqlite_database_url).database or "")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    HARMS[harm](path)
    is_root = os.geteuid() == 0
    if is_root and harm == "without rights":
        os.seteuid(65_534)
    try:
        results = runs.run(place, EXAMINATIONS)
    finally:
        if is_root:
            os.seteuid(0)
    found = {each.kind: each for each in runs.in_need(results)}
    assert found["database_unreachable"].level == "critical"
    assert str(path) in found["database_unreachable"].remedy
