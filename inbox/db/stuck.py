"""Conditions under which something makes no progress: the view `stuck`, which `relay status --check` reads.

Each branch is a SELECT of `COLUMNS`; a condition on the column `finding` leaves the other branches out of the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from inbox.db.columns import one_of
from inbox.db.dialect import Sql
from inbox.events.states import CRASH_LOOP_DEATHS, CRASH_LOOP_SECONDS, GONE_SECONDS

Kind = Literal[
    "no_relay",  # no relay has a heartbeat
    "crash_loop",  # relays of a host die soon after they start
    "step_failed",  # a step of a running relay fails
    "config_differs",  # running relays have different configurations
    "failing",  # every attempt of a route since its last success failed
    "unordered",  # an event has no place in its lane, and nothing moves
    "stuck",  # something is due, and nothing moves on its route
    "blocked",  # a dead delivery blocks its lane
    "command",  # no relay takes up a command
    "command_failed",  # a command failed, or could not change some deliveries
]

COLUMNS = ("finding", "seq", "route", "lane", "state", "for_seconds", "why", "waiting")
AFTER_SECONDS = 60
"""A delivery or command that makes no progress for so long is stuck."""
FAILED_FOR_SECONDS = 3600
"""A failed command is a finding for so long; the answer stays in its row."""
_NEWEST_COMMANDS = 1000
NEWEST_FACTS = "SELECT n.route, n.at FROM delivery_log n ORDER BY n.id DESC LIMIT 20000"
"""Facts that are looked at for one of the last minute. Of all facts, Postgres would read the whole log when there is none."""
_NEWEST_ATTEMPTS = "SELECT n.id, n.route, n.kind, n.at FROM delivery_log n ORDER BY n.id DESC LIMIT 20000"
_NEWEST_FAILURES = """
           SELECT n.id, n.route, n.detail FROM delivery_log n WHERE n.kind IN ('attempt_failed', 'abandoned')
           ORDER BY n.id DESC LIMIT 20000"""
MOST_LISTED = 1000
"""Deliveries that are listed of a route, and the largest count of those that wait."""
_ENTITY = ("source", "entity_type", "entity_id")


class SqlClock:
    """The fragments of a dialect that compare columns with the time of the statement."""

    def __init__(self, dialect: str) -> None:
        self.sql = Sql(dialect)
        self.is_postgres = self.sql.is_postgres
        # Not clock_timestamp(): Postgres compares no index with what may change from row to row.
        self.now = "statement_timestamp()" if self.is_postgres else "'now'"

    def since(self, column: str) -> str:
        """Return the seconds from a time until now."""
        if self.is_postgres:
            return f"round(extract(epoch FROM {self.now} - {column}), 3)"
        return f"round((julianday({self.now}) - julianday({column})) * 86400, 3)"

    def ago(self, seconds: int) -> str:
        """Return the time so many seconds before now, which an index can compare with a column."""
        if self.is_postgres:
            return f"{self.now} - interval '{seconds} seconds'"
        return f"strftime('%Y-%m-%d %H:%M:%f', {self.now}, '{-seconds} seconds') || '000Z'"


def view(dialect: str) -> str:
    """Return the statement that makes the view."""
    columns = ", ".join(f"b.{name}" for name in COLUMNS)
    return f"CREATE VIEW stuck AS\nSELECT {columns} FROM ({'UNION ALL'.join(branches(SqlClock(dialect)).values())}) b\n"


def branches(clock: SqlClock) -> Mapping[Kind, str]:
    """Return the statement of each finding."""
    return {
        **_of_relays(clock),
        **_that_fail(clock),
        **_that_do_not_move(clock),
        **_of_heads(clock),
        **_of_commands(clock),
    }


def _of_relays(clock: SqlClock) -> dict[Kind, str]:
    silent = clock.since("n.heartbeat_at")
    steps = (
        "CROSS JOIN LATERAL jsonb_each_text(n.failing) AS step(key, value)"
        if clock.is_postgres
        else "JOIN json_each(n.failing) AS step"
    )
    return {
        "no_relay": f"""
SELECT 'no_relay' AS finding, CAST(NULL AS bigint) AS seq, CAST(NULL AS text) AS route, CAST(NULL AS text) AS lane,
       'gone' AS state, CAST(NULL AS numeric) AS for_seconds, 'no relay has sent a heartbeat for {GONE_SECONDS} s' AS why,
       CAST(NULL AS bigint) AS waiting
WHERE NOT EXISTS (
    SELECT 1 FROM relay_node n WHERE n.stopped_at IS NULL AND n.heartbeat_at >= {clock.ago(GONE_SECONDS)})
""",
        "crash_loop": f"""
SELECT 'crash_loop' AS finding, NULL AS seq, NULL AS route, NULL AS lane, 'gone' AS state, NULL AS for_seconds,
       'host ' || n.host || ': ' || count(*) || ' relays died soon after they had started' AS why, NULL AS waiting
FROM relay_node n
WHERE n.stopped_at IS NULL AND {silent} > {GONE_SECONDS} AND {clock.since("n.started_at")} < {CRASH_LOOP_SECONDS}
GROUP BY n.host
HAVING count(*) >= {CRASH_LOOP_DEATHS}
""",
        "step_failed": f"""
SELECT 'step_failed' AS finding, NULL AS seq, NULL AS route, NULL AS lane, 'failing' AS state, NULL AS for_seconds,
       'relay ' || n.host || ' pid ' || n.pid || ': step ' || step.key || ' fails: ' || step.value AS why, NULL AS waiting
FROM relay_node n {steps}
WHERE n.failing IS NOT NULL AND n.stopped_at IS NULL AND {silent} <= {GONE_SECONDS}
""",
        "config_differs": f"""
SELECT 'config_differs' AS finding, NULL AS seq, NULL AS route, NULL AS lane, 'running' AS state, NULL AS for_seconds,
       'relays ' || min(c.relay) || ' and ' || max(c.relay) || ' run with different routes or destinations' AS why, NULL AS waiting
FROM (
    SELECT min(n.host || ' pid ' || n.pid) AS relay FROM relay_node n
    WHERE n.config_hash IS NOT NULL AND n.stopped_at IS NULL AND {silent} <= {GONE_SECONDS}
    GROUP BY n.config_hash) c
HAVING count(*) > 1
""",
    }


SUCCEEDED, FAILED = ("delivered", "unchanged", "skipped"), ("attempt_failed", "abandoned", "dead")
"""Kinds of facts that end an attempt."""


def _that_fail(clock: SqlClock) -> dict[Kind, str]:
    """Select routes with something open whose newest attempt failed.

    The newest facts say so exactly. Where they have no attempt of a route, its figures do, to the minute.
    """
    succeeded, failed = (f"n.kind IN ({one_of(kinds)})" for kinds in (SUCCEEDED, FAILED))
    with_open = "\n    UNION ".join(
        f"SELECT route FROM {_routes_with(state)} {state}" for state in ("ready", "blocked", "dead")
    )
    minutes = [newest_minute("'route'", "r.route", kinds) for kinds in (FAILED, SUCCEEDED)]
    paused = "SELECT 1 FROM gate g WHERE g.paused_at IS NOT NULL AND"
    return {
        "failing": f"""
SELECT 'failing' AS finding, NULL AS seq, judged.route, NULL AS lane, 'failing' AS state,
       {clock.since("judged.failed_at")} AS for_seconds,
       'every attempt since its last success failed' || coalesce(': ' || coalesce((
           SELECT l.detail ->> 'error' FROM delivery_log l WHERE l.id = judged.failure_id), (
           SELECT l.detail ->> 'error' FROM ({_NEWEST_FAILURES}) l WHERE l.route = judged.route
           ORDER BY l.id DESC LIMIT 1)), '') AS why,
       NULL AS waiting
FROM (
    SELECT r.route, n.failure_id, n.success_id, coalesce(n.failed_at, {minutes[0]}) AS failed_at,
           CASE WHEN n.route IS NULL THEN {minutes[1]} END AS succeeded_at
    FROM (
    {with_open}
    UNION SELECT DISTINCT route FROM open_delivery o WHERE o.state = 'in_flight'
    ) r
    LEFT JOIN (
        SELECT n.route, max(CASE WHEN {succeeded} THEN n.id END) AS success_id,
               max(CASE WHEN {failed} THEN n.id END) AS failure_id, max(CASE WHEN {failed} THEN n.at END) AS failed_at
        FROM ({_NEWEST_ATTEMPTS}) n GROUP BY n.route) n ON n.route = r.route) judged
WHERE CASE WHEN judged.failure_id IS NOT NULL THEN judged.failure_id > coalesce(judged.success_id, 0)
           WHEN judged.success_id IS NOT NULL THEN false
           ELSE judged.failed_at IS NOT NULL AND (judged.succeeded_at IS NULL OR judged.failed_at > judged.succeeded_at) END
  AND NOT EXISTS ({paused} g.kind = 'route' AND g.name = judged.route)
  AND NOT EXISTS ({paused} EXISTS (
      SELECT 1 FROM route_gate k WHERE k.route = judged.route AND k.kind = g.kind AND k.name = g.name))
"""
    }


def newest_minute(kind: str, name: str, outcomes: tuple[str, ...]) -> str:
    """Select the newest minute with figures of one of the outcomes, by one entry of the index for each."""
    each = " UNION ALL ".join(
        f"SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = {kind} AND t.name = {name} AND t.outcome = '{one}'"
        for one in outcomes
    )
    return f"(SELECT max(m.minute) FROM ({each}) m)"


def _is_closed(clock: SqlClock) -> str:
    """Return the condition that the gate `g` holds something back."""
    return (
        f"(g.paused_at IS NOT NULL OR g.breaker <> 'closed' OR g.held_until > {clock.ago(0)}"
        f" OR g.rate_used_until > {clock.ago(0)})"
    )


def _counted(what: str) -> str:
    """Count rows of `open_delivery w` up to MOST_LISTED."""
    return f"(SELECT count(*) FROM (SELECT 1 FROM open_delivery w WHERE {what} LIMIT {MOST_LISTED}) n)"


def _routes_with(state: str) -> str:
    """Select each route with deliveries in this state, by one look into the state's index for each."""
    first = f"SELECT min(t.route) FROM open_delivery t WHERE t.state = '{state}'"
    return f"""(
        WITH RECURSIVE found(route) AS (
            {first}
            UNION ALL
            SELECT ({first} AND t.route > found.route) FROM found WHERE found.route IS NOT NULL)
        SELECT route FROM found WHERE route IS NOT NULL)"""


def _last_fact(sql: Sql, delivery: str, condition: str = "") -> str:
    """Join the last fact of a delivery as `l`, by one entry of the index."""
    facts = f"FROM delivery_log f WHERE f.seq = {delivery}.seq AND f.route = {delivery}.route {condition}"
    if sql.is_postgres:
        return f"LEFT JOIN LATERAL (SELECT f.id, f.at, f.kind {facts} ORDER BY f.id DESC LIMIT 1) l ON true"
    return f"LEFT JOIN delivery_log l ON l.id = (SELECT max(f.id) {facts})"


def _that_do_not_move(clock: SqlClock) -> dict[Kind, str]:
    sql, before = clock.sql, clock.ago(AFTER_SECONDS)
    # No list depends on the row: each is read once.
    nothing_moves = f"""r.route NOT IN (SELECT newest.route FROM ({NEWEST_FACTS}) newest WHERE newest.at > {before})
  AND r.route NOT IN (SELECT f.route FROM open_delivery f WHERE f.state = 'in_flight' AND f.lease_until > {clock.ago(0)})"""
    # as `relay.delivery.gates.entity_key` writes it
    entity = " || '|' || ".join(rf"replace(replace(i.{part}, '\', '\\'), '|', '\|')" for part in _ENTITY)
    paused = "SELECT g.name FROM gate g WHERE g.kind = '{}' AND g.paused_at IS NOT NULL"
    overdue = sql.first_of(
        f"{_routes_with('ready')} r",
        "open_delivery o",
        f"o.route = r.route AND o.state = 'ready' AND o.due_at < {before}",
        "o.due_at, o.seq",
        str(MOST_LISTED),
    )
    received = f"(SELECT seq, route, lane, state FROM open_delivery WHERE state = 'received' ORDER BY seq LIMIT {MOST_LISTED}) o"
    return {
        "unordered": f"""
SELECT 'unordered' AS finding, o.seq, o.route, o.lane, o.state, {clock.since("i.received_at")} AS for_seconds,
       'no relay has ordered it, and nothing moves' AS why, NULL AS waiting
FROM {sql.looked_up(received, "inbox i", "i.seq = o.seq")}
WHERE i.received_at < {before} AND NOT EXISTS (SELECT 1 FROM ({NEWEST_FACTS}) newest WHERE newest.at > {before})
""",
        "stuck": f"""
SELECT 'stuck' AS finding, o.seq, o.route, o.lane, o.state, {clock.since("o.due_at")} AS for_seconds,
       CASE WHEN EXISTS (SELECT 1 FROM route_gate) AND NOT EXISTS (SELECT 1 FROM route_gate k WHERE k.route = o.route)
            THEN 'due, and no running relay knows its route: put it into inbox.toml again, or cancel its deliveries'
            ELSE 'due, and nothing moves on its route' END AS why,
       NULL AS waiting
FROM {sql.looked_up(overdue, "inbox i", "i.seq = o.seq")}
WHERE {nothing_moves}
  AND NOT EXISTS (SELECT 1 FROM route_gate k JOIN gate g ON g.kind = k.kind AND g.name = k.name
                  WHERE k.route = o.route AND {_is_closed(clock)})
  AND o.route NOT IN ({paused.format("route")}) AND i.source NOT IN ({paused.format("source")})
  AND coalesce({entity}, '') NOT IN ({paused.format("entity")})
UNION ALL
SELECT 'stuck' AS finding, r.seq, r.route, r.lane, r.state, {clock.since("r.lease_until")},
       'its lease ran out, and no relay has rescued it', NULL
FROM open_delivery r
WHERE r.state = 'in_flight' AND r.lease_until < {before}
  AND {nothing_moves}
""",
    }


def _of_heads(clock: SqlClock) -> dict[Kind, str]:
    sql = clock.sql
    return {
        "blocked": f"""
SELECT 'blocked' AS finding, o.seq, o.route, o.lane, o.state, {clock.since("l.at")} AS for_seconds,
       'it is dead and blocks its lane: relay replay, unblock or cancel' AS why,
       {_counted("w.route = o.route AND w.lane = o.lane AND w.state = 'waiting'")} AS waiting
FROM (SELECT seq, route, lane, state FROM open_delivery WHERE state = 'blocked' LIMIT {MOST_LISTED}) o
{_last_fact(sql, "o", "AND f.kind = 'dead'")}
""",
    }


def _of_commands(clock: SqlClock) -> dict[Kind, str]:
    asked = clock.since("c.asked_at")
    named = "'command ' || c.id || ' (' || c.kind || '): '"
    return {
        "command": f"""
SELECT 'command' AS finding, NULL AS seq, NULL AS route, NULL AS lane, c.state, {asked} AS for_seconds,
       {named} || 'asked a minute ago, and no relay has taken it up' AS why, NULL AS waiting
FROM relay_command c
WHERE c.state = 'asked' AND {asked} > {AFTER_SECONDS}
""",
        "command_failed": f"""
SELECT 'command_failed' AS finding, NULL AS seq, NULL AS route, NULL AS lane, c.state, {asked} AS for_seconds,
       {named} || CASE WHEN c.state IN ('failed', 'refused') THEN c.state || ': ' || coalesce(c.answer, '')
                       ELSE c.failed || ' could not be changed, such as ' || coalesce(c.error, '') END AS why, NULL AS waiting
FROM (
    SELECT id, kind, state, asked_at, finished_at, failed, answer, error FROM relay_command
    ORDER BY id DESC
    LIMIT {_NEWEST_COMMANDS}) c
WHERE (c.state IN ('failed', 'refused') OR c.failed > 0)
  AND (c.finished_at IS NULL OR {clock.since("c.finished_at")} < {FAILED_FOR_SECONDS})
""",
    }
