"""Comments on the views and their columns: Postgres carries them, and the page of the schema has them for both databases."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from inbox.db.schema import inbox, open_delivery


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


_EVENT = _as_in_tables("source", "entity_type", "entity_id", "event_type", "action", "occurred_at", "received_at")

VIEWS = (
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
        "Deliveries, commands and relays that make no progress, and why, as relay status --check finds them. Empty in normal"
        " operation. inbox.toml is not known here: neither which gates of destinations and apis are on the way of a route, nor"
        " which routes are gone.",
        {
            "finding": "no_relay, crash_loop, failing, unordered, stuck, blocked, command, command_failed, ahead or no_head",
            **_as_in_tables("seq", "route", "lane"),
            "state": "state of the delivery or command; gone or failing for relays",
            "for_seconds": "seconds since the problem began; empty: unknown",
            "why": "the problem, in one sentence",
        },
    ),
)
