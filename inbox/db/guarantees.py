"""Reads back what the guarantees rest on: settings of connection and server, and sequences that are ahead of their tables.

`inbox.db.engine` sets what can be set. Something between may drop it, a pooler say, and a restore or the promotion of a
logical replica leaves sequences behind. So both sides look when they start, and at each new
connection the receiver, at what it uses itself.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, text

from inbox.db.dialect import SQLITE
from inbox.db.engine import PINNED
from inbox.db.schema import metadata
from inbox.errors import UnfitDatabase

_log = logging.getLogger(__name__)


class _Wanted(NamedTuple):
    values: tuple[str, ...]
    """Any of these will do."""
    why: str
    """The consequence of any other."""


_DROPPED = (
    "Both sides set it for each connection, so something between drops it: behind a pooler add pooler=transaction to"
    " [database] url, or connect to the server itself"
)

REFUSED: Mapping[str, _Wanted] = {
    "transaction_isolation": _Wanted(("read committed",), "lanes could stay without a head"),
    # remote_apply waits for more than `on` does; local, remote_write and off for less, where there is a synchronous standby
    "synchronous_commit": _Wanted(("on", "remote_apply"), "an acknowledged webhook could be lost"),
    "lock_timeout": _Wanted((PINNED["lock_timeout"],), "a lock could hold up every webhook"),
    "idle_in_transaction_session_timeout": _Wanted(
        (PINNED["idle_in_transaction_session_timeout"],), "a process that stands still could stop all relays"
    ),
    "TimeZone": _Wanted((PINNED["timezone"],), "times could be read wrongly"),
}
"""What is pinned, as Postgres names it and writes its values. Any other value is refused."""

DOUBTED: Mapping[str, _Wanted] = {
    "fsync": _Wanted(("on",), "what was acknowledged is lost when the server's machine goes down"),
    "full_page_writes": _Wanted(("on",), "a crash can damage the database, unless its file system writes whole pages"),
    "default_transaction_read_only": _Wanted(("off",), "nothing can be stored"),
    "session_replication_role": _Wanted(("origin", "local"), "triggers keep nobody from changing events and facts"),
}
"""What only the server's owner can set, and may have a reason for, on a machine for tests say. Any other value is said."""

OF_SQLITE: Mapping[str, _Wanted] = {
    "journal_mode": _Wanted(("wal",), "readers and the receiver would stop each other"),
    "synchronous": _Wanted(("2", "3"), "an acknowledged webhook could be lost"),  # FULL, EXTRA
    "wal_autocheckpoint": _Wanted(("0",), "a commit could be lost (sqlite.org/wal.html, the WAL-reset bug)"),
}

_SET_BY: Mapping[str, str] = {
    "default": "the server's default",
    "configuration file": "set in the server's configuration file",
    "command line": "set on the server's command line",
    "database": "set with ALTER DATABASE",
    "user": "set with ALTER ROLE",
    "database user": "set with ALTER ROLE … IN DATABASE",
    "client": "asked for by the client",
    "session": "set in the session",
}
"""`pg_settings.source`: https://www.postgresql.org/docs/current/view-pg-settings.html."""


COUNTED = [
    f"{table.name}.{column.name}"
    for table in metadata.sorted_tables
    if table.dialect_options["sqlite"]["autoincrement"]
    for column in table.primary_key
]
"""The columns that count up by themselves."""

OF_RECEIVER = ("inbox.seq", "rejected_request.id", "duplicate_request.id")
"""Those of them that a receiver uses. It uses `alert.id` too, but can do without."""


def require(engine: Engine) -> None:
    """Make sure that this database lets the guarantees be kept. What the server's owner alone can change is only logged.

    Raises:
        UnfitDatabase: it does not; the text has a line for each reason, with what to do.
    """
    with engine.connect() as connection:
        found = differences(connection)
        doubts = [] if connection.dialect.name == SQLITE else list(_settings(connection, DOUBTED, ""))
        connection.rollback()
    for doubt in doubts:
        _log.warning("%s", doubt)
    if found:
        raise UnfitDatabase("\n".join(found))


def differences(connection: Connection, columns: Collection[str] = COUNTED) -> list[str]:
    """Why nothing should be stored through this connection: a line for each reason, with what to do.

    Of the `columns` that count up by themselves: a table that is not the caller's may be locked, or have its own trouble.
    """
    if connection.dialect.name == SQLITE:
        return list(_pragmas(connection))
    return [*_settings(connection, REFUSED, _DROPPED), *_sequences(connection, columns)]


def _settings(connection: Connection, wanted: Mapping[str, _Wanted], remedy: str) -> Iterator[str]:
    for row in connection.execute(_SETTINGS, {"names": list(wanted)}):
        values, why = wanted[row.name]
        if row.value not in values:
            told = f"the database has {row.name} = {row.value} ({_SET_BY.get(row.source, row.source)}), not {values[0]}: {why}"
            yield f"{told}. {remedy}" if remedy else told


def _sequences(connection: Connection, columns: Collection[str]) -> Iterator[str]:
    """Those that would give a number that is taken. One that this role may not look at is not its to use."""
    sequences = connection.execute(_SEQUENCES, {"columns": list(columns)}).all()
    if not sequences:
        return
    each = " UNION ALL ".join(
        f"SELECT {n} AS n, last_value + is_called::int AS next, (SELECT max({row.of_column}) FROM {row.of_table}) AS highest"
        f" FROM {row.name}"
        for n, row in enumerate(sequences)
    )
    for row in connection.execute(text(each)):
        if row.highest is not None and row.next <= row.highest:
            name, table, column = sequences[row.n]
            yield (
                f"the sequence {name} is behind its table, as after a restore or the promotion of a logical replica: it gives"
                f" {row.next} next, and {table}.{column} has {row.highest} already. Run: SELECT setval('{name}', {row.highest})"
            )


def _pragmas(connection: Connection) -> Iterator[str]:
    cursor = connection.connection.cursor()  # the driver's own: SQLAlchemy's would begin by taking the write lock
    try:
        for name, (values, why) in OF_SQLITE.items():
            cursor.execute(f"PRAGMA {name}")
            found: Any = cursor.fetchone()
            if str(found[0]) not in values:
                yield f"the SQLite file has {name} = {found[0]}, not {values[0]}: {why}. Put it on a local disk"
    finally:
        cursor.close()


# the isolation of a transaction comes from its default, and that is what somebody has set
_SETTINGS = text("""
SELECT s.name, current_setting(s.name) AS value, coalesce(d.source, s.source) AS source
FROM pg_settings s LEFT JOIN pg_settings d ON d.name = 'default_' || s.name
WHERE s.name = ANY(:names)
ORDER BY s.name
""")

_SEQUENCES = text("""
SELECT name, of_table, of_column
FROM (
    SELECT pg_get_serial_sequence(split_part(c, '.', 1), split_part(c, '.', 2)) AS name,
           split_part(c, '.', 1) AS of_table, split_part(c, '.', 2) AS of_column
    FROM unnest(CAST(:columns AS text[])) AS c
) AS found
WHERE has_sequence_privilege(name, 'SELECT') AND has_table_privilege(of_table, 'SELECT')
""")
