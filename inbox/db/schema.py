"""Tables of both sides. Their names are public: DBAs write queries against them.

A change here needs a migration, a changelog line and a reason. Append-only tables hold facts, small hot tables hold the
work. The triggers that protect the append-only ones are in `inbox.db.views`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from inbox.db.dialect import BigId, JsonValue, TextList, UtcDateTime
from inbox.events.states import HEADS, OPEN_STATES

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

HOT = {"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.02, "autovacuum_vacuum_cost_delay": 0}
"""Storage of rows that change often: room on the page for the next version, and early vacuum."""

inbox = Table(
    "inbox",
    metadata,
    Column(
        "seq",
        BigId,
        primary_key=True,
        autoincrement=True,
        comment="number of the event in arrival order; gaps mean nothing",
    ),
    Column("source", Text, nullable=False, comment="sender: a name of [sources] in inbox.toml"),
    Column(
        "dedup_key",
        Text,
        nullable=False,
        comment="key of the event: a request of the source with the same key is a duplicate",
    ),
    Column(
        "entity_type", Text, comment="type of the entity that changed, such as USER; empty when the event has no entity"
    ),
    Column("entity_id", Text, comment="id of the entity that changed, as the source gives it"),
    Column("event_type", Text, nullable=False, comment="event type, verbatim from the sender"),
    Column("action", Text, nullable=False, comment="effect on the entity: create, update, delete or other"),
    Column("event_id", Text, comment="the sender's own id of the event, if any"),
    Column("occurred_at", UtcDateTime, nullable=False, comment="the event's own time, to the microsecond"),
    Column("received_at", UtcDateTime, nullable=False, comment="time at which the receiver had read the request"),
    Column(
        "routes", TextList, nullable=False, comment="names of the routes that matched when it arrived; empty: unrouted"
    ),
    Column("headers", JsonValue, comment="allow-listed request headers; empty after erasure or retention"),
    Column("content_type", Text, nullable=False, comment="Content-Type of the body"),
    Column("body", LargeBinary, comment="body of the request, byte for byte; empty after erasure or retention"),
    Column("body_sha256", LargeBinary, nullable=False, comment="SHA-256 of the body; stays after erasure"),
    Column("traceparent", Text, comment="W3C trace context of the request"),
    UniqueConstraint("source", "dedup_key"),
    Index("ix_inbox_entity", "source", "entity_type", "entity_id", "seq"),
    CheckConstraint("action IN ('create', 'update', 'delete', 'other')", name="action"),
    comment="One row per accepted webhook, immutable. Written by the receiver before it answers 200.",
    sqlite_autoincrement=True,  # a number is never used again, even when the newest row is pruned
)

duplicate_request = Table(
    "duplicate_request",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True, comment="number of the duplicate"),
    Column("seq", BigInteger, nullable=False, comment="the event that it duplicates: inbox.seq"),
    Column("received_at", UtcDateTime, nullable=False, comment="time of its arrival"),
    Column("body_sha256", LargeBinary, nullable=False, comment="SHA-256 of its body"),
    Column("body", LargeBinary, comment="its body, only when it differs from the event's"),
    Column("handled_at", UtcDateTime, comment="time at which a relay judged it; empty: not judged yet"),
    Column(
        "times",
        BigInteger,
        nullable=False,
        server_default=text("1"),
        comment="number of requests in this row: after the first 20 of an event, further ones are only counted",
    ),
    Column("last_received_at", UtcDateTime, comment="if times is more than 1: time of the last arrival"),
    Column("error", Text, comment="reason why it could not be judged; clear it to have it judged again"),
    Index("ix_duplicate_request_seq", "seq"),
    Index(
        "ix_duplicate_request_open",
        "seq",
        postgresql_where=text("handled_at IS NULL"),
        sqlite_where=text("handled_at IS NULL"),
    ),
    comment="A duplicate: a request whose key is already stored. The answer was 200 with the stored seq. sum(times) counts them.",
    sqlite_autoincrement=True,
)

rejected_request = Table(
    "rejected_request",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True, comment="number of the rejected request"),
    Column("received_at", UtcDateTime, nullable=False, comment="time of its arrival"),
    Column("source", Text, nullable=False, comment="source in the URL, known or unknown"),
    Column("status", Integer, nullable=False, comment="HTTP status of the answer"),
    Column("cause", Text, nullable=False, comment="cause in one word, as in the metrics"),
    Column("reason", Text, nullable=False, comment="reason in one sentence"),
    Column("field", Text, comment="invalid field, if any"),
    Column("remote_address", Text, comment="address of the client"),
    Column("headers", JsonValue, comment="allow-listed request headers, only of an authenticated sender"),
    Column("body_sha256", LargeBinary, nullable=False, comment="SHA-256 of the body"),
    Column("body", LargeBinary, comment="the body, only of an authenticated sender, so that it can be readmitted"),
    Column("readmitted_at", UtcDateTime, comment="time at which an operator readmitted it; empty: not readmitted"),
    Column(
        "readmitted_seq",
        BigInteger,
        comment="the event that it became or duplicates: inbox.seq; the first, when its body has several",
    ),
    Column("readmitted_by", Text, comment="operator who readmitted it"),
    Column("readmit_reason", Text, comment="reason for readmitting it"),
    comment="A rejected request. Each receiver process stores at most 10 a second; beyond that only metrics count them.",
    sqlite_autoincrement=True,
)

SUSPECT_CRASHES = 2
"""Expired leases in a row after which a delivery is suspected of killing its relay. A relay works on one at a time."""


def _one_of(states: Iterable[str]) -> str:
    return ", ".join(f"'{state}'" for state in states)


FIRST_DUE, LAST_DUE = "1970-01-01 00:00:00.000000Z", "9000-01-01 00:00:00.000000Z"

open_delivery = Table(
    "open_delivery",
    metadata,
    Column("seq", BigInteger, nullable=False, comment="the event: inbox.seq"),
    Column("route", Text, nullable=False, comment="the route it takes: a name of [routes] in inbox.toml"),
    Column(
        "lane",
        Text,
        nullable=False,
        comment="the unit of order on the route: TYPE|ID of the entity, * or the event itself",
    ),
    Column(
        "occurred_at",
        UtcDateTime,
        nullable=False,
        comment="copy of inbox.occurred_at: order in the lane, before seq",
    ),
    Column(
        "state", Text, nullable=False, comment="received, waiting (behind its head), ready, in_flight, blocked or dead"
    ),
    Column("attempt", Integer, nullable=False, server_default=text("0"), comment="attempts used in this run"),
    Column(
        "run", Integer, nullable=False, server_default=text("0"), comment="number of times it was replayed or re-armed"
    ),
    Column(
        "crashes", Integer, nullable=False, server_default=text("0"), comment="attempts in a row whose lease expired"
    ),
    Column("due_at", UtcDateTime, comment="if ready: time of the next attempt; database clock"),
    Column("lease_until", UtcDateTime, comment="if in_flight: end of the lease; database clock"),
    Column(
        "lease_token",
        BigInteger,
        comment="if in_flight: fencing token of the claim; a result with another token is discarded",
    ),
    Column("relay_node", Text, comment="if in_flight: relay_node.id of the process that delivers it"),
    PrimaryKeyConstraint("seq", "route"),
    CheckConstraint(f"state IN ({_one_of(OPEN_STATES)})", name="state"),
    CheckConstraint("(state = 'ready') = (due_at IS NOT NULL)", name="due_when_ready"),
    # 'infinity', or a year outside datetime's range, could not be read.
    CheckConstraint(f"due_at BETWEEN '{FIRST_DUE}' AND '{LAST_DUE}'", name="due_at"),
    CheckConstraint(
        "(state = 'in_flight') = (lease_until IS NOT NULL AND lease_token IS NOT NULL AND relay_node IS NOT NULL)",
        name="leased_when_in_flight",
    ),
    comment="Every open delivery. A projection of delivery_log: relay verify compares the two, relay rebuild repairs it.",
    postgresql_with=HOT,
)


def _open_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    return Index(
        name,
        *(open_delivery.c[column] for column in columns),
        unique=unique,
        postgresql_where=text(where),
        sqlite_where=text(where),
    )


# The database itself keeps the invariant of order: one head per lane.
_open_index("ux_open_delivery_head", "route", "lane", where=f"state IN ({_one_of(HEADS)})", unique=True)
_open_index("ix_open_delivery_received", "seq", where="state = 'received'")
_open_index("ix_open_delivery_ready", "route", "due_at", "seq", where="state = 'ready'")
_open_index("ix_open_delivery_suspect", "due_at", "seq", where=f"state = 'ready' AND crashes >= {SUSPECT_CRASHES}")
_open_index("ix_open_delivery_waiting", "route", "lane", "occurred_at", "seq", where="state = 'waiting'")
_open_index("ix_open_delivery_in_flight", "seq", "route", where="state = 'in_flight'")
_open_index("ix_open_delivery_dead", "route", "lane", "occurred_at", "seq", where="state = 'dead'")
_open_index(
    "ix_open_delivery_replayed", "route", where="run > 0 AND state IN ('received', 'waiting', 'ready', 'in_flight')"
)
_open_index("ix_open_delivery_blocked", "route", "lane", where="state = 'blocked'")

lane = Table(
    "lane",
    metadata,
    Column("route", Text, nullable=False, comment="the route"),
    Column("lane", Text, nullable=False, comment="the lane, as in open_delivery"),
    Column("occurred_at", UtcDateTime, nullable=False, comment="time of the newest event delivered in this lane"),
    Column("seq", BigInteger, nullable=False, comment="seq of the newest event delivered in this lane"),
    Column("fetch_began_at", UtcDateTime, comment="time at which that delivery fetched the entity; sync routes only"),
    Column("last_modified", UtcDateTime, comment="the source's own time of the applied state"),
    Column("applied_hash", LargeBinary, comment="SHA-256 of the data sent downstream"),
    Column(
        "healing_seq",
        BigInteger,
        comment="while older dead deliveries of the lane are ended in batches: seq of the success that replaces them",
    ),
    PrimaryKeyConstraint("route", "lane"),
    comment="Last delivery of each lane. One row per route and lane that ever succeeded; an event's own lane has none.",
    postgresql_with=HOT,
)

_HEALING = text("healing_seq IS NOT NULL")
Index("ix_lane_healing", lane.c.route, lane.c.lane, postgresql_where=_HEALING, sqlite_where=_HEALING)

delivery_log = Table(
    "delivery_log",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True, comment="number of the fact"),
    Column("at", UtcDateTime, nullable=False, comment="time of recording; database clock"),
    Column("seq", BigInteger, nullable=False, comment="the event: inbox.seq"),
    Column("route", Text, nullable=False, comment="the route"),
    Column("kind", Text, nullable=False, comment="kind of fact; explained in docs/reference/states.md"),
    Column("attempt", Integer, nullable=False, comment="attempts used in this run at that time"),
    Column(
        "relay_node", Text, comment="relay_node.id of the process that recorded it; empty for an operator's command"
    ),
    Column(
        "detail",
        JsonValue,
        nullable=False,
        comment="calls, statuses, durations, error, next due time, operator and reason",
    ),
    CheckConstraint(
        "kind IN ('delivered', 'unchanged', 'superseded', 'skipped', 'cancelled', 'attempt_failed', 'abandoned', 'took_over',"
        " 'rescheduled', 'dead', 'replayed', 'rearmed', 'unblocked', 'corrected')",
        name="kind",
    ),
    Index("ix_delivery_log_delivery", "seq", "route", "id"),
    Index("ix_delivery_log_at", "at", postgresql_using="brin"),
    comment="Facts about deliveries, append-only. The state of every delivery is the fold of its facts.",
    sqlite_autoincrement=True,
)

relay_node = Table(
    "relay_node",
    metadata,
    Column("id", Text, primary_key=True, comment="new at every start of a relay process"),
    Column("host", Text, nullable=False, comment="machine that it runs on"),
    Column("pid", Integer, nullable=False, comment="process id on that machine"),
    Column("version", Text, nullable=False, comment="version of Inbox Relay"),
    Column("started_at", UtcDateTime, nullable=False, comment="time of its start; database clock"),
    Column("heartbeat_at", UtcDateTime, nullable=False, comment="time of its last heartbeat; database clock"),
    Column("stopped_at", UtcDateTime, comment="time of a graceful stop; empty while it runs or if it died"),
    Column("failing", JsonValue, comment="steps that fail now, with the errors; empty: none"),
    comment="One row per run of a relay process.",
    postgresql_with=HOT,
)

gate = Table(
    "gate",
    metadata,
    Column("kind", Text, nullable=False, comment="source, route, destination, api or entity"),
    Column("name", Text, nullable=False, comment="its name in inbox.toml; SOURCE|TYPE|ID for an entity"),
    Column("paused_at", UtcDateTime, comment="time at which an operator paused it; empty: not paused"),
    Column("paused_by", Text, comment="operator who paused it"),
    Column("pause_reason", Text, comment="reason for the pause"),
    Column(
        "breaker", Text, nullable=False, server_default=text("'closed'"), comment="closed, open, half_open or retired"
    ),
    Column("breaker_until", UtcDateTime, comment="if open: time of the next probe; database clock"),
    Column("breaker_cause", Text, comment="cause of its opening"),
    Column(
        "open_count",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="number of times it opened in a row; each doubles the open time",
    ),
    Column("failures", Integer, nullable=False, server_default=text("0"), comment="failed calls in the present window"),
    Column("calls", Integer, nullable=False, server_default=text("0"), comment="calls in the present window"),
    Column("window_began_at", UtcDateTime, comment="start of the present window"),
    Column(
        "rate_used_until",
        UtcDateTime,
        comment="rate limit: time until which calls have used it up; no call goes out while it is more than a burst ahead",
    ),
    PrimaryKeyConstraint("kind", "name"),
    CheckConstraint("kind IN ('source', 'route', 'destination', 'api', 'entity')", name="kind"),
    CheckConstraint("breaker IN ('closed', 'open', 'half_open', 'retired')", name="breaker"),
    comment="Gates in front of deliveries: pauses, circuit breakers and rate limits, shared by all relays.",
    postgresql_with=HOT,
)

relay_command = Table(
    "relay_command",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True, comment="number of the command"),
    Column("kind", Text, nullable=False, comment="replay, cancel, unblock, pause or resume"),
    Column(
        "selection",
        JsonValue,
        nullable=False,
        comment="deliveries or gate: route, seq, source, entity_type, entity_id, cause, since; force; destination, api",
    ),
    Column("reason", Text, nullable=False, comment="reason given by the operator"),
    Column("asked_by", Text, nullable=False, comment="operator"),
    Column("asked_at", UtcDateTime, nullable=False, comment="time of the request"),
    Column(
        "state",
        Text,
        nullable=False,
        server_default=text("'asked'"),
        comment="asked, running, done, failed or cancelled",
    ),
    Column("progress_seq", BigInteger, comment="progress: everything up to this seq is done"),
    Column("affected", BigInteger, nullable=False, server_default=text("0"), comment="deliveries changed so far"),
    Column("finished_at", UtcDateTime, comment="time of its end"),
    Column("answer", Text, comment="answer of the daemon"),
    Column(
        "failed", BigInteger, nullable=False, server_default=text("0"), comment="deliveries that could not be changed"
    ),
    Column("error", Text, comment="last delivery that could not be changed, with its error"),
    CheckConstraint("kind IN ('replay', 'cancel', 'unblock', 'pause', 'resume')", name="kind"),
    CheckConstraint("state IN ('asked', 'running', 'done', 'failed', 'cancelled')", name="state"),
    Index(
        "ix_relay_command_open",
        "id",
        postgresql_where=text("state IN ('asked', 'running')"),
        sqlite_where=text("state IN ('asked', 'running')"),
    ),
    comment="Command of an operator, by SQL or command line; the daemon executes and answers it.",
    sqlite_autoincrement=True,
)

alert = Table(
    "alert",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True, comment="number of the alert"),
    Column("at", UtcDateTime, nullable=False, comment="time of the change"),
    Column(
        "kind",
        Text,
        nullable=False,
        comment="delivery_dead, breaker_open, retired, backlog_old, source_silent, webhooks_missed, sweep_failed, step_failed or"
        " intake_stopped",
    ),
    Column("subject", Text, nullable=False, comment="subject, such as a destination's name"),
    Column("firing", Boolean, nullable=False, comment="true: it began; false: it recovered"),
    Column("detail", JsonValue, nullable=False, comment="figures and causes"),
    Column("told_at", UtcDateTime, comment="time at which a relay wrote it to its log"),
    Column(
        "post_after",
        UtcDateTime,
        comment="earliest time of the next post, while another relay posts it or after a failure",
    ),
    Column("sent_at", UtcDateTime, comment="time of posting to the alerts url; empty when none is configured"),
    Column(
        "is_unsendable",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="true: it can't be posted, and is not tried again",
    ),
    Column("error", Text, comment="error of the last post"),
    Index("ix_alert_subject", "kind", "subject", "id"),
    Index("ix_alert_untold", "id", postgresql_where=text("told_at IS NULL"), sqlite_where=text("told_at IS NULL")),
    Index("ix_alert_unsent", "at", postgresql_where=text("sent_at IS NULL"), sqlite_where=text("sent_at IS NULL")),
    comment="One row when a problem begins and one when it ends, never a second while it lasts.",
    sqlite_autoincrement=True,
)

order_lock = Table(
    "order_lock",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    CheckConstraint("id = 1", name="one_row"),
    comment="One row, locked by every transaction that ends or makes the head of a lane.",
)

sweep_watermark = Table(
    "sweep_watermark",
    metadata,
    Column("source", Text, nullable=False, comment="the source that was swept"),
    Column("entity_type", Text, nullable=False, comment="kind of entity"),
    Column(
        "compared_until",
        UtcDateTime,
        comment="every change up to here has been compared with the inbox; empty: no sweep has finished yet",
    ),
    Column("swept_at", UtcDateTime, comment="time at which the last sweep ended or failed; database clock"),
    Column("missed", BigInteger, nullable=False, server_default=text("0"), comment="missing webhooks found in all"),
    Column("last_compared", BigInteger, comment="entities compared by the last sweep that finished"),
    Column("last_missed", BigInteger, comment="changes among them that no webhook reported"),
    Column("last_added", BigInteger, comment="events that it added for these"),
    Column("error", Text, comment="error of the last sweep; empty: it finished"),
    Column("lease_until", UtcDateTime, comment="while a relay sweeps: end of its lease; database clock"),
    Column("relay_node", Text, comment="while a relay sweeps: relay_node.id of the process"),
    PrimaryKeyConstraint("source", "entity_type"),
    comment="Watermark of the sweeps of a source, with the result of the last one and the relay that runs one.",
)

write_probe = Table(
    "write_probe",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    Column("probed_at", UtcDateTime, nullable=False, comment="time of the last health check"),
    CheckConstraint("id = 1", name="one_row"),
    comment="One row, written by health checks: a database that can be read but not written is not ready.",
)


def _readable_time(column: str) -> dict[str, str]:
    """Make each dialect's condition that a time is readable or null. An unreadable one would crash its readers."""
    first, last = "0001-01-01 00:00:00.000000Z", "9999-12-31 23:59:59.999999Z"
    day = f"substr({column}, 1, 10)"
    return {
        "postgresql": f"{column} BETWEEN '{first}' AND '{last}'",  # not 'infinity', nor a year outside datetime's range
        "sqlite": f"date({day}) IS {day} AND {column} >= '{first}'"
        f" AND (length({column}) = 10 OR substr({column}, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')",
    }


def _readable_object(column: str) -> dict[str, str]:
    """Make each dialect's condition that JSON is an object."""
    return {
        "postgresql": f"jsonb_typeof({column}) = 'object'",
        "sqlite": f"{column} IS NULL OR CASE WHEN json_valid({column}) THEN json_type({column}) = 'object' ELSE 0 END",
    }


def _readable_list(column: str) -> dict[str, str]:
    """Make each dialect's condition that a value is a list without nulls."""
    return {
        "postgresql": f"array_position({column}, NULL) IS NULL",  # an error for a list of lists
        "sqlite": f"CASE WHEN json_valid({column}) THEN json_type({column}) = 'array' ELSE 0 END",
    }


def _readable(column: Column[Any]) -> dict[str, str]:
    if isinstance(column.type, UtcDateTime):
        return _readable_time(column.name)
    if column.type is JsonValue:
        return _readable_object(column.name)
    return _readable_list(column.name) if column.type is TextList else {}


for _table in metadata.sorted_tables:
    for _column in list(_table.columns):
        for _dialect, _condition in _readable(_column).items():
            _table.append_constraint(
                CheckConstraint(_condition, name=f"{_column.name}_is_readable").ddl_if(dialect=_dialect)
            )
