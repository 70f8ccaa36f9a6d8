"""Partitions ("leaves") of `inbox_payload` on Postgres: each holds a range of seq, and expires as a whole.

TRUNCATE returns a leaf's space to the operating system at once; DELETE returns none. TRUNCATE locks only the leaf, so
reports and dumps don't block intake: docs/decisions/README.md has the figures.

Relays don't own the tables. So functions of the owner create, truncate and retire leaves, with their own checks.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, text

from inbox.db.dialect import Sql

DEFAULT = "inbox_payload_default"
"""The leaf for every seq outside the other leaves."""
FIRST_LEAF = 100_000
"""Events in the leaf created by the migration; relays create the following ones, for about a day each."""
LEAST_EVENTS, MOST_EVENTS = 10_000, 5_000_000
"""Minimum and maximum size of a leaf's range."""
MOST_SURVIVORS = 2000
"""Open events above which a leaf is emptied row by row: rewriting more would hold the leaf's lock too long."""
MOST_SURVIVING_BYTES = 16 * 1024 * 1024
_RETIRED_ROWS = 100
"""Maximum payloads moved to the default leaf when their leaf is retired."""

AHEAD = 10
"""Leaves created in advance, so that the default leaf stays empty during ten days without a relay."""
MOST_LEAVES = 64
"""Number of leaves beyond which empty ones are retired, as each lookup of a payload considers every leaf."""
_PART_OF_AGE = 10
"""A leaf expires as a whole, so its maximum time span is the retention age of payloads divided by this number."""
_DAY = timedelta(days=1)

SHARE_PAYLOADS = "SELECT id FROM payload_lock WHERE id = 1 FOR SHARE"
"""Lock for transactions that open deliveries of stored events: no payload is deleted before they end.

It is a row lock, which requires the right to change the table. Any login of the database could hold an advisory lock.
"""
LOCK_PAYLOADS = "SELECT id FROM payload_lock WHERE id = 1 FOR UPDATE"
"""Lock for transactions that delete payloads or events, taken before they search for open deliveries."""


def _bound(which: str) -> str:
    return f"""CAST((regexp_match(pg_get_expr(c.relpartbound, c.oid), '{which} \\(''([0-9]+)''\\)'))[1] AS bigint)"""


LEAVES = f"""
SELECT c.relname AS name, {_bound("FROM")} AS first, {_bound("TO")} AS beyond
FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
WHERE h.inhparent = CAST('inbox_payload' AS regclass)"""
"""Query for all leaves with their ranges; the default leaf has none."""

_ADD = f"""
CREATE FUNCTION inbox_payload_add_leaf(lo bigint, hi bigint) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET lock_timeout = '100ms' AS $$
DECLARE
    leaf text := 'inbox_payload_' || lo;
    grantee oid;
BEGIN
    IF lo < 1 OR hi - lo NOT BETWEEN {LEAST_EVENTS} AND {MOST_EVENTS} OR to_regclass(leaf) IS NOT NULL
       OR EXISTS (SELECT FROM {DEFAULT} d WHERE d.seq >= lo AND d.seq < hi) THEN
        RETURN false;
    END IF;
    -- CREATE TABLE ... PARTITION OF would lock the table, and wait for every reader
    EXECUTE 'CREATE TABLE ' || leaf || ' (LIKE inbox_payload INCLUDING ALL)';
    -- access through inbox_payload asks for no right on a leaf, but ALTER DEFAULT PRIVILEGES may have given some
    FOR grantee IN SELECT DISTINCT a.grantee FROM pg_class c CROSS JOIN aclexplode(c.relacl) a
                   WHERE c.oid = to_regclass(leaf) AND a.grantee <> c.relowner LOOP
        EXECUTE 'REVOKE ALL ON TABLE ' || leaf || ' FROM '
            || CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END || ' CASCADE';
    END LOOP;
    EXECUTE 'ALTER TABLE inbox_payload ATTACH PARTITION ' || leaf || ' FOR VALUES FROM (' || lo || ') TO (' || hi || ')';
    RETURN true;
EXCEPTION WHEN lock_not_available OR check_violation OR duplicate_table OR invalid_object_definition THEN
    RETURN false;
END $$
"""

_EXPIRE = f"""
CREATE FUNCTION inbox_payload_expire_leaf(leaf text, cut timestamptz, OUT result text, OUT rows bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '100ms' AS $$
DECLARE
    lo bigint;
    hi bigint;
    began timestamptz;
    newest timestamptz;
    latest timestamptz;
    kept bigint;
    kept_bytes bigint;
    size bigint;
    survivors inbox_payload[];
BEGIN
    rows := 0;
    result := 'rows';
    SELECT l.first, l.beyond INTO lo, hi FROM ({LEAVES} AND c.relname = leaf) AS l;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING MESSAGE = 'inbox_payload has no leaf ' || leaf, ERRCODE = 'undefined_table';
    END IF;
    IF lo IS NULL THEN
        SELECT min(d.seq), max(d.seq) + 1 INTO lo, hi FROM {DEFAULT} d;
    END IF;
    IF lo IS NULL THEN
        RETURN;
    END IF;
    SELECT i.received_at INTO began FROM inbox i WHERE i.seq >= lo AND i.seq < hi ORDER BY i.seq LIMIT 1;
    SELECT i.received_at INTO latest FROM inbox i ORDER BY i.seq DESC LIMIT 1;
    -- numbers follow the order of arrival to within 10,000
    SELECT max(n.received_at) INTO newest
    FROM (SELECT i.received_at FROM inbox i WHERE i.seq >= lo AND i.seq < hi ORDER BY i.seq DESC LIMIT 10000) AS n;
    IF hi > (SELECT s.last_value FROM inbox_seq_seq s) AND leaf <> '{DEFAULT}' OR newest >= cut THEN
        -- soon: all of it expires together, not much later than its first event, so no row of it is deleted before
        IF hi <= (SELECT s.last_value FROM inbox_seq_seq s) AND newest - began <= (latest - cut) / 5 THEN
            result := 'soon';
        END IF;
        RETURN;
    END IF;
    size := pg_total_relation_size(CAST(leaf AS regclass));
    SELECT count(*), coalesce(sum(i.body_bytes), 0) INTO kept, kept_bytes
    FROM (SELECT DISTINCT o.seq FROM open_delivery o WHERE o.seq >= lo AND o.seq < hi LIMIT {MOST_SURVIVORS + 1}) AS o
    JOIN inbox i ON i.seq = o.seq;
    IF kept > {MOST_SURVIVORS} OR kept_bytes > {MOST_SURVIVING_BYTES} OR size < 262144 + 4 * (kept_bytes + 500 * kept) THEN
        RETURN;
    END IF;
    SELECT c.reltuples INTO rows FROM pg_class c WHERE c.oid = CAST(leaf AS regclass);
    IF rows < 0 OR size < 67108864 THEN
        EXECUTE 'SELECT count(*) FROM ONLY ' || quote_ident(leaf) INTO rows;
    END IF;
    BEGIN
        -- in the order of those who open deliveries: they have this lock before they read a leaf
        PERFORM {LOCK_PAYLOADS.removeprefix("SELECT ")};
        EXECUTE 'LOCK TABLE ONLY ' || quote_ident(leaf) || ' IN ACCESS EXCLUSIVE MODE';
        EXECUTE 'SELECT array_agg(CAST(p AS inbox_payload)) FROM ONLY ' || quote_ident(leaf)
            || ' p WHERE p.seq IN (SELECT o.seq FROM open_delivery o WHERE o.seq >= $1 AND o.seq < $2) OR p.seq < $1 OR p.seq >= $2'
            INTO survivors USING lo, hi;  -- what came into the default leaf since its range was read has not expired
        EXECUTE 'TRUNCATE ONLY ' || quote_ident(leaf);
        INSERT INTO inbox_payload SELECT s.* FROM unnest(survivors) s;
        DELETE FROM edited_body e
        WHERE e.seq >= lo AND e.seq < hi AND NOT EXISTS (SELECT FROM unnest(survivors) s WHERE s.seq = e.seq);
    EXCEPTION WHEN lock_not_available THEN
        rows := 0;
        result := 'locked';
        RETURN;
    END;
    rows := greatest(rows - (SELECT count(*) FROM unnest(survivors) s WHERE s.seq >= lo AND s.seq < hi), 0);
    result := 'expired';
END $$
"""

_RETIRE = f"""
CREATE FUNCTION inbox_payload_retire_leaf(leaf text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET lock_timeout = '50ms' AS $$
DECLARE
    lo bigint;
    hi bigint;
    found_rows bigint;
BEGIN
    SELECT l.first, l.beyond INTO lo, hi FROM ({LEAVES} AND c.relname = leaf) AS l;
    IF hi IS NULL OR hi > (SELECT s.last_value FROM inbox_seq_seq s) THEN
        RETURN false;
    END IF;
    EXECUTE 'SELECT count(*) FROM (SELECT FROM ' || quote_ident(leaf) || ' LIMIT {_RETIRED_ROWS + 1}) AS n' INTO found_rows;
    IF found_rows > {_RETIRED_ROWS} THEN
        RETURN false;
    END IF;
    -- its last payloads, of dead deliveries, move to the default leaf
    EXECUTE 'ALTER TABLE inbox_payload DETACH PARTITION ' || quote_ident(leaf);
    EXECUTE 'INSERT INTO inbox_payload SELECT * FROM ' || quote_ident(leaf);
    EXECUTE 'DROP TABLE ' || quote_ident(leaf);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$
"""

STATEMENTS = (
    f"CREATE TABLE {DEFAULT} PARTITION OF inbox_payload DEFAULT",
    f"CREATE TABLE inbox_payload_1 PARTITION OF inbox_payload FOR VALUES FROM (1) TO ({1 + FIRST_LEAF})",
    *(function.strip() for function in (_ADD, _EXPIRE, _RETIRE)),
    "REVOKE ALL ON FUNCTION inbox_payload_add_leaf(bigint, bigint) FROM PUBLIC",
    "REVOKE ALL ON FUNCTION inbox_payload_expire_leaf(text, timestamptz) FROM PUBLIC",
    "REVOKE ALL ON FUNCTION inbox_payload_retire_leaf(text) FROM PUBLIC",
)


def is_leaf(table: str) -> bool:
    """Return whether a table is a leaf; the tables of `inbox.db.schema` don't include leaves."""
    return table.startswith("inbox_payload_")


class Leaf(NamedTuple):
    """A leaf for events from `first` up to, but not including, `beyond`."""

    name: str
    first: int
    beyond: int


def prepare(connection: Connection, age: timedelta | None) -> bool:
    """Create a leaf if few are left for coming events, and retire the smallest of the old ones beyond `MOST_LEAVES`.

    Args:
        connection: a connection in a transaction.
        age: the age at which payloads expire; None if they don't.

    Returns:
        Whether it created one. After a lock timeout it does less, and the next call continues.
    """
    if not Sql(connection.dialect.name).is_postgres:
        return False
    last = int(connection.execute(_LAST).scalar_one())
    ranges = list_leaves(connection)
    size = leaf_size(float(connection.execute(_PER_DAY).scalar_one()), age)
    top = max([leaf.beyond for leaf in ranges], default=1)
    if top <= last:  # events already go to the default leaf, until this is committed
        top = last + LEAST_EVENTS
    given = {"lo": top, "hi": top + size}
    is_made = top - last < AHEAD * size and bool(connection.execute(_ADD_LEAF, given).scalar_one())
    if old := [leaf.name for leaf in ranges[:-MOST_LEAVES] if leaf.beyond <= last]:
        connection.execute(_RETIRE_LEAF, {"leaf": connection.execute(_SMALLEST, {"leaves": old}).scalar_one()})
    return is_made


def leaf_size(per_day: float, age: timedelta | None) -> int:
    """Return the size of a leaf in events: those of about a day, at most of a tenth of the age. Pure."""
    longest = _DAY if age is None else min(_DAY, age / _PART_OF_AGE)
    return int(min(max(per_day * (longest / _DAY), LEAST_EVENTS), MOST_EVENTS))


def list_leaves(connection: Connection) -> list[Leaf]:
    """List the leaves with a range, in order."""
    return [Leaf(row.name, row.first, row.beyond) for row in connection.execute(_RANGES) if row.first is not None]


class Expired(NamedTuple):
    """Result of trying to empty a leaf."""

    result: str
    """`expired`; `locked`; `soon`, if the whole leaf expires soon; or `rows`, to delete them one by one."""
    rows: int
    last: int
    """Last possible number in the leaf; for the default leaf, the given one."""


def expire_leaf(connection: Connection, seq: int, before: datetime) -> Expired:
    """Empty the leaf of this number if all of it has expired; payloads of open deliveries stay."""
    leaf = next((leaf for leaf in list_leaves(connection) if leaf.first <= seq < leaf.beyond), None)
    name, last = (DEFAULT, seq) if leaf is None else (leaf.name, leaf.beyond - 1)
    found = connection.execute(_EXPIRE_LEAF, {"leaf": name, "cut": before}).one()
    return Expired(found.result, found.rows, last)


_LAST = text("SELECT last_value FROM inbox_seq_seq")
_RANGES = text(f"{LEAVES} ORDER BY 2")
_ADD_LEAF = text("SELECT inbox_payload_add_leaf(CAST(:lo AS bigint), CAST(:hi AS bigint))")
_EXPIRE_LEAF = text("SELECT result, rows FROM inbox_payload_expire_leaf(:leaf, CAST(:cut AS timestamptz))")
_RETIRE_LEAF = text("SELECT inbox_payload_retire_leaf(:leaf)")
_SMALLEST = text("""
SELECT l.name FROM unnest(CAST(:leaves AS text[])) WITH ORDINALITY AS l(name, n)
ORDER BY pg_relation_size(CAST(quote_ident(l.name) AS regclass)), l.n LIMIT 1
""")
_PER_DAY = text("""
SELECT coalesce(greatest(sum(count), 24 * sum(count) FILTER (WHERE minute >= clock_timestamp() - interval '1 hour')), 0)
FROM throughput_minute
WHERE kind = 'source' AND outcome IN ('stored', 'swept') AND minute >= clock_timestamp() - interval '1 day'
""")
"""Query for the events per day, by the figures of the last day, or of the last hour if more arrive now."""
