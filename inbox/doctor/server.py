"""The database at work: transactions that stay open, rows that nobody clears, slots, transaction ids and connections."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from sqlalchemy import text

from inbox.db.dialect import POSTGRES, SQLITE
from inbox.db.leaves import DEFAULT
from inbox.db.schema import metadata
from inbox.examination import (
    DoctorFinding,
    Examination,
    FindingKind,
    Installation,
    require_membership,
    sql_name,
    sql_text,
)

_MB = 1_000_000

# --- transactions

LONG = FindingKind(
    "long_transaction",
    "warning",
    "A transaction has been open for minutes.",
    "nothing that was deleted or changed since it began is cleared, so tables and indexes grow and looks for due deliveries slow"
    " down",
    "SELECT pg_terminate_backend({pid});",
)
_LONG_SECONDS = 300

PREPARED = FindingKind(
    "prepared_transaction",
    "warning",
    "A prepared transaction waits for its end.",
    "it keeps its locks and its snapshot, even when the server starts again, until somebody ends it",
    "ROLLBACK PREPARED {gid}; -- or COMMIT PREPARED",
)
_PREPARED_SECONDS = 60


def _transactions(installation: Installation) -> Iterator[DoctorFinding]:
    with installation.reading() as connection:
        for row in connection.execute(_LONG, {"seconds": _LONG_SECONDS}):
            about = f"{row.application or 'no application_name'}, {row.state or 'of another user'}"
            text_ = (
                f"pid {row.pid} ({about}), in its transaction for {row.for_seconds:.0f} s: {row.query}, by {row.role}"
            )
            yield LONG.found(f"pid {row.pid}", text_, pid=row.pid)
        for row in connection.execute(_PREPARED, {"seconds": _PREPARED_SECONDS}):
            what = f"{row.gid} of {row.owner} was prepared {row.seconds:.0f} s ago"
            yield PREPARED.found(row.gid, what, gid=sql_text(row.gid))
        require_membership(connection, "pg_read_all_stats")


_LONG = text(r"""
SELECT pid, usename AS role, application_name AS application, state,
       left(regexp_replace(query, '\s*([''"$]|\m\d).*$', '…'), 80) AS query,
       extract(epoch FROM clock_timestamp() - xact_start) AS for_seconds
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND xact_start < clock_timestamp() - make_interval(secs => :seconds)
ORDER BY xact_start
LIMIT 10
""")
_PREPARED = text("""
SELECT gid, owner, CAST(extract(epoch FROM clock_timestamp() - prepared) AS float8) AS seconds
FROM pg_prepared_xacts
WHERE database = current_database() AND prepared < clock_timestamp() - make_interval(secs => :seconds)
ORDER BY prepared
LIMIT 10
""")


# --- rows that nobody clears

AUTOVACUUM_OFF = FindingKind(
    "autovacuum_off",
    "warning",
    "Autovacuum is off.",
    "dead rows stay for ever: tables and indexes grow, and plans rest on old statistics",
    "ALTER TABLE {table} RESET (autovacuum_enabled);",
)
DEAD_ROWS = FindingKind(
    "dead_rows",
    "warning",
    "A table has many dead rows.",
    "every look reads them too; autovacuum does not keep up, or a transaction, slot or standby holds it back",
    "VACUUM (VERBOSE, ANALYZE) {table};",
)
OVERSIZED = FindingKind(
    "table_oversized",
    "warning",
    "A small table has a large file.",
    "looks for due deliveries read pages without rows; an outage or a long transaction has left them",
    "VACUUM FULL {table}; -- it locks the table for some seconds, webhooks get 503 meanwhile",
)
FREE_PAGES = FindingKind(
    "free_pages",
    "warning",
    "Much of the SQLite file is free pages.",
    "the disk does not get them back by itself",
    "VACUUM; -- it needs as much free disk as the file has, and the write lock",
)
LARGE_LOG = FindingKind(
    "log_large",
    "warning",
    "The write-ahead log of SQLite is large.",
    "a transaction that reads for long keeps it from being copied into the file, or no program runs",
    "fuser -v {path} # shows who has it open",
)
_DEAD_ROWS, _DEAD_PART = 20_000, 0.5
_OVERSIZED_BYTES, _BYTES_OF_A_ROW = 256 * _MB, 20_000
_SMALL = (
    "open_delivery",
    "lane",
    "gate",
    "relay_node",
    "sweep_watermark",
    "order_lock",
    "route_lock",
    "payload_lock",
    "write_probe",
)
"""Tables whose size follows what is open, not what was stored."""
_FREE_BYTES, _FREE_PART = 100 * _MB, 0.25
_LOG_BYTES = 256 * _MB


def _bloat(installation: Installation) -> Iterator[DoctorFinding]:
    with installation.reading() as connection:
        if connection.dialect.name == SQLITE:
            names = ("page_count", "freelist_count", "page_size")
            pages, free, size = (connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names)
            yield from _free(installation, pages * size, free * size)
            return
        if connection.execute(text("SELECT current_setting('autovacuum')")).scalar() == "off":
            what = "autovacuum is off in the server's settings"
            yield AUTOVACUUM_OFF.found(
                "autovacuum", what, mend="ALTER SYSTEM RESET autovacuum; SELECT pg_reload_conf();"
            )
        rows = connection.execute(_BLOAT, {"names": [table.name for table in metadata.sorted_tables]}).all()
        for row in rows:
            quoted = sql_name(row.name)
            if row.is_off:
                yield AUTOVACUUM_OFF.found(row.name, f"autovacuum is off for {row.name}", table=quoted)
            if row.dead > _DEAD_ROWS and row.dead > _DEAD_PART * row.live:
                when = f"last vacuumed {row.vacuumed:%Y-%m-%d %H:%M}Z" if row.vacuumed else "never vacuumed"
                what = f"{row.name} has {row.dead:,} dead rows beside {row.live:,} live ones, {when}"
                yield DEAD_ROWS.found(row.name, what, table=quoted)
        for row in rows:
            if row.name in _SMALL:
                size = (
                    connection.execute(text("SELECT pg_relation_size(CAST(:oid AS oid))"), {"oid": row.oid}).scalar()
                    or 0
                )
                if size > max(_OVERSIZED_BYTES, _BYTES_OF_A_ROW * (row.live + row.dead)):
                    what = f"{row.name} has {row.live:,} rows in a file of {size / _MB:,.0f} MB"
                    yield OVERSIZED.found(row.name, what, table=sql_name(row.name))


def _free(installation: Installation, size: int, free: int) -> Iterator[DoctorFinding]:
    path = installation.sqlite_path
    if free > max(_FREE_BYTES, _FREE_PART * size):
        yield FREE_PAGES.found(str(path), f"{free / _MB:,.0f} MB of {size / _MB:,.0f} MB are free pages")
    log = None if path is None else path.with_name(path.name + "-wal")
    if log is not None and log.exists() and log.stat().st_size > _LOG_BYTES:
        what = f"{log} has {log.stat().st_size / _MB:,.0f} MB"
        yield LARGE_LOG.found(str(log), what, path=shlex.quote(str(path)))


_BLOAT = text("""
SELECT c.oid, c.relname AS name, coalesce(s.n_live_tup, 0) AS live, coalesce(s.n_dead_tup, 0) AS dead,
       greatest(s.last_autovacuum, s.last_vacuum) AS vacuumed,
       coalesce('autovacuum_enabled=false' = ANY (c.reloptions), false) AS is_off
FROM pg_class c LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
LEFT JOIN pg_inherits h ON h.inhrelid = c.oid LEFT JOIN pg_class p ON p.oid = h.inhparent
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema()) AND c.relkind = 'r'
  AND (c.relname = ANY(:names) OR p.relname = ANY(:names))
ORDER BY c.relname
""")


# --- leaves of payloads

IN_DEFAULT = FindingKind(
    "payloads_in_default",
    "warning",
    "Payloads lie in the default leaf of inbox_payload.",
    "no relay has made leaves ahead of the events: these payloads expire row by row, and the disk does not get their space back",
    "relay run # a running relay makes leaves; these payloads expire by and by",
)


def _leaves(installation: Installation) -> Iterator[DoctorFinding]:
    with installation.reading() as connection:
        if connection.execute(text(f"SELECT 1 FROM {DEFAULT} LIMIT 1")).first():
            yield IN_DEFAULT.found(DEFAULT, f"{DEFAULT} has payloads, which belong into leaves of their own")


# --- slots, transaction ids, connections

SLOT = FindingKind(
    "slot_holds_wal",
    "warning",
    "A replication slot keeps much of the write-ahead log.",
    "its reader is gone or slow: the disk of the server fills up, and every webhook gets 503 then",
    "SELECT pg_drop_replication_slot({slot}); -- if its reader is gone for good",
)
_SLOT_BYTES = 1000 * _MB


def _slots(installation: Installation) -> Iterator[DoctorFinding]:
    with installation.reading() as connection:
        for row in connection.execute(_SLOTS, {"bytes": _SLOT_BYTES}):
            kept = "what it needs is lost already" if row.kept is None else f"keeps {row.kept / _MB:,.0f} MB of WAL"
            what = f"slot {row.slot_name} ({'active' if row.active else 'inactive'}, {row.wal_status}) {kept}"
            yield SLOT.found(row.slot_name, what, slot=sql_text(row.slot_name))


_SLOTS = text("""
SELECT slot_name, active, coalesce(wal_status, '?') AS wal_status, kept
FROM (
    SELECT s.*, pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END, s.restart_lsn) AS kept
    FROM pg_replication_slots s) s
WHERE kept > :bytes OR wal_status IN ('unreserved', 'lost')
ORDER BY kept DESC
LIMIT 10
""")

XID_AGE = FindingKind(
    "xid_age",
    "warning",
    "The database's oldest transaction id is old.",
    "at about 2,100 million the server stops taking writes; autovacuum normally keeps it below 200 million",
    "VACUUM (FREEZE, VERBOSE); -- after the end of old transactions and slots",
)
_XID_AGE = 600_000_000


def _xids(installation: Installation) -> Iterator[DoctorFinding]:
    with installation.reading() as connection:
        row = connection.execute(_AGES).one()
    for what, age in (("transaction ids", row.xids), ("multixact ids", row.multixacts)):
        if age > _XID_AGE:
            yield XID_AGE.found(row.name, f"{row.name}: the {what} in use go back {age / 1e6:,.0f} million")


_AGES = text("""
SELECT datname AS name, age(datfrozenxid) AS xids, mxid_age(datminmxid) AS multixacts
FROM pg_database WHERE datname = current_database()
""")

CONNECTIONS = FindingKind(
    "connections_near_limit",
    "warning",
    "Nearly all connections of the server are in use.",
    "receiver workers and relays that start get none: webhooks get 503",
    "SELECT usename, application_name, count(*) FROM pg_stat_activity GROUP BY 1, 2 ORDER BY 3 DESC;",
)
_USED_PART = 0.8


def _connections(installation: Installation) -> Iterator[DoctorFinding]:
    with installation.reading() as connection:
        row = connection.execute(_USED).one()
    limits = (
        ("the server", row.used, row.most),
        (f"database {row.name}", row.used_here, row.most_here),
        (f"role {row.role}", row.used_by_role, row.most_of_role),
    )
    for of, used, most in limits:
        if most > 0 and used > _USED_PART * most:
            yield CONNECTIONS.found(of, f"{used} of {most} connections of {of} are in use")


_USED = text("""
SELECT (SELECT sum(numbackends) FROM pg_stat_database)::int AS used,
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS most,
       d.datname AS name, d.datconnlimit AS most_here,
       (SELECT numbackends FROM pg_stat_database WHERE datid = d.oid) AS used_here,
       r.rolname AS role, r.rolconnlimit AS most_of_role,
       (SELECT count(*) FROM pg_stat_activity WHERE usesysid = r.oid) AS used_by_role
FROM pg_database d, pg_roles r
WHERE d.datname = current_database() AND r.rolname = current_user
""")

EXAMINATIONS = (
    Examination(
        "transactions",
        "Server",
        "Transactions that have been open for 5 minutes, and prepared ones.",
        _transactions,
        (LONG, PREPARED),
        on=(POSTGRES,),
    ),
    Examination(
        "bloat",
        "Server",
        "Dead rows, autovacuum, free pages, and files that are larger than their rows.",
        _bloat,
        (AUTOVACUUM_OFF, DEAD_ROWS, OVERSIZED, FREE_PAGES, LARGE_LOG),
    ),
    Examination("leaves", "Server", "The default leaf of payloads.", _leaves, (IN_DEFAULT,), on=(POSTGRES,)),
    Examination("slots", "Server", "Replication slots that keep WAL.", _slots, (SLOT,), on=(POSTGRES,)),
    Examination("xids", "Server", "Age of the oldest transaction id.", _xids, (XID_AGE,), on=(POSTGRES,)),
    Examination(
        "connections", "Server", "Connections in use, and their limits.", _connections, (CONNECTIONS,), on=(POSTGRES,)
    ),
)
