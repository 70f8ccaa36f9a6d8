"""Views of sources, destinations and the database itself. They read figures and statistics, and no table whole."""

from __future__ import annotations

from collections.abc import Mapping

from inbox.db.schema import metadata
from inbox.db.stuck import FAILED, SUCCEEDED, SqlClock, newest_minute
from inbox.db.throughput import DUPLICATE, REJECTED, STORED, SWEPT
from inbox.events.states import GONE_SECONDS

_HOUR, _DAY = 3600, 86_400
LONG_TRANSACTION_SECONDS = 60
_QUERY_CHARACTERS = 100


def statements(dialect: str) -> tuple[str, ...]:
    """List the views of this module."""
    clock = SqlClock(dialect)
    return (
        _source_health(clock),
        _destination_health(clock),
        _postgres_table_size(clock) if clock.is_postgres else _sqlite_table_size(clock),
        _POSTGRES_LONG_TRANSACTION if clock.is_postgres else _SQLITE_LONG_TRANSACTION,
    )


def route_gate(clock: SqlClock) -> str:
    """Make the view of gates by route. What no relay wrote into `relay_node.routes` is passed over."""
    if clock.is_postgres:
        pairs = """relay_node n
CROSS JOIN LATERAL jsonb_each(n.routes) r
CROSS JOIN LATERAL jsonb_array_elements(CASE jsonb_typeof(r.value) WHEN 'array' THEN r.value ELSE '[]' END) g"""
        kind, name, route = "g.value ->> 0", "g.value ->> 1", "r.key"
    else:
        pairs = """relay_node n
JOIN json_each(n.routes) r
JOIN json_each(CASE r.type WHEN 'array' THEN r.value ELSE '[]' END) g ON g.type = 'array'"""
        kind, name, route = "g.value ->> '$[0]'", "g.value ->> '$[1]'", "r.key"
    return f"""
CREATE VIEW route_gate AS
SELECT DISTINCT {route} AS route, {kind} AS kind, {name} AS name
FROM {pairs}
WHERE n.routes IS NOT NULL AND n.stopped_at IS NULL AND n.heartbeat_at >= {clock.ago(GONE_SECONDS)}
"""


def _source_health(clock: SqlClock) -> str:
    sums = _sums(
        clock,
        "'source'",
        "known.source",
        {"events": (STORED, SWEPT), "duplicates": (DUPLICATE,), "rejected": (REJECTED,)},
    )
    return f"""
CREATE VIEW source_health AS
SELECT known.source, {newest_minute("'source'", "known.source", (STORED, DUPLICATE))} AS last_arrival_at,
       {sums},
       coalesce((
           SELECT a.firing FROM alert a WHERE a.kind = 'source_silent' AND a.subject = known.source ORDER BY a.id DESC LIMIT 1
       ), false) AS is_silent,
       (SELECT g.paused_at FROM gate g WHERE g.kind = 'source' AND g.name = known.source) AS paused_at
FROM (
    SELECT name AS source FROM ({_names("throughput_minute", "name", "t.kind = 'source'")}) counted
    UNION
    SELECT name FROM ({_names("inbox", "source", "1 = 1")}) stored
) known
"""


def _destination_health(clock: SqlClock) -> str:
    outcomes = {"delivered": ("delivered", "unchanged"), "failed": ("attempt_failed", "abandoned"), "dead": ("dead",)}
    sums = _sums(clock, "subject.kind", "subject.name", outcomes)
    known = "UNION".join(
        f"""
    SELECT '{kind}' AS kind, name FROM ({_names("throughput_minute", "name", f"t.kind = '{kind}'")}) counted_{kind}
    """
        for kind in ("route", "destination")
    )
    return f"""
CREATE VIEW destination_health AS
SELECT h.kind, h.name,
       CASE WHEN h.paused_at IS NOT NULL THEN 'paused'
            WHEN h.breaker <> 'closed' THEN h.breaker
            WHEN h.held_until IS NOT NULL THEN 'held'
            WHEN h.last_failure_at > h.last_success_at OR h.last_failure_at IS NOT NULL AND h.last_success_at IS NULL THEN 'failing'
            ELSE 'ok' END AS health,
       h.delivered_hour, h.delivered_day, h.failed_hour, h.failed_day, h.dead_hour, h.dead_day,
       h.last_success_at, h.last_failure_at, h.paused_at, h.breaker, h.breaker_until, h.breaker_cause,
       h.held_until, h.hold_reason
FROM (
    SELECT subject.kind, subject.name,
           {sums},
           {newest_minute("subject.kind", "subject.name", SUCCEEDED)} AS last_success_at,
           {newest_minute("subject.kind", "subject.name", FAILED)} AS last_failure_at,
           g.paused_at, coalesce(g.breaker, 'closed') AS breaker, g.breaker_until, g.breaker_cause,
           CASE WHEN g.held_until > {clock.ago(0)} THEN g.held_until END AS held_until,
           CASE WHEN g.held_until > {clock.ago(0)} THEN g.hold_reason END AS hold_reason
    FROM (
    SELECT g.kind, g.name FROM gate g WHERE g.kind IN ('route', 'destination', 'api')
    UNION{known}) subject
    LEFT JOIN gate g ON g.kind = subject.kind AND g.name = subject.name
) h
"""


def _names(table: str, column: str, condition: str) -> str:
    """Select each name once, by one look into an index that begins with it: a DISTINCT would read every row."""
    first = f"SELECT min(t.{column}) FROM {table} t WHERE {condition}"
    return f"""
        WITH RECURSIVE found(name) AS (
            {first}
            UNION ALL
            SELECT ({first} AND t.{column} > found.name) FROM found WHERE found.name IS NOT NULL)
        SELECT name FROM found WHERE name IS NOT NULL"""


def _sums(clock: SqlClock, kind: str, name: str, outcomes: Mapping[str, tuple[str, ...]]) -> str:
    """Select the sums of the last hour and day, each one range of the primary key for each outcome."""
    return ",\n           ".join(
        f"({_figures('coalesce(sum(t.count), 0)', kind, name, some)}"
        f" AND t.minute > {clock.ago(seconds)}) AS {column}_{period}"
        for column, some in outcomes.items()
        for period, seconds in (("hour", _HOUR), ("day", _DAY))
    )


def _figures(what: str, kind: str, name: str, outcomes: tuple[str, ...]) -> str:
    listed = ", ".join(f"'{outcome}'" for outcome in outcomes)
    return (
        f"SELECT {what} FROM throughput_minute t WHERE t.kind = {kind} AND t.name = {name} AND t.outcome IN ({listed})"
    )


_DRIVERS: Mapping[str, tuple[str, str]] = {
    "inbox": ("source", f"'{STORED}', '{SWEPT}'"),
    "inbox_payload": ("source", f"'{STORED}', '{SWEPT}'"),
    "duplicate_request": ("source", f"'{DUPLICATE}'"),
    "rejected_request": ("source", f"'{REJECTED}'"),
    "delivery_log": ("route", ""),
}
"""Figures that add rows to a table: their kind, and outcomes; none: all."""


def _rows_per_day(clock: SqlClock, table: str) -> str:
    """Choose, for a table's name, the rows that were added in the last day, by the figures."""
    cases = "\n".join(
        f"            WHEN '{name}' THEN (SELECT sum(t.count) FROM throughput_minute t WHERE t.minute > {clock.ago(_DAY)}"
        f" AND t.kind = '{kind}'{f' AND t.outcome IN ({outcomes})' if outcomes else ''})"
        for name, (kind, outcomes) in _DRIVERS.items()
    )
    return f"CASE {table}\n{cases} END"


def _postgres_table_size(clock: SqlClock) -> str:
    return f"""
CREATE VIEW table_size AS
SELECT r.table_name, r.rows_estimated, r.bytes, r.index_bytes, CAST(NULL AS bigint) AS free_bytes,
       CAST(round({_rows_per_day(clock, "r.table_name")} * (r.bytes + r.index_bytes) / nullif(r.rows_estimated, 0)) AS bigint)
           AS bytes_per_day,
       r.dead_rows, r.last_vacuum_at
FROM (
    SELECT coalesce(p.relname, c.relname) AS table_name,
           CAST(sum(CASE WHEN c.reltuples >= 0 THEN c.reltuples ELSE s.n_live_tup END) AS bigint) AS rows_estimated,
           CAST(sum(pg_table_size(c.oid)) AS bigint) AS bytes, CAST(sum(pg_indexes_size(c.oid)) AS bigint) AS index_bytes,
           CAST(sum(s.n_dead_tup) AS bigint) AS dead_rows, max(greatest(s.last_vacuum, s.last_autovacuum)) AS last_vacuum_at
    FROM pg_class c
    LEFT JOIN pg_inherits h ON h.inhrelid = c.oid
    LEFT JOIN pg_class p ON p.oid = h.inhparent
    LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
    WHERE c.relkind = 'r' AND c.relnamespace = (SELECT o.relnamespace FROM pg_class o WHERE o.oid = CAST('inbox' AS regclass))
    GROUP BY coalesce(p.relname, c.relname)
) r
"""


def _sqlite_table_size(clock: SqlClock) -> str:
    """SQLite knows the size of its file alone: `dbstat`, which reads every page, is not allowed in a view."""
    tables = "\n    UNION ALL ".join(
        f"SELECT '{table}' AS table_name,"
        f" coalesce((SELECT max(rowid) FROM {table}) - (SELECT min(rowid) FROM {table}) + 1, 0) AS rows_estimated,"
        " NULL AS bytes, NULL AS free_bytes"
        for table in sorted(metadata.tables)
    )
    return f"""
CREATE VIEW table_size AS
SELECT sized.table_name, sized.rows_estimated, sized.bytes, NULL AS index_bytes, sized.free_bytes,
       CAST(round({_rows_per_day(clock, "CASE sized.table_name WHEN '(file)' THEN 'inbox' END")} * (sized.bytes - sized.free_bytes)
           / (SELECT max(seq) - (SELECT min(seq) FROM inbox) + 1 FROM inbox)) AS integer) AS bytes_per_day,
       NULL AS dead_rows, NULL AS last_vacuum_at
FROM (
    {tables}
    UNION ALL
    SELECT '(file)', NULL, page_count * page_size, freelist_count * page_size
    FROM pragma_page_count, pragma_page_size, pragma_freelist_count
) sized
"""


# Up to the first value: it may be confidential. A name with a digit ends it too.
_POSTGRES_LONG_TRANSACTION = rf"""
CREATE VIEW long_transaction AS
SELECT a.pid, a.usename AS role, a.application_name AS application, a.state,
       round(extract(epoch FROM clock_timestamp() - a.xact_start), 3) AS for_seconds, a.xact_start AS began_at,
       concat_ws(': ', a.wait_event_type, a.wait_event) AS waits_for,
       left(regexp_replace(a.query, '\s*([''"$]|\m\d).*$', ' …'), {_QUERY_CHARACTERS}) AS query,
       concat_ws('; ',
           CASE WHEN a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL
                THEN 'VACUUM removes no row that was deleted since' END,
           (SELECT 'locks ' || string_agg(DISTINCT c.relname, ', ' ORDER BY c.relname)
            FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
            WHERE l.pid = a.pid AND l.granted AND c.relkind IN ('r', 'p') AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
              AND c.relnamespace = (SELECT o.relnamespace FROM pg_class o WHERE o.oid = CAST('inbox' AS regclass))),
           (SELECT 'pid ' || string_agg(CAST(b.pid AS text), ', ' ORDER BY b.pid) || ' waits for it'
            FROM pg_stat_activity b WHERE b.wait_event_type = 'Lock' AND a.pid = ANY (pg_blocking_pids(b.pid)))
       ) AS holds_back
FROM pg_stat_activity a
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
  AND a.xact_start < clock_timestamp() - interval '{LONG_TRANSACTION_SECONDS} seconds'
UNION ALL
SELECT NULL, p.owner, NULL, 'prepared', round(extract(epoch FROM clock_timestamp() - p.prepared), 3), p.prepared, NULL, p.gid,
       'VACUUM removes no row that was deleted since; it keeps its locks until COMMIT PREPARED or ROLLBACK PREPARED'
FROM pg_prepared_xacts p
WHERE p.database = current_database() AND p.prepared < clock_timestamp() - interval '{LONG_TRANSACTION_SECONDS} seconds'
"""

_SQLITE_LONG_TRANSACTION = """
CREATE VIEW long_transaction AS
SELECT NULL AS pid, NULL AS role, NULL AS application, NULL AS state, NULL AS for_seconds, NULL AS began_at,
       NULL AS waits_for, NULL AS query, NULL AS holds_back
WHERE false
"""
