"""Conditions under which something makes no progress: the branches of the view `stuck`, which `relay status --check` shares.

Each branch is a SELECT of `COLUMNS`. The view has the clock of the database, and a check may pass a time of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from inbox.db.dialect import POSTGRES
from inbox.events.states import CRASH_LOOP_DEATHS, CRASH_LOOP_SECONDS, GONE_SECONDS

Finding = Literal[
    "no_relay",  # no relay has a heartbeat
    "crash_loop",  # relays of a host die soon after they start
    "failing",  # a step of a running relay fails
    "unordered",  # an event has no place in its lane, and nothing moves
    "stuck",  # something is due, and nothing moves on its route
    "blocked",  # a dead delivery blocks its lane
    "command",  # no relay takes up a command
    "command_failed",  # a command failed, or could not change some deliveries
    "ahead",  # due or leased further ahead than any rule allows
    "no_head",  # a lane has no head
]

COLUMNS = ("finding", "seq", "route", "lane", "state", "for_seconds", "why")
AFTER_SECONDS = 60
"""A delivery or command that makes no progress for so long is stuck."""
FAILED_FOR_SECONDS = 3600
"""A failed command is a finding for so long; the answer stays in its row."""
_NEWEST_COMMANDS = 1000
_ENTITY = ("source", "entity_type", "entity_id")

ONLY_IN_VIEW: frozenset[Finding] = frozenset({"ahead", "no_head"})
"""Findings that no check looks for: they need every row. A relay repairs the first by itself, `relay rebuild` the second."""


class SqlClock:
    """The fragments of a dialect that compare columns with `now`, an SQL expression."""

    def __init__(self, dialect: str, now: str | None = None) -> None:
        self.is_postgres = dialect == POSTGRES
        self.now = now or ("clock_timestamp()" if self.is_postgres else "'now'")

    def since(self, column: str) -> str:
        """Return the seconds from a time until now."""
        if self.is_postgres:
            return f"round(extract(epoch FROM {self.now} - {column}), 3)"
        return f"round((julianday({self.now}) - julianday({column})) * 86400, 3)"

    def ago(self, seconds: int) -> str:
        """Return the time so many seconds before now, which an index can compare with a column."""
        if self.is_postgres:
            return f"{self.now} - interval '{seconds} seconds'"
        return f"strftime('%Y-%m-%d %H:%M:%f', {self.now}, '-{seconds} seconds') || '000Z'"


def branches(clock: SqlClock) -> Mapping[Finding, str]:
    """Return the statement of each finding."""
    return {**_of_relays(clock), **_of_deliveries(clock), **_of_commands(clock)}


def _of_relays(clock: SqlClock) -> dict[Finding, str]:
    silent = clock.since("n.heartbeat_at")
    steps = (
        "CROSS JOIN LATERAL jsonb_each_text(n.failing) AS step(key, value)"
        if clock.is_postgres
        else "JOIN json_each(n.failing) AS step"
    )
    return {
        "no_relay": f"""
SELECT 'no_relay' AS finding, CAST(NULL AS bigint) AS seq, CAST(NULL AS text) AS route, CAST(NULL AS text) AS lane,
       'gone' AS state, CAST(NULL AS numeric) AS for_seconds, 'no relay has sent a heartbeat for {GONE_SECONDS} s' AS why
WHERE NOT EXISTS (
    SELECT 1 FROM relay_node n WHERE n.stopped_at IS NULL AND n.heartbeat_at >= {clock.ago(GONE_SECONDS)})
""",
        "crash_loop": f"""
SELECT 'crash_loop' AS finding, NULL AS seq, NULL AS route, NULL AS lane, 'gone' AS state, NULL AS for_seconds,
       'host ' || n.host || ': ' || count(*) || ' relays died soon after they had started' AS why
FROM relay_node n
WHERE n.stopped_at IS NULL AND {silent} > {GONE_SECONDS} AND {clock.since("n.started_at")} < {CRASH_LOOP_SECONDS}
GROUP BY n.host
HAVING count(*) >= {CRASH_LOOP_DEATHS}
""",
        "failing": f"""
SELECT 'failing' AS finding, NULL AS seq, NULL AS route, NULL AS lane, 'failing' AS state, NULL AS for_seconds,
       'relay ' || n.host || ' pid ' || n.pid || ': step ' || step.key || ' fails: ' || step.value AS why
FROM relay_node n {steps}
WHERE n.failing IS NOT NULL AND n.stopped_at IS NULL AND {silent} <= {GONE_SECONDS}
""",
    }


def _of_deliveries(clock: SqlClock) -> dict[Finding, str]:
    due, leased, before = clock.since("o.due_at"), clock.since("o.lease_until"), clock.ago(AFTER_SECONDS)
    # Neither list depends on the row: each is read once.
    nothing_moves = f"""o.route NOT IN (SELECT l.route FROM delivery_log l WHERE l.at > {before})
  AND o.route NOT IN (SELECT f.route FROM open_delivery f WHERE f.state = 'in_flight' AND f.lease_until > {clock.ago(0)})"""
    # as `relay.delivery.gates.entity_key` writes it
    entity = " || '|' || ".join(rf"replace(replace(i.{part}, '\', '\\'), '|', '\|')" for part in _ENTITY)
    last_fact = "SELECT max(f.id) FROM delivery_log f WHERE f.seq = o.seq AND f.route = o.route"
    return {
        "unordered": f"""
SELECT 'unordered' AS finding, o.seq, o.route, o.lane, o.state, {clock.since("i.received_at")} AS for_seconds,
       'no relay has ordered it, and nothing moves' AS why
FROM open_delivery o JOIN inbox i ON i.seq = o.seq
WHERE o.state = 'received' AND {clock.since("i.received_at")} > {AFTER_SECONDS}
  AND NOT EXISTS (SELECT 1 FROM delivery_log l WHERE l.at > {before})
""",
        "stuck": f"""
SELECT 'stuck' AS finding, o.seq, o.route, o.lane, o.state, {due} AS for_seconds,
       'due, and nothing moves on its route: is it in inbox.toml, and does a gate of its destination or api hold it back?' AS why
FROM open_delivery o JOIN inbox i ON i.seq = o.seq
WHERE o.state = 'ready' AND {due} > {AFTER_SECONDS}
  AND {nothing_moves}
  AND NOT EXISTS (
    SELECT 1 FROM gate g
    WHERE g.paused_at IS NOT NULL
      AND ((g.kind = 'route' AND g.name = o.route) OR (g.kind = 'source' AND g.name = i.source)
        OR (g.kind = 'entity' AND g.name = {entity})))
UNION ALL
SELECT 'stuck' AS finding, o.seq, o.route, o.lane, o.state, {leased}, 'its lease ran out, and no relay has rescued it'
FROM open_delivery o
WHERE o.state = 'in_flight' AND {leased} > {AFTER_SECONDS}
  AND {nothing_moves}
""",
        "blocked": f"""
SELECT 'blocked' AS finding, o.seq, o.route, o.lane, o.state, {clock.since("l.at")} AS for_seconds,
       'it is dead and blocks its lane: relay replay, unblock or cancel' AS why
FROM open_delivery o LEFT JOIN delivery_log l ON l.id = ({last_fact} AND f.kind = 'dead')
WHERE o.state = 'blocked'
""",
        "ahead": f"""
SELECT 'ahead' AS finding, o.seq, o.route, o.lane, o.state, NULL AS for_seconds,
       'due further ahead than any rule allows, since the clock of the database went back: a relay pulls it in' AS why
FROM open_delivery o LEFT JOIN delivery_log l ON l.id = ({last_fact})
WHERE o.state = 'ready' AND {due} < -{AFTER_SECONDS}
  AND (l.id IS NULL OR l.kind NOT IN ('attempt_failed', 'took_over', 'rescheduled') OR {clock.since("l.at")} < -{AFTER_SECONDS})
UNION ALL
SELECT 'ahead' AS finding, o.seq, o.route, o.lane, o.state, NULL,
       'leased for longer than any lease lasts, since the clock of the database went back: a relay shortens it'
FROM open_delivery o
WHERE o.state = 'in_flight' AND {leased} < -{AFTER_SECONDS}
""",
        "no_head": """
SELECT 'no_head' AS finding, o.seq, o.route, o.lane, o.state, NULL AS for_seconds,
       'its lane has no head: relay rebuild gives it one' AS why
FROM open_delivery o
WHERE o.state = 'waiting' AND NOT EXISTS (
    SELECT 1 FROM open_delivery h
    WHERE h.route = o.route AND h.lane = o.lane AND h.state IN ('ready', 'in_flight', 'blocked'))
""",
    }


def _of_commands(clock: SqlClock) -> dict[Finding, str]:
    asked = clock.since("c.asked_at")
    named = "'command ' || c.id || ' (' || c.kind || '): '"
    return {
        "command": f"""
SELECT 'command' AS finding, NULL AS seq, NULL AS route, NULL AS lane, c.state, {asked} AS for_seconds,
       {named} || 'asked a minute ago, and no relay has taken it up' AS why
FROM relay_command c
WHERE c.state = 'asked' AND {asked} > {AFTER_SECONDS}
""",
        "command_failed": f"""
SELECT 'command_failed' AS finding, NULL AS seq, NULL AS route, NULL AS lane, c.state, {asked} AS for_seconds,
       {named} || CASE WHEN c.state IN ('failed', 'refused') THEN c.state || ': ' || coalesce(c.answer, '')
                       ELSE c.failed || ' could not be changed, such as ' || coalesce(c.error, '') END AS why
FROM (
    SELECT id, kind, state, asked_at, finished_at, failed, answer, error FROM relay_command
    ORDER BY id DESC
    LIMIT {_NEWEST_COMMANDS}) c
WHERE (c.state IN ('failed', 'refused') OR c.failed > 0)
  AND (c.finished_at IS NULL OR {clock.since("c.finished_at")} < {FAILED_FOR_SECONDS})
""",
    }
