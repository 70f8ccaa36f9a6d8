"""Health views: `stuck`, and those of sources, routes and destinations.

They read figures, statistics and open rows, never whole tables. `relay status --check` reads `stuck`, whose branches
each select `COLUMNS`; a condition on `finding` removes the other branches from the query plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from inbox.db.dialect import Sql, each_name
from inbox.db.throughput import DUPLICATE, REJECTED, STORED, SWEPT
from inbox.events.states import CRASH_LOOP_DEATHS, CRASH_LOOP_SECONDS, GONE_SECONDS

Kind = Literal[
    "no_relay",  # no relay has a heartbeat
    "crash_loop",  # relays of a host die soon after starting
    "step_failed",  # a step of a running relay fails
    "config_differs",  # running relays have different configurations
    "failing",  # the last attempt of a route failed
    "unordered",  # an event has no place in its lane, and nothing moves
    "stuck",  # something is due, and nothing moves on its route
    "blocked",  # a dead delivery blocks its lane
    "command",  # no relay takes up a command
    "command_failed",  # a command failed, or could not change some deliveries
]

COLUMNS = ("finding", "seq", "route", "lane", "state", "for_seconds", "why", "number")
AFTER_SECONDS = 60
"""Seconds without progress after which a delivery or command is stuck. Configurations that differ this long are a
finding."""
FAILED_FOR_SECONDS = 3600
"""Seconds for which a failed command is a finding."""
_NEWEST_COMMANDS = 1000
_NEWEST_FACTS = "SELECT n.route, n.at FROM delivery_log n ORDER BY n.id DESC LIMIT 20000"
"""Newest facts, searched for one from the last minute. If there is none, Postgres would otherwise read the whole
log."""
MOST_LISTED = 1000
"""Maximum deliveries listed for a route, and maximum count of waiting ones."""
_ENTITY = ("source", "entity_type", "entity_id")
_HOUR, _DAY = 3600, 86_400
_SUCCEEDED, _FAILED = ("delivered", "unchanged", "skipped"), ("attempt_failed", "abandoned", "dead")
"""Kinds of facts that end an attempt."""


def statements(sql: Sql) -> tuple[str, ...]:
    """Return the statements of this module's views, in the order of their dependencies."""
    return (
        _route_gate(sql),
        _source_health(sql),
        _destination_health(sql),
        _stuck(sql),
    )


def _stuck(sql: Sql) -> str:
    columns = ", ".join(f"b.{name}" for name in COLUMNS)
    return f"CREATE VIEW stuck AS\nSELECT {columns} FROM ({'UNION ALL'.join(branches(sql).values())}) b\n"


def branches(sql: Sql) -> Mapping[Kind, str]:
    """Return the SELECT of each finding of `stuck`."""
    return {**_relay_findings(sql), **_stuck_branches(sql), **_command_findings(sql)}


def _relay_findings(sql: Sql) -> dict[Kind, str]:
    silent, since = sql.seconds_since("n.heartbeat_at"), sql.second("n.configured_at")
    steps = (
        "CROSS JOIN LATERAL jsonb_each_text(n.failing) AS step(key, value)"
        if sql.is_postgres
        else "JOIN json_each(n.failing) AS step"
    )
    return {
        "no_relay": f"""
SELECT 'no_relay' AS finding, CAST(NULL AS bigint) AS seq, CAST(NULL AS text) AS route, CAST(NULL AS text) AS lane,
       'gone' AS state, CAST(NULL AS float8) AS for_seconds, 'no relay has sent a heartbeat for {GONE_SECONDS} s' AS why,
       CAST(NULL AS bigint) AS number
WHERE NOT EXISTS (
    SELECT 1 FROM relay_node n WHERE n.stopped_at IS NULL AND n.heartbeat_at >= {sql.ago(GONE_SECONDS)})
""",
        "crash_loop": f"""
SELECT 'crash_loop' AS finding, NULL AS seq, NULL AS route, NULL AS lane, 'gone' AS state, NULL AS for_seconds,
       'host ' || n.host || ': ' || count(*) || ' relays died soon after they had started' AS why, NULL AS number
FROM relay_node n
WHERE n.stopped_at IS NULL AND {silent} > {GONE_SECONDS} AND {sql.seconds_since("n.started_at")} < {CRASH_LOOP_SECONDS}
GROUP BY n.host
HAVING count(*) >= {CRASH_LOOP_DEATHS}
""",
        "step_failed": f"""
SELECT 'step_failed' AS finding, NULL AS seq, NULL AS route, NULL AS lane, 'failing' AS state, NULL AS for_seconds,
       'relay ' || n.host || ' pid ' || n.pid || ': step ' || step.key || ' fails: ' || step.value AS why, NULL AS number
FROM relay_node n {steps}
WHERE n.failing IS NOT NULL AND n.stopped_at IS NULL AND {silent} <= {GONE_SECONDS}
""",
        "failing": _failing(sql),
        "config_differs": f"""
SELECT 'config_differs' AS finding, NULL AS seq, NULL AS route, NULL AS lane, 'running' AS state,
       {sql.seconds_since("max(c.at)")} AS for_seconds,
       'relays ' || min(c.relay) || ' and ' || max(c.relay) || ' run with different routes or destinations' AS why, NULL AS number
FROM (
    SELECT min(n.configured_at) AS at, min(n.host || ' pid ' || n.pid || ' (since ' || {since} || ')') AS relay
    FROM relay_node n
    WHERE n.config_hash IS NOT NULL AND n.stopped_at IS NULL AND {silent} <= {GONE_SECONDS}
    GROUP BY n.config_hash) c
HAVING count(*) > 1 AND max(c.at) < {sql.ago(AFTER_SECONDS)}
""",
    }


def _failing_routes() -> str:
    """Select the routes that fail: their last attempt failed, and they have open deliveries. All views share this rule."""
    # The order makes Postgres use the index of the state, instead of reading the whole table.
    is_open = "\n       OR ".join(
        f"(SELECT o.route FROM open_delivery o WHERE o.state = '{state}' AND o.route >= failure.route ORDER BY o.route LIMIT 1)"
        " = failure.route"
        for state in ("ready", "in_flight", "blocked", "dead")
    )
    return f"SELECT failure.* FROM route_failure failure WHERE {is_open}"


def _failing(sql: Sql) -> str:
    return f"""
SELECT 'failing' AS finding, r.seq, r.route, NULL AS lane, 'failing' AS state, {sql.seconds_since("r.began_at")} AS for_seconds,
       CASE r.failures WHEN 1 THEN 'the last attempt failed' ELSE 'the last ' || r.failures || ' attempts failed' END
       || coalesce(': ' || (
           SELECT l.detail ->> 'error' FROM delivery_log l
           WHERE l.seq = r.seq AND l.route = r.route AND l.kind IN ('attempt_failed', 'dead')
           ORDER BY l.id DESC LIMIT 1), '') AS why,
       r.failures AS number
FROM ({_failing_routes()}) r
WHERE NOT ({_is_gone("r.route")})
  AND NOT EXISTS (SELECT 1 FROM route_gate k JOIN gate g ON g.kind = k.kind AND g.name = k.name
                  WHERE k.route = r.route AND g.paused_at IS NOT NULL)
"""


def _is_gone(route: str) -> str:
    """Return the condition that relays are running, but none of them knows the route."""
    return f"EXISTS (SELECT 1 FROM route_gate) AND NOT EXISTS (SELECT 1 FROM route_gate k WHERE k.route = {route})"


def _is_closed(sql: Sql) -> str:
    """Return the condition that the gate `g` holds deliveries back."""
    return (
        f"(g.paused_at IS NOT NULL OR g.breaker <> 'closed' OR g.held_until > {sql.ago(0)}"
        f" OR g.rate_used_until > {sql.ago(0)})"
    )


def _stuck_branches(sql: Sql) -> dict[Kind, str]:
    before = sql.ago(AFTER_SECONDS)
    # The lists don't depend on the row, so each is read once.
    moving = f"""SELECT newest.route FROM ({_NEWEST_FACTS}) newest WHERE newest.at > {before}
    UNION ALL SELECT f.route FROM open_delivery f WHERE f.state = 'in_flight' AND f.lease_until > {sql.ago(0)}"""
    # as `relay.delivery.gates.make_entity_key` writes it
    entity = " || '|' || ".join(rf"replace(replace(i.{part}, '\', '\\'), '|', '\|')" for part in _ENTITY)
    paused = "SELECT g.name FROM gate g WHERE g.kind = '{}' AND g.paused_at IS NOT NULL"
    ready = "t.state = 'ready'"
    overdue = sql.select_first(
        f"{each_name('route', 'open_delivery', ready)} r",
        "open_delivery o",
        f"o.route = r.name AND o.state = 'ready' AND o.due_at < {before}",
        "o.due_at, o.seq",
        str(MOST_LISTED),
    )
    received = f"(SELECT seq, route, lane, state FROM open_delivery WHERE state = 'received' ORDER BY seq LIMIT {MOST_LISTED}) o"
    return {
        "unordered": f"""
SELECT 'unordered' AS finding, o.seq, o.route, o.lane, o.state, {sql.seconds_since("i.received_at")} AS for_seconds,
       'no relay has ordered it, and nothing moves' AS why, NULL AS number
FROM {sql.look_up(received, "inbox i", "i.seq = o.seq")}
WHERE i.received_at < {before} AND NOT EXISTS (SELECT 1 FROM ({_NEWEST_FACTS}) newest WHERE newest.at > {before})
""",
        "stuck": f"""
SELECT 'stuck' AS finding, o.seq, o.route, o.lane, o.state, {sql.seconds_since("o.due_at")} AS for_seconds,
       CASE WHEN {_is_gone("o.route")}
            THEN 'due, and no running relay knows its route: relay status says how to go on'
            ELSE 'due, and nothing moves on its route' END AS why,
       NULL AS number
FROM {sql.look_up(overdue, "inbox i", "i.seq = o.seq")}
WHERE r.name NOT IN ({moving})
  AND NOT EXISTS (SELECT 1 FROM route_gate k JOIN gate g ON g.kind = k.kind AND g.name = k.name
                  WHERE k.route = o.route AND {_is_closed(sql)})
  AND o.route NOT IN ({paused.format("route")}) AND i.source NOT IN ({paused.format("source")})
  AND coalesce({entity}, '') NOT IN ({paused.format("entity")})
UNION ALL
SELECT 'stuck' AS finding, r.seq, r.route, r.lane, r.state, {sql.seconds_since("r.lease_until")},
       'its lease ran out, and no relay has rescued it', NULL
FROM open_delivery r
WHERE r.state = 'in_flight' AND r.lease_until < {before}
  AND r.route NOT IN ({moving})
""",
        "blocked": f"""
SELECT 'blocked' AS finding, o.seq, o.route, o.lane, o.state, {sql.seconds_since("l.at")} AS for_seconds,
       'it is dead and blocks its lane: relay replay, unblock or cancel' AS why,
       (SELECT count(*) FROM (
           SELECT 1 FROM open_delivery w WHERE w.route = o.route AND w.lane = o.lane AND w.state = 'waiting' LIMIT {MOST_LISTED}
       ) n) AS number
FROM (SELECT seq, route, lane, state FROM open_delivery WHERE state = 'blocked' LIMIT {MOST_LISTED}) o
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = o.seq AND f.route = o.route AND f.kind = 'dead')
""",
    }


def _command_findings(sql: Sql) -> dict[Kind, str]:
    asked = sql.seconds_since("c.asked_at")
    named = "'command ' || c.id || ' (' || c.kind || '): '"
    return {
        "command": f"""
SELECT 'command' AS finding, NULL AS seq, NULL AS route, NULL AS lane, c.state, {asked} AS for_seconds,
       {named} || 'asked a minute ago, and no relay has taken it up' AS why, NULL AS number
FROM relay_command c
WHERE c.state = 'asked' AND {asked} > {AFTER_SECONDS}
""",
        "command_failed": f"""
SELECT 'command_failed' AS finding, NULL AS seq, NULL AS route, NULL AS lane, c.state, {asked} AS for_seconds,
       {named} || CASE WHEN c.state IN ('failed', 'refused') THEN c.state || ': ' || coalesce(c.answer, '')
                       ELSE c.failed || ' could not be changed, such as ' || coalesce(c.error, '') END AS why, NULL AS number
FROM (
    SELECT id, kind, state, asked_at, finished_at, failed, answer, error FROM relay_command WHERE NOT dry_run
    ORDER BY id DESC
    LIMIT {_NEWEST_COMMANDS}) c
WHERE (c.state IN ('failed', 'refused') OR c.failed > 0)
  AND (c.finished_at IS NULL OR {sql.seconds_since("c.finished_at")} < {FAILED_FOR_SECONDS})
""",
    }


def _route_gate(sql: Sql) -> str:
    """Return the view of gates by route. Malformed values in `relay_node.routes` are skipped."""
    if sql.is_postgres:
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
WHERE n.routes IS NOT NULL AND n.stopped_at IS NULL AND n.heartbeat_at >= {sql.ago(GONE_SECONDS)}
"""


def _source_health(sql: Sql) -> str:
    sums = _sums(
        sql,
        "'source'",
        "known.source",
        {"events": (STORED, SWEPT), "duplicates": (DUPLICATE,), "rejected": (REJECTED,)},
    )
    return f"""
CREATE VIEW source_health AS
SELECT known.source, {_newest_minute("'source'", "known.source", (STORED, DUPLICATE))} AS last_arrival_at,
       {sums},
       coalesce((
           SELECT a.firing FROM alert a WHERE a.kind = 'source_silent' AND a.subject = known.source ORDER BY a.id DESC LIMIT 1
       ), false) AS is_silent,
       (SELECT g.paused_at FROM gate g WHERE g.kind = 'source' AND g.name = known.source) AS paused_at
FROM (
    SELECT name AS source FROM {each_name("name", "throughput_minute", "t.kind = 'source'")} counted
    UNION
    SELECT name FROM {each_name("source", "inbox")} stored
) known
"""


def _destination_health(sql: Sql) -> str:
    outcomes = {"delivered": ("delivered", "unchanged"), "failed": ("attempt_failed", "abandoned"), "dead": ("dead",)}
    sums = _sums(sql, "subject.kind", "subject.name", outcomes)
    known = "UNION".join(
        f"""
    SELECT '{kind}' AS kind, name FROM {each_name("name", "throughput_minute", f"t.kind = '{kind}'")} counted_{kind}
    """
        for kind in ("route", "destination")
    )
    return f"""
CREATE VIEW destination_health AS
SELECT h.kind, h.name,
       CASE WHEN h.paused_at IS NOT NULL THEN 'paused'
            WHEN h.breaker <> 'closed' THEN h.breaker
            WHEN h.held_until IS NOT NULL THEN 'held'
            WHEN EXISTS (
                SELECT 1 FROM ({_failing_routes()}) r
                WHERE h.kind = 'route' AND r.route = h.name OR r.kind = h.kind AND r.name = h.name) THEN 'failing'
            ELSE 'ok' END AS health,
       h.delivered_hour, h.delivered_day, h.failed_hour, h.failed_day, h.dead_hour, h.dead_day,
       h.last_success_at, h.last_failure_at, h.paused_at, h.breaker, h.breaker_until, h.breaker_cause,
       h.held_until, h.hold_reason
FROM (
    SELECT subject.kind, subject.name,
           {sums},
           {_newest_minute("subject.kind", "subject.name", _SUCCEEDED)} AS last_success_at,
           {_newest_minute("subject.kind", "subject.name", _FAILED)} AS last_failure_at,
           g.paused_at, coalesce(g.breaker, 'closed') AS breaker, g.breaker_until, g.breaker_cause,
           CASE WHEN g.held_until > {sql.ago(0)} THEN g.held_until END AS held_until,
           CASE WHEN g.held_until > {sql.ago(0)} THEN g.hold_reason END AS hold_reason
    FROM (
    SELECT g.kind, g.name FROM gate g WHERE g.kind IN ('route', 'destination', 'api')
    UNION SELECT failure.kind, failure.name FROM route_failure failure
    UNION SELECT 'route', failure.route FROM route_failure failure
    UNION{known}) subject
    LEFT JOIN gate g ON g.kind = subject.kind AND g.name = subject.name
) h
"""


def _sums(sql: Sql, kind: str, name: str, outcomes: Mapping[str, tuple[str, ...]]) -> str:
    """Select the sums of the last hour and day, reading one range of the primary key for each outcome."""
    return ",\n           ".join(
        f"({_figures('coalesce(sum(t.count), 0)', kind, name, some)}"
        f" AND t.minute > {sql.ago(seconds)}) AS {column}_{period}"
        for column, some in outcomes.items()
        for period, seconds in (("hour", _HOUR), ("day", _DAY))
    )


def _figures(what: str, kind: str, name: str, outcomes: tuple[str, ...]) -> str:
    listed = ", ".join(f"'{outcome}'" for outcome in outcomes)
    return (
        f"SELECT {what} FROM throughput_minute t WHERE t.kind = {kind} AND t.name = {name} AND t.outcome IN ({listed})"
    )


def _newest_minute(kind: str, name: str, outcomes: tuple[str, ...]) -> str:
    """Select the newest minute with one of the outcomes, by one index entry for each."""
    each = " UNION ALL ".join(
        f"SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = {kind} AND t.name = {name} AND t.outcome = '{one}'"
        for one in outcomes
    )
    return f"(SELECT max(m.minute) FROM ({each}) m)"
