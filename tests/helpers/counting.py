"""Operations on two counters, for tests of the stepper and its search."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Engine, text

from inbox.db.engine import reading
from tests.helpers.reading import rows


def with_counters(engine: Engine) -> Engine:
    """Give its database the counters a and b."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE counter (name text PRIMARY KEY, n integer NOT NULL)"))
        connection.execute(text("INSERT INTO counter VALUES ('a', 0), ('b', 0)"))
    return engine


def counting(engine: Engine, *names: str) -> Callable[[], str]:
    """Adds one to each of these, in one transaction."""

    def _count() -> str:
        with engine.begin() as connection:
            for name in names:
                connection.execute(text("UPDATE counter SET n = n + 1 WHERE name = :name"), {"name": name})
        return " ".join(names)

    return _count


def looking(engine: Engine, times: int) -> Callable[[], None]:
    """Reads so many times, in one transaction; its COMMIT is nothing to anybody, so it is no step."""

    def _look() -> None:
        with engine.connect() as connection, reading(connection).begin():
            for _ in range(times):
                connection.execute(text("SELECT n FROM counter"))

    return _look


def counted(engine: Engine) -> dict[str, int]:
    return {row["name"]: row["n"] for row in rows(engine, "SELECT name, n FROM counter")}
