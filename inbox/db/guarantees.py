"""Check the conditions of the guarantees: settings of connection and server, and sequences ahead of their tables.

`inbox.db.engine` sets the settings, but a pooler may drop them, and a restore or the promotion of a logical replica
leaves sequences behind. Both programs therefore check at the start, and the receiver at each new connection.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, text

from inbox.db.dialect import SQLITE
from inbox.db.engine import PINNED, read_schema, search_path
from inbox.db.schema import metadata
from inbox.errors import UnfitDatabase
from inbox.observe.logs import fields

_log = logging.getLogger(__name__)


class _Wanted(NamedTuple):
    values: tuple[str, ...]
    """Accepted values."""
    why: str
    """Consequence of any other value."""


_DROPPED = (
    "Both sides set it for each connection, so something between drops it: behind a pooler add pooler=transaction to"
    " [database] url, or connect to the server itself"
)

_ELSEWHERE = "statements could reach tables of the same names in another schema"

REQUIRED: Mapping[str, _Wanted] = {
    "transaction_isolation": _Wanted(("read committed",), "lanes could stay without a head"),
    # with a synchronous standby, remote_apply is stricter than `on`; local, remote_write and off are weaker
    "synchronous_commit": _Wanted(("on", "remote_apply"), "an acknowledged webhook could be lost"),
    "lock_timeout": _Wanted((PINNED["lock_timeout"],), "a lock could hold up every webhook"),
    "idle_in_transaction_session_timeout": _Wanted(
        (PINNED["idle_in_transaction_session_timeout"],), "a hung process could stop all relays"
    ),
    "TimeZone": _Wanted((PINNED["timezone"],), "times could be read wrongly"),
}
"""Pinned settings with Postgres's names and values. Other values, and another `search_path`, are rejected."""

RECOMMENDED: Mapping[str, _Wanted] = {
    "fsync": _Wanted(("on",), "acknowledged webhooks are lost when the server's machine goes down"),
    "full_page_writes": _Wanted(("on",), "a crash can damage the database, unless its file system writes whole pages"),
    "default_transaction_read_only": _Wanted(("off",), "nothing can be stored"),
    "session_replication_role": _Wanted(("origin", "local"), "triggers don't protect events and facts"),
}
"""Settings of the server's owner, who may weaken them on purpose, as on a test machine. Other values are only logged."""

SQLITE_PRAGMAS: Mapping[str, _Wanted] = {
    "journal_mode": _Wanted(("wal",), "readers and the receiver would block each other"),
    "synchronous": _Wanted(("2", "3"), "an acknowledged webhook could be lost"),  # FULL, EXTRA
    "wal_autocheckpoint": _Wanted(("0",), "a commit could be lost (sqlite.org/wal.html, the WAL-reset bug)"),
}

COUNTER_COLUMNS = [
    f"{table.name}.{column.name}"
    for table in metadata.sorted_tables
    if table.dialect_options["sqlite"]["autoincrement"]
    for column in table.primary_key
]
"""Auto-incrementing columns."""

RECEIVER_COLUMNS = ("inbox.seq", "rejected_request.id", "duplicate_request.id")
"""Auto-incrementing columns that a receiver requires. It also uses `alert.id`, but can do without it."""


def require(engine: Engine) -> None:
    """Check that this database can keep the guarantees. Doubtful settings of the server's owner are only logged.

    Raises:
        UnfitDatabase: it can't; the message has one line for each reason, with its remedy.
    """
    with engine.connect() as connection:
        found = list_differences(connection)
        doubted = list_doubts(connection)
        connection.rollback()
    for doubt in doubted:
        _log.warning("%s", doubt, extra=fields("weak_guarantee"))
    if found:
        raise UnfitDatabase("\n".join(found))


def list_doubts(connection: Connection) -> list[str]:
    """List the settings of the server's owner that put stored webhooks at risk."""
    return [] if connection.dialect.name == SQLITE else list(_check_settings(connection, RECOMMENDED, ""))


def list_differences(connection: Connection, columns: Collection[str] = COUNTER_COLUMNS) -> list[str]:
    """List the reasons not to store anything over this connection, with their remedies.

    `columns` limits the check of sequences, as tables that the caller doesn't use may be locked or broken.
    """
    if connection.dialect.name == SQLITE:  # its own counters continue from the table's highest number
        return list(_check_pragmas(connection))
    required = {**REQUIRED, "search_path": _Wanted((search_path(read_schema(connection)),), _ELSEWHERE)}
    # under another search_path, the sequences would be those of another schema
    return list(_check_settings(connection, required, f". {_DROPPED}")) or list(_check_sequences(connection, columns))


def _check_settings(connection: Connection, wanted: Mapping[str, _Wanted], remedy: str) -> Iterator[str]:
    for row in connection.execute(_SETTINGS, {"names": list(wanted)}):
        values, why = wanted[row.name]
        if row.value not in values:
            yield f"the database has {row.name} = {row.value} (set by: {row.source}), not {values[0]}: {why}{remedy}"


def _check_sequences(connection: Connection, columns: Collection[str]) -> Iterator[str]:
    """Yield each sequence whose next number is already in use, if this role may read the sequence."""
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


def _check_pragmas(connection: Connection) -> Iterator[str]:
    cursor = connection.connection.cursor()  # the driver's cursor: SQLAlchemy's would take the write lock
    try:
        for name, (values, why) in SQLITE_PRAGMAS.items():
            cursor.execute(f"PRAGMA {name}")
            found: Any = cursor.fetchone()
            if str(found[0]) not in values:
                yield f"the SQLite file has {name} = {found[0]}, not {values[0]}: {why}. Put it on a local disk"
    finally:
        cursor.close()


# the isolation of a transaction has the source of its default
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
WHERE has_sequence_privilege(name, 'SELECT') AND has_column_privilege(of_table, of_column, 'SELECT')
""")
