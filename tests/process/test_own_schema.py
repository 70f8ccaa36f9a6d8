"""All tables live in the schema of the configuration, beside another application's tables of the same names in `public`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from inbox.db import engine as engines
from inbox.db import guarantees, migrate
from inbox.db.schema import metadata
from inbox.errors import ConfigError
from tests.helpers.databases import PostgresServer, connect_postgres
from tests.helpers.tables import rows

NAMES = [*metadata.tables, "alembic_version", "delivery", "dead_letter", "backlog", "stuck"]


@pytest.fixture
def crowded_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database in which another application has tables of all these names, in another shape."""
    with postgres_server.database() as url:
        crowd(url)
        yield url


def crowd(url: str) -> None:
    """Make another application's tables of these names, in another shape."""
    with contextlib.closing(connect_postgres(url)) as owner:
        for table in NAMES:
            owner.execute(f"CREATE TABLE public.{table} (theirs text)".encode())
            owner.execute(f"INSERT INTO public.{table} VALUES ('untouched')".encode())
        owner.execute(b"CREATE FUNCTION public.inbox_is_not_truncated() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        owner.execute(b"CREATE SEQUENCE public.inbox_seq_seq START 7000")


def untouched(url: str) -> bool:
    with contextlib.closing(connect_postgres(url)) as theirs:
        return all(
            theirs.execute(f"SELECT * FROM public.{name}".encode()).fetchall() == [("untouched",)] for name in NAMES
        )


def engine_of(url: str, schema: str = "inbox") -> Engine:
    return engines.connect(with_query(url, schema=schema), application="tests")


def with_query(url: str, **query: str) -> str:
    return make_url(url).update_query_dict(query).render_as_string(hide_password=False)


def test_two_installations_share_a_database(crowded_url: str) -> None:
    first, second = engine_of(crowded_url, "first"), engine_of(crowded_url, "second")
    for engine in (first, second):
        migrate.upgrade(engine)
    with first.begin() as connection:
        connection.execute(text("INSERT INTO gate (kind, name) VALUES ('route', 'r')"))
    assert [len(rows(engine, "SELECT * FROM gate")) for engine in (first, second)] == [1, 0]
    with pytest.raises(DBAPIError, match="append-only"), second.begin() as connection:
        connection.execute(text("TRUNCATE inbox"))
    for engine in (first, second):
        engine.dispose()


def test_a_function_finds_our_tables_whatever_path_its_caller_has(crowded_url: str) -> None:
    engine = engine_of(crowded_url)
    migrate.upgrade(engine)
    paths = rows(
        engine,
        "SELECT proname, proconfig::text AS settings FROM pg_proc WHERE pronamespace = 'inbox'::regnamespace",
    )
    engine.dispose()
    assert paths
    for row in paths:
        assert "search_path=inbox, pg_temp" in row["settings"], row["proname"]


def test_a_table_of_another_name_space_is_never_reached_instead(crowded_url: str) -> None:
    engine = engine_of(crowded_url)
    migrate.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TEMP TABLE gate (theirs text)"))
        connection.execute(text("INSERT INTO gate (kind, name) VALUES ('route', 'r')"))
        connection.execute(text("SET LOCAL search_path = public"))
        (line,) = guarantees.differences(connection)
    engine.dispose()
    assert line.startswith("the database has search_path = public (set by: session), not inbox, pg_temp: ")


def test_in_public_it_says_that_another_application_is_there_and_what_to_set(crowded_url: str) -> None:
    engine = engine_of(crowded_url, "public")
    with contextlib.closing(connect_postgres(crowded_url)) as owner:
        owner.execute(b"DROP TABLE alembic_version")
        owner.execute(b"CREATE TABLE alembic_version (version_num text)")
        owner.execute(b"INSERT INTO alembic_version VALUES ('3fa9c0')")
    with pytest.raises(ConfigError, match=r"revision 3fa9c0, so it is another application's: .* \[database\] schema"):
        migrate.upgrade(engine)
    engine.dispose()


def test_without_the_right_to_make_it_the_statement_for_the_owner_is_said(postgres_database_url: str) -> None:
    with contextlib.closing(connect_postgres(postgres_database_url)) as owner:
        owner.execute(b"DROP ROLE IF EXISTS plain_migrator")
        owner.execute(b"CREATE ROLE plain_migrator LOGIN")
        url = make_url(postgres_database_url).set(username="plain_migrator").render_as_string(hide_password=False)
        engine = engine_of(url)
        with pytest.raises(ConfigError, match="CREATE SCHEMA inbox AUTHORIZATION") as refused:
            migrate.upgrade(engine)
        owner.execute(str(refused.value).partition("of the database: ")[2].encode())
        assert migrate.upgrade(engine).after == migrate.head()
        engine.dispose()
        owner.execute(b"DROP OWNED BY plain_migrator")
        owner.execute(b"DROP ROLE plain_migrator")
