"""Pipelines of psycopg: statements sent together, without waiting for each result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, cast

from sqlalchemy import Connection, TextClause

if TYPE_CHECKING:
    import psycopg

Statement = tuple[TextClause, Mapping[str, object]]
"""A statement and its parameters."""


def send_together(connection: Connection, statements: Sequence[Statement], *, commit: bool = False) -> list[list[Any]]:
    """Send these statements together, with `commit` followed by a COMMIT, and return the rows of each.

    Raises:
        DBAPIError: the first statement that failed, as SQLAlchemy raises it; later ones did not run.
    """
    import psycopg  # noqa: PLC0415  # SQLite does without it, and it takes as long to load as all of rich
    from psycopg.rows import namedtuple_row  # noqa: PLC0415  # likewise

    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    cursors = [driver.cursor(row_factory=namedtuple_row) for _ in statements]
    failures: list[psycopg.Error] = []
    try:
        with driver.pipeline():
            try:
                for cursor, (statement, parameters) in zip(cursors, statements, strict=True):
                    cursor.execute(_written(statement), parameters)
                if commit:
                    driver.commit()
            except psycopg.Error as error:  # an error may arrive while later statements are sent
                failures.append(error)  # the end of the pipeline would only report the abort
    except psycopg.Error as error:  # if the pipeline can't be ended either, the earlier error has the reason
        failures.append(error.__context__ if isinstance(error.__context__, psycopg.Error) else error)
    if driver.pgconn.pipeline_status:  # no rollback is possible in a pipeline left open
        driver.close()
    if failures:
        failed = next((s for cursor, s in zip(cursors, statements, strict=True) if cursor.pgresult is None), None)
        _raise(connection, failures[0], failed)
    return [cursor.fetchall() if cursor.description else [] for cursor in cursors]


def _raise(connection: Connection, error: psycopg.Error, failed: Statement | None) -> NoReturn:
    """Raise an error like SQLAlchemy, which drops all connections to an unreachable server."""
    statement, parameters = (None, None) if failed is None else (str(failed[0]), dict(failed[1]))
    try:
        raise error  # noqa: TRY301  # raised only to be handled below
    except Exception:  # noqa: BLE001  # the one above
        connection._handle_dbapi_exception(error, statement, parameters, None, None)  # noqa: SLF001  # it has no public name


@cache
def _written(statement: TextClause) -> str:
    """Return the statement with the driver's placeholders, cached as long as the caller keeps it."""
    return str(statement.compile(dialect=_dialect()))


@cache
def _dialect() -> Any:  # noqa: ANN401  # untyped
    from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg  # noqa: PLC0415  # as above

    return PGDialect_psycopg()  # type: ignore[no-untyped-call]
