"""Comments on the views and their columns: Postgres carries them, and the page of the schema has them for both databases."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from inbox.db.schema import gate, inbox, open_delivery, throughput_minute


class View(msgspec.Struct, frozen=True):
    """A public view, explained."""

    name: str
    comment: str
    columns: Mapping[str, str]
    """Each column's comment, in their order."""


_KNOWN = {column.name: column.comment or "" for table in (open_delivery, inbox) for column in table.columns}


def _as_in_tables(*names: str) -> dict[str, str]:
    """Return the comments of columns that mean the same in the view as in `open_delivery` or `inbox`."""
    return {name: _KNOWN[name] for name in names}


_FIGURES = {column.name: column.comment or "" for column in throughput_minute.columns}
_GATE = {column.name: column.comment or "" for column in gate.columns}


def _figures_of(*names: str) -> dict[str, str]:
    return {name: _FIGURES[name] for name in names}


def _gate(*names: str) -> dict[str, str]:
    return {name: _GATE[name] for name in names}


_EVENT = _as_in_tables("source", "entity_type", "entity_id", "event_type", "action", "occurred_at", "received_at")

VIEWS = (
    View(
        "event",
        "Every event as inbox has it, with its headers and its body as text. Query it by seq, entity or source and dedup_key.",
        {
            **_as_in_tables(*(column.name for column in inbox.columns)),
            "headers": "allow-listed request headers; empty when the payload is gone",
            "body": "body as text, or \\x and hex digits if it is no UTF-8 or has a NUL; empty when the payload is gone",
            "is_pruned": "true: retention or an erasure has deleted its headers and body",
            "is_erased": "true: a person was erased from it",
        },
    ),
    View(
        "delivery",
        "State of each event on each route. Query it by seq or entity; for counts use backlog.",
        {
            **_as_in_tables("seq", "route"),
            **_EVENT,
            "state": "as in open_delivery, or the kind of the last fact when it has ended; unrouted: the event matched no route",
            "attempts": "attempts used in its present or last run",
            **_as_in_tables("due_at", "lane", "relay_node"),
            "last_fact": "kind of its newest row in delivery_log; an erasure is not counted",
            "last_fact_at": "time of that row",
            "last_error": "while it is open: error of its newest failed attempt",
            "last_status": "HTTP status of the last call: of the newest failed attempt while it is open, else of the last fact",
            "superseded_by": "if superseded: the seq of the event that replaces it",
        },
    ),
    View(
        "dead_letter",
        "Deliveries that were given up, with cause and error. relay replay starts them again.",
        {
            **_as_in_tables("seq", "route", "lane"),
            "state": "dead, or blocked when it blocks its lane",
            **_EVENT,
            "attempts": "attempts used in its last run",
            "died_at": "time at which it was given up",
            "cause": "exhausted, crash_loop, unrecordable, unprocessable, payload_gone, or an error class, as in"
            " docs/reference/delivery.md",
            "error": "the last error, in one sentence",
            "last_status": "HTTP status of the last call",
        },
    ),
    View(
        "backlog",
        "Per route: open deliveries by state, and the age of the oldest that is not dead.",
        {
            **_as_in_tables("route"),
            "open": "sum of the following states",
            "received": "not ordered yet",
            "waiting": "behind the head of their lane",
            "ready": "heads, due now or later",
            "in_flight": "heads under a relay's lease",
            "blocked": "given up, and blocking their lanes",
            "dead": "given up",
            "oldest_received_at": "arrival of the oldest that is not dead",
            "oldest_age_seconds": "seconds since then",
        },
    ),
    View(
        "relay_health",
        "Relay processes: running, gone (silent for as long as a lease) or stopped; what is in flight, and what fails.",
        {
            "relay_node": "id of the process, new at every start",
            "host": "machine that it runs on",
            "pid": "process id on that machine",
            "version": "version of Inbox Relay",
            "health": "running, gone or stopped; a gone process has lost all of its leases",
            "silent_seconds": "seconds since its last heartbeat",
            "in_flight": "deliveries under its lease",
            "started_at": "time of its start",
            "heartbeat_at": "time of its last heartbeat",
            "stopped_at": "time of a graceful stop; empty while it runs or if it died",
            "failing": "steps that fail now, with the errors; empty: none",
        },
    ),
    View(
        "stuck",
        "Deliveries, commands and relays that make no progress, and why: findings, as relay status --check reports them, and what"
        " waits behind a closed gate, as information. Of each route, the 1,000 that are due for longest. Empty when all is well."
        " What inbox.toml says is known here as far as running relays have stored it: see route_gate.",
        {
            "finding": "no_relay, crash_loop, step_failed, config_differs, failing, unordered, stuck, blocked, command,"
            " command_failed, ahead or no_head; for information paused, breaker, held or rate",
            **_as_in_tables("seq", "route", "lane"),
            "state": "state of the delivery or command; gone or failing for relays; paused, held or the breaker's for gates",
            "for_seconds": "seconds since the problem began; empty: unknown",
            "why": "the problem, or the gate that holds deliveries back, in one sentence",
            "waiting": "deliveries that wait behind it, counted to 1,000; empty: unknown, or none can",
            "is_finding": "true: something is wrong; false: information, as it ends by itself or a person chose it",
        },
    ),
    View(
        "route_gate",
        "Gates on the way of each route, as the configuration of the running relays has them. One without a row in gate is open.",
        {
            "route": "the route",
            "kind": "source, route, destination or api: gate.kind",
            "name": "its name in inbox.toml: gate.name",
        },
    ),
    View(
        "dead_cause",
        "Deliveries that were given up, grouped by route, cause, error and status. relay replay takes the same conditions.",
        {
            **_as_in_tables("route"),
            "cause": "as in dead_letter",
            "error": "the last error, in one sentence",
            "last_status": "HTTP status of the last call",
            "deliveries": "number of these deliveries",
            "first_died_at": "time at which the first of them was given up",
            "last_died_at": "time at which the last of them was given up",
            "sample_seq": "the newest event among them",
        },
    ),
    View(
        "entity_timeline",
        "All that happened to the events of an entity: arrivals, duplicates, attempts and outcomes. Query it by source,"
        " entity_type and entity_id, ORDER BY at, seq, fact_id, what.",
        {
            **_as_in_tables("source", "entity_type", "entity_id"),
            "at": "time of the arrival, or of the recording",
            "what": "arrived, duplicate, or a kind of fact, as in delivery_log",
            **_as_in_tables("seq"),
            "route": "the route; empty for arrivals and duplicates",
            "summary": "the outcome, error, or person and reason, in one sentence",
            "fact_id": "if a fact: delivery_log.id; else 0",
        },
    ),
    View(
        "throughput",
        "Figures of each minute: of sources, what was received; of routes and destinations, what became of deliveries."
        " Query it by minute, or by kind and name. It lacks about the last ten seconds.",
        {
            "minute": "beginning of the minute; database clock",
            **_figures_of("kind", "name", "outcome", "count", "bytes"),
            "per_second": "count, divided by 60",
        },
    ),
    View(
        "source_health",
        "Sources with figures or events: the last arrival, and what was received in the last hour and day. The hour and the"
        " day end with the last figures, about ten seconds ago.",
        {
            "source": "name of the source; (unknown) for all unknown sources together",
            "last_arrival_at": "last event or duplicate, to the minute; empty: none in the age of the figures",
            "events_hour": "events stored in the last hour, those of sweeps too",
            "events_day": "events stored in the last day",
            "duplicates_hour": "duplicates in the last hour",
            "duplicates_day": "duplicates in the last day",
            "rejected_hour": "rejected requests in the last hour; more than rejected_request has, when there were many",
            "rejected_day": "rejected requests in the last day",
            "is_silent": "true while the alert source_silent fires, which needs silent_after in inbox.toml",
            "paused_at": "time at which an operator paused it; empty: not paused",
        },
    ),
    View(
        "destination_health",
        "Routes, destinations and apis: their health, what became of deliveries in the last hour and day, and their gates."
        " Figures of a destination are of all routes to it; apis have only a gate.",
        {
            "kind": "route, destination or api",
            "name": "its name in inbox.toml",
            "health": "paused, open, half_open or retired (its breaker), held (it asked for no call), failing (every attempt"
            " since its last success failed) or ok",
            "delivered_hour": "deliveries that succeeded in the last hour",
            "delivered_day": "deliveries that succeeded in the last day",
            "failed_hour": "failed and abandoned attempts in the last hour",
            "failed_day": "failed and abandoned attempts in the last day",
            "dead_hour": "deliveries given up in the last hour",
            "dead_day": "deliveries given up in the last day",
            "last_success_at": "last success, to the minute; empty: none in the age of the figures",
            "last_failure_at": "last failed attempt or death, to the minute",
            **_gate("paused_at", "breaker", "breaker_until", "breaker_cause", "held_until", "hold_reason"),
        },
    ),
    View(
        "table_size",
        "Size and growth of each table. On Postgres by its statistics; partitions of a table are one row. On SQLite the row (file)"
        " has the size of the whole file, as SQLite keeps no other.",
        {
            "table_name": "the table; (file) for a SQLite file",
            "rows_estimated": "rows by the last ANALYZE or VACUUM; on SQLite at most so many, by the first and last row",
            "bytes": "bytes without indexes",
            "index_bytes": "bytes of its indexes; empty on SQLite, where bytes has them",
            "free_bytes": "on SQLite: bytes of free pages, which new rows use first",
            "bytes_per_day": "growth without retention: rows of the last day by the figures, as large as the present ones; empty:"
            " unknown, or it does not grow with events",
            "dead_rows": "dead rows that VACUUM has not removed; empty on SQLite, which has none",
            "last_vacuum_at": "time of the last VACUUM, by hand or by itself; empty: none, or SQLite",
        },
    ),
    View(
        "long_transaction",
        "Transactions that are open for a minute, which VACUUM and locks may wait for. Empty on SQLite, which does not know its"
        " readers. A role without pg_read_all_stats sees its own.",
        {
            "pid": "process of the server, for pg_terminate_backend; empty: a prepared transaction",
            "role": "role of the session",
            "application": "application_name of the session",
            "state": "active, idle in transaction, or prepared",
            "for_seconds": "seconds since it began",
            "began_at": "time of its begin",
            "waits_for": "its wait event; Client: it waits for its client",
            "query": "its last statement, up to the first value",
            "holds_back": "things that wait for its end",
        },
    ),
)
