"""SQL that notes duplicate requests: the first of an event as rows, further ones as a count.

A sender that repeats one event without end costs one update for each batch, and no row for each request. A new count
makes its row unhandled again, so the relay judges it as it judges a new row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import text

from inbox.db.dialect import POSTGRES, SQLITE, Sql
from inbox.db.parameters import Blobs, array_param, rows_param, verbatim_param
from inbox.events.event import Event

KEPT_DUPLICATES = 20
"""Rows for each event: more than a sender's retry schedule makes, and few enough to judge 200 events at once."""

# It is a statement of its own, since the first one does not see a row that another receiver committed after its snapshot.
# Receivers that count duplicates of one event at the same time take different rows of it (SKIP LOCKED). They add a row
# if all are taken. So none waits for another, or for the relay that marks them: nothing deadlocks, and no count is lost.
_PG = Sql(POSTGRES)
POSTGRES_NOTE = text(f"""
WITH known AS MATERIALIZED (
    SELECT a.n, i.seq, a.received_at, a.body_sha256,
           CASE WHEN i.body_sha256 <> a.body_sha256 AND i.erased_at IS NULL
                THEN {_PG.blob("bodies.bodies", "a.body_at", "a.body_size")} END AS body
    FROM {_PG.blobs("bodies")}
    CROSS JOIN unnest(
        CAST(:n AS int[]), CAST(:source AS text[]), CAST(:dedup_key AS text[]), CAST(:received_at AS timestamptz[]),
        CAST(:body_sha256 AS bytea[]), CAST(:body_at AS int[]), CAST(:body_size AS int[])
    ) AS a(n, source, dedup_key, received_at, body_sha256, body_at, body_size)
    JOIN inbox i ON i.source = a.source AND i.dedup_key = a.dedup_key
), ranked AS (
    SELECT known.*, row_number() OVER (PARTITION BY seq ORDER BY n) AS place, count(*) OVER (PARTITION BY seq) AS times,
           max(received_at) OVER (PARTITION BY seq) AS last_received_at
    FROM known
), placed AS MATERIALIZED (
    SELECT ranked.*, max(kept.number) OVER (PARTITION BY ranked.seq) AS there
    FROM ranked
    CROSS JOIN LATERAL (
        SELECT count(*) AS number FROM (
            -- as a range in the order of the index: by statistics of one event's storm it would read the whole table else
            SELECT FROM duplicate_request
            WHERE ranked.place = 1 AND seq BETWEEN ranked.seq AND ranked.seq ORDER BY seq LIMIT :kept
        ) AS found
    ) AS kept
), counting AS MATERIALIZED (
    SELECT r.id, placed.seq, placed.times, placed.last_received_at
    FROM placed
    CROSS JOIN LATERAL (
        SELECT id FROM duplicate_request WHERE seq BETWEEN placed.seq AND placed.seq
        ORDER BY seq DESC LIMIT 1 FOR UPDATE SKIP LOCKED
    ) AS r
    WHERE placed.place = 1 AND placed.there = :kept
), counted AS (
    UPDATE duplicate_request AS r
    SET times = r.times + counting.times, handled_at = NULL, error = NULL,
        last_received_at = greatest(r.last_received_at, counting.last_received_at)
    FROM counting WHERE r.id = counting.id
), noted AS (
    INSERT INTO duplicate_request (seq, received_at, body_sha256, body, times, last_received_at)
    SELECT seq, received_at, body_sha256, body,
           CASE WHEN number = :kept THEN times - place + 1 ELSE 1 END,
           CASE WHEN number = :kept AND times > place THEN last_received_at END
    FROM (
        SELECT *, least(there, :kept - 1) + place AS number FROM placed WHERE seq NOT IN (SELECT seq FROM counting)
    ) AS made
    WHERE number <= :kept ORDER BY n
)
SELECT n, seq FROM known
""")


def postgres_columns(events: Sequence[Event]) -> dict[str, str | bytes]:
    """Make the columns of events that both statements of intake have: the parameters of `POSTGRES_NOTE`, except `kept`."""
    bodies = Blobs()
    places = [bodies.place(event.body) for event in events]
    return {
        "n": array_param(range(len(events))),
        "source": array_param([e.source for e in events]),
        "dedup_key": array_param([e.dedup_key for e in events]),
        "received_at": array_param([e.received_at for e in events]),
        "body_sha256": array_param([e.body_sha256 for e in events]),
        "body_at": array_param([at for at, _ in places]),
        "body_size": array_param([size for _, size in places]),
        "bodies": bodies.joined(),
    }


_SQL = Sql(SQLITE)

SQLITE_KNOWN = text(f"""
SELECT asked.n, i.seq, CASE WHEN i.erased_at IS NULL THEN i.body_sha256 END AS body_sha256,
       (SELECT count(*) FROM (SELECT 1 FROM duplicate_request r WHERE r.seq = i.seq LIMIT :kept)) AS number
FROM {_SQL.rows("asked", n="int", source="text", dedup_key="text")}
JOIN inbox i ON i.source = asked.source AND i.dedup_key = asked.dedup_key
ORDER BY asked.n
""")

SQLITE_NOTE = text(f"""
INSERT INTO duplicate_request (seq, received_at, body_sha256, body, times, last_received_at)
SELECT seq, received_at, from_hex(body_sha256), {
    _SQL.blob("bodies.bodies", "body_at", "body_size")
}, times, last_received_at
FROM {_SQL.blobs("bodies")} CROSS JOIN {
    _SQL.rows(
        "noted",
        seq="bigint",
        received_at="time",
        body_sha256="bytes",
        body_at="bigint",
        body_size="bigint",
        times="bigint",
        last_received_at="time",
    )
}
""")

SQLITE_COUNT = text(f"""
UPDATE duplicate_request
SET times = duplicate_request.times + counted.times, handled_at = NULL, error = NULL,
    last_received_at = max(coalesce(duplicate_request.last_received_at, ''), counted.last_received_at)
FROM {_SQL.rows("counted", seq="bigint", times="bigint", last_received_at="time")}
WHERE duplicate_request.id = (SELECT max(r.id) FROM duplicate_request r WHERE r.seq = counted.seq)
""")


def known_param(events: Sequence[Event]) -> str:
    """Make the rows of `SQLITE_KNOWN`."""
    return verbatim_param(
        {"n": n, "source": event.source, "dedup_key": event.dedup_key} for n, event in enumerate(events)
    )


def noted_param(rows: Sequence[Mapping[str, Any]]) -> dict[str, str | bytes]:
    """Make the parameters of `SQLITE_NOTE`: the rows, and their bodies beside them."""
    bodies = Blobs()
    made = []
    for row in rows:
        at, size = bodies.place(row["body"])
        made.append({**row, "body": None, "body_at": at, "body_size": size})
    return {"noted": rows_param(made), "bodies": bodies.joined()}


def noted_and_counted(
    events: Sequence[Event], known: Iterable[Any], kept: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Divide duplicates into rows of `SQLITE_NOTE` and of `SQLITE_COUNT`; `known` are the rows of `SQLITE_KNOWN`."""
    noted: list[dict[str, Any]] = []
    counted: dict[int, dict[str, Any]] = {}
    last: dict[int, dict[str, Any]] = {}
    there: dict[int, int] = {}
    for n, seq, body_sha256, number in known:
        event = events[n]
        there[seq] = there.get(seq, number) + 1
        if there[seq] <= kept:
            is_erased = body_sha256 is None  # then nothing of it is stored again
            body = None if is_erased or event.body_sha256 == body_sha256 else event.body
            last[seq] = {
                "seq": seq,
                "received_at": event.received_at,
                "body_sha256": event.body_sha256,
                "body": body,
                "times": 1,
                "last_received_at": None,
            }
            noted.append(last[seq])
            continue
        counting = last.get(seq) or counted.setdefault(seq, {"seq": seq, "times": 0, "last_received_at": None})
        counting["times"] += 1
        counting["last_received_at"] = max(counting["last_received_at"] or event.received_at, event.received_at)
    return noted, list(counted.values())
