"""Every table of both sides. Names are public: DBAs write queries against them.

A change here needs a migration, a changelog line and a reason. Append-only tables hold facts, small hot tables hold the
work; what refuses changes to the append-only ones stands in `inbox.db.views`, beside the views.
"""

from __future__ import annotations

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

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

HOT = {"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.02, "autovacuum_vacuum_cost_delay": 0}
"""Rows that change often leave room on their page for the next version, and are vacuumed early."""

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
    Column("source", Text, nullable=False, comment="who sent it: a name of [sources] in inbox.toml"),
    Column("dedup_key", Text, nullable=False, comment="what makes two requests of a source the same event"),
    Column(
        "entity_type", Text, comment="kind of the entity that changed, such as USER; empty when the event is about none"
    ),
    Column("entity_id", Text, comment="the source's id of the entity that changed"),
    Column("event_type", Text, nullable=False, comment="the sender's word for what happened, verbatim"),
    Column("action", Text, nullable=False, comment="what happened, in our words: create, update, delete or other"),
    Column("event_id", Text, comment="the sender's own id of the event, where it has one"),
    Column("occurred_at", UtcDateTime, nullable=False, comment="the event's own time, to the microsecond"),
    Column("received_at", UtcDateTime, nullable=False, comment="when the receiver had read the request"),
    Column(
        "routes", TextList, nullable=False, comment="names of the routes that matched when it arrived; empty: unrouted"
    ),
    Column("headers", JsonValue, comment="allow-listed request headers; empty after erasure or retention"),
    Column("content_type", Text, nullable=False, comment="Content-Type of the body"),
    Column(
        "body", LargeBinary, comment="the request's body, byte for byte: the truth; empty after erasure or retention"
    ),
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
    Column("id", BigId, primary_key=True, autoincrement=True, comment="number of the repeat"),
    Column("seq", BigInteger, nullable=False, comment="the event it repeats: inbox.seq"),
    Column("received_at", UtcDateTime, nullable=False, comment="when the repeat arrived"),
    Column("body_sha256", LargeBinary, nullable=False, comment="SHA-256 of the repeat's body"),
    Column("body", LargeBinary, comment="the repeat's body, only when it differs from the event's"),
    Column("handled_at", UtcDateTime, comment="when the relay judged it; empty: not judged yet"),
    Column(
        "times",
        BigInteger,
        nullable=False,
        server_default=text("1"),
        comment="requests that this row stands for: after the first 20 of an event, further ones are only counted here",
    ),
    Column("last_received_at", UtcDateTime, comment="when times is more than 1: when the last of them arrived"),
    Column("error", Text, comment="why it could not be judged; emptied, it is judged again"),
    Index("ix_duplicate_request_seq", "seq"),
    Index(
        "ix_duplicate_request_open",
        "seq",
        postgresql_where=text("handled_at IS NULL"),
        sqlite_where=text("handled_at IS NULL"),
    ),
    comment="A request whose key was in the inbox already. It was answered 200 with the first one's seq. sum(times) counts them.",
    sqlite_autoincrement=True,
)

rejected_request = Table(
    "rejected_request",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True, comment="number of the refusal"),
    Column("received_at", UtcDateTime, nullable=False, comment="when it arrived"),
    Column("source", Text, nullable=False, comment="the source named in the URL, known or not"),
    Column("status", Integer, nullable=False, comment="HTTP status it was answered with"),
    Column("cause", Text, nullable=False, comment="why, in one word; the same word as in the metrics"),
    Column("reason", Text, nullable=False, comment="why, in one sentence"),
    Column("field", Text, comment="the field that was wrong"),
    Column("remote_address", Text, comment="who connected"),
    Column("headers", JsonValue, comment="allow-listed request headers, only of an authenticated sender"),
    Column("body_sha256", LargeBinary, nullable=False, comment="SHA-256 of the body"),
    Column("body", LargeBinary, comment="the body, only of an authenticated sender, so that it can be readmitted"),
    Column("readmitted_at", UtcDateTime, comment="when a person took it in after all; empty: nobody has"),
    Column(
        "readmitted_seq",
        BigInteger,
        comment="the event it became, or repeated: inbox.seq; the first, when its body holds several",
    ),
    Column("readmitted_by", Text, comment="who took it in"),
    Column("readmit_reason", Text, comment="why it was taken in after all"),
    comment="A request that was refused. Each receiver process keeps at most 10 a second; beyond that only counters move.",
    sqlite_autoincrement=True,
)

SUSPECT_CRASHES = 2
"""A delivery whose lease ran out so many times in a row may be what kills the process: a relay works on one at a time."""

OPEN_STATES = ("received", "waiting", "ready", "in_flight", "blocked", "dead")

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
        comment="copy of inbox.occurred_at: a lane is worked in this order, then seq",
    ),
    Column(
        "state", Text, nullable=False, comment="received, waiting (behind its head), ready, in_flight, blocked or dead"
    ),
    Column("attempt", Integer, nullable=False, server_default=text("0"), comment="attempts used in this run"),
    Column("run", Integer, nullable=False, server_default=text("0"), comment="how often it was replayed or re-armed"),
    Column(
        "crashes", Integer, nullable=False, server_default=text("0"), comment="attempts in a row whose lease ran out"
    ),
    Column("due_at", UtcDateTime, comment="when ready: not to be attempted before; database clock"),
    Column("lease_until", UtcDateTime, comment="when in_flight: another relay may take it after; database clock"),
    Column(
        "lease_token",
        BigInteger,
        comment="when in_flight: fresh for each claim; a result with another token is discarded",
    ),
    Column("relay_node", Text, comment="when in_flight: relay_node.id of the process that works on it"),
    PrimaryKeyConstraint("seq", "route"),
    CheckConstraint("state IN ('received', 'waiting', 'ready', 'in_flight', 'blocked', 'dead')", name="state"),
    CheckConstraint("(state = 'ready') = (due_at IS NOT NULL)", name="due_when_ready"),
    # 'infinity', or a year that no datetime has, could not be read.
    CheckConstraint(f"due_at BETWEEN '{FIRST_DUE}' AND '{LAST_DUE}'", name="due_at"),
    CheckConstraint(
        "(state = 'in_flight') = (lease_until IS NOT NULL AND lease_token IS NOT NULL AND relay_node IS NOT NULL)",
        name="leased_when_in_flight",
    ),
    comment="Every delivery that has not ended. A projection: relay verify compares it with delivery_log, relay rebuild mends it.",
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


# The invariant of order, kept by the database itself: one head per lane.
_open_index("ux_open_delivery_head", "route", "lane", where="state IN ('ready', 'in_flight', 'blocked')", unique=True)
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
    Column("fetch_began_at", UtcDateTime, comment="when the entity was asked for, for that delivery; sync routes only"),
    Column("last_modified", UtcDateTime, comment="the source's own time of the state that was applied"),
    Column("applied_hash", LargeBinary, comment="SHA-256 of what was sent downstream"),
    Column(
        "healing_seq",
        BigInteger,
        comment="while older dead deliveries of the lane are being ended, batch by batch: the success that stands for them",
    ),
    PrimaryKeyConstraint("route", "lane"),
    comment="What was last delivered in a lane. One row per route and lane that ever succeeded; an event's own lane has none.",
    postgresql_with=HOT,
)

_HEALING = text("healing_seq IS NOT NULL")
Index("ix_lane_healing", lane.c.route, lane.c.lane, postgresql_where=_HEALING, sqlite_where=_HEALING)

delivery_log = Table(
    "delivery_log",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True, comment="number of the fact"),
    Column("at", UtcDateTime, nullable=False, comment="when it was recorded; database clock"),
    Column("seq", BigInteger, nullable=False, comment="the event: inbox.seq"),
    Column("route", Text, nullable=False, comment="the route"),
    Column("kind", Text, nullable=False, comment="what happened; the words are explained in docs/states.md"),
    Column("attempt", Integer, nullable=False, comment="attempts used in this run when it happened"),
    Column("relay_node", Text, comment="relay_node.id of the process that recorded it; empty for a person's act"),
    Column(
        "detail", JsonValue, nullable=False, comment="calls, statuses, durations, error, next due time, who and why"
    ),
    CheckConstraint(
        "kind IN ('delivered', 'unchanged', 'superseded', 'skipped', 'cancelled', 'attempt_failed', 'abandoned', 'took_over',"
        " 'rescheduled', 'dead', 'replayed', 'rearmed', 'unblocked', 'corrected')",
        name="kind",
    ),
    Index("ix_delivery_log_delivery", "seq", "route", "id"),
    Index("ix_delivery_log_at", "at", postgresql_using="brin"),
    comment="The facts: everything that happened to a delivery, append-only. The state of every delivery follows from them.",
    sqlite_autoincrement=True,
)

relay_node = Table(
    "relay_node",
    metadata,
    Column("id", Text, primary_key=True, comment="fresh at every start of a relay process"),
    Column("host", Text, nullable=False, comment="the machine it runs on"),
    Column("pid", Integer, nullable=False, comment="its process id there"),
    Column("version", Text, nullable=False, comment="version of Inbox Relay it runs"),
    Column("started_at", UtcDateTime, nullable=False, comment="when it started; database clock"),
    Column("heartbeat_at", UtcDateTime, nullable=False, comment="when it last said that it lives; database clock"),
    Column("stopped_at", UtcDateTime, comment="when it stopped in order; empty while it runs or when it died"),
    Column("failing", JsonValue, comment="its steps that fail now, and why; empty: none does"),
    comment="One row per run of a relay process.",
    postgresql_with=HOT,
)

gate = Table(
    "gate",
    metadata,
    Column("kind", Text, nullable=False, comment="source, route, destination, api or entity"),
    Column("name", Text, nullable=False, comment="its name in inbox.toml; SOURCE|TYPE|ID for an entity"),
    Column("paused_at", UtcDateTime, comment="since when a person holds it back; empty: not paused"),
    Column("paused_by", Text, comment="who paused it"),
    Column("pause_reason", Text, comment="why it was paused"),
    Column(
        "breaker", Text, nullable=False, server_default=text("'closed'"), comment="closed, open, half_open or retired"
    ),
    Column("breaker_until", UtcDateTime, comment="when open: a probe may go out after; database clock"),
    Column("breaker_cause", Text, comment="what opened it"),
    Column(
        "open_count",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="times it opened in a row: the open time doubles",
    ),
    Column("failures", Integer, nullable=False, server_default=text("0"), comment="failed calls in the present window"),
    Column("calls", Integer, nullable=False, server_default=text("0"), comment="calls in the present window"),
    Column("window_began_at", UtcDateTime, comment="when the present window began"),
    Column(
        "rate_used_until",
        UtcDateTime,
        comment="rate limit: until when the calls so far use it up; beyond a burst in the future, none goes out",
    ),
    PrimaryKeyConstraint("kind", "name"),
    CheckConstraint("kind IN ('source', 'route', 'destination', 'api', 'entity')", name="kind"),
    CheckConstraint("breaker IN ('closed', 'open', 'half_open', 'retired')", name="breaker"),
    comment="What holds deliveries back besides their order: pauses, circuit breakers and rate limits, shared by all relays.",
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
        comment="what it is about: route, seq, source, entity_type, entity_id, cause, since; force; destination, api",
    ),
    Column("reason", Text, nullable=False, comment="why, in the words of whoever asked"),
    Column("asked_by", Text, nullable=False, comment="who asked"),
    Column("asked_at", UtcDateTime, nullable=False, comment="when it was asked"),
    Column(
        "state",
        Text,
        nullable=False,
        server_default=text("'asked'"),
        comment="asked, running, done, failed or cancelled",
    ),
    Column("progress_seq", BigInteger, comment="how far it has come: everything up to this seq is done"),
    Column(
        "affected", BigInteger, nullable=False, server_default=text("0"), comment="deliveries it has changed so far"
    ),
    Column("finished_at", UtcDateTime, comment="when it ended"),
    Column("answer", Text, comment="what the daemon answers"),
    Column(
        "failed", BigInteger, nullable=False, server_default=text("0"), comment="deliveries that could not be changed"
    ),
    Column("error", Text, comment="the last delivery that could not be changed, and why"),
    CheckConstraint("kind IN ('replay', 'cancel', 'unblock', 'pause', 'resume')", name="kind"),
    CheckConstraint("state IN ('asked', 'running', 'done', 'failed', 'cancelled')", name="state"),
    Index(
        "ix_relay_command_open",
        "id",
        postgresql_where=text("state IN ('asked', 'running')"),
        sqlite_where=text("state IN ('asked', 'running')"),
    ),
    comment="What an operator asks the relay to do, by SQL or command; executed and answered by the daemon.",
    sqlite_autoincrement=True,
)

alert = Table(
    "alert",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True, comment="number of the alert"),
    Column("at", UtcDateTime, nullable=False, comment="when it changed"),
    Column(
        "kind",
        Text,
        nullable=False,
        comment="delivery_dead, breaker_open, retired, backlog_old, source_silent, webhooks_missed, sweep_failed, step_failed or"
        " intake_stopped",
    ),
    Column("subject", Text, nullable=False, comment="what it is about, such as a destination's name"),
    Column("firing", Boolean, nullable=False, comment="true: it began; false: it recovered"),
    Column("detail", JsonValue, nullable=False, comment="figures and causes"),
    Column("told_at", UtcDateTime, comment="when a relay wrote it to its log"),
    Column("post_after", UtcDateTime, comment="not posted before this: another relay may be doing it, or it failed"),
    Column("sent_at", UtcDateTime, comment="when it was posted to the alerts url; empty when none is configured"),
    Column(
        "is_unsendable",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="true: it can't be posted, and is not tried again",
    ),
    Column("error", Text, comment="why it is unsent"),
    Index("ix_alert_subject", "kind", "subject", "id"),
    Index("ix_alert_untold", "id", postgresql_where=text("told_at IS NULL"), sqlite_where=text("told_at IS NULL")),
    Index("ix_alert_unsent", "at", postgresql_where=text("sent_at IS NULL"), sqlite_where=text("sent_at IS NULL")),
    comment="One row per change for the worse or back, never a second while it lasts.",
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
        comment="every change up to here has been compared with the inbox; empty: no sweep has come to its end yet",
    ),
    Column("swept_at", UtcDateTime, comment="when the last sweep ended, well or not; database clock"),
    Column("missed", BigInteger, nullable=False, server_default=text("0"), comment="webhooks found missing, ever"),
    Column("last_compared", BigInteger, comment="entities that the last sweep which came to its end compared"),
    Column("last_missed", BigInteger, comment="of these, changes that no webhook had told"),
    Column("last_added", BigInteger, comment="events that it added for them"),
    Column("error", Text, comment="why the last sweep could not come to its end; empty: it did"),
    Column("lease_until", UtcDateTime, comment="while a relay sweeps: another may after; database clock"),
    Column("relay_node", Text, comment="while a relay sweeps: relay_node.id of the process"),
    PrimaryKeyConstraint("source", "entity_type"),
    comment="How far the sweep has compared a source with the inbox, what the last one found, and who is at it.",
)

write_probe = Table(
    "write_probe",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    Column("probed_at", UtcDateTime, nullable=False, comment="when a health check last wrote here"),
    CheckConstraint("id = 1", name="one_row"),
    comment="One row, written by health checks: a database that can be read but not written is not ready.",
)


def _readable_time(column: str) -> dict[str, str]:
    """For each dialect, a condition that a time, or none, can be read: what can't be would end who lists or works on it."""
    first, last = "0001-01-01 00:00:00.000000Z", "9999-12-31 23:59:59.999999Z"
    day = f"substr({column}, 1, 10)"
    return {
        "postgresql": f"{column} BETWEEN '{first}' AND '{last}'",  # not 'infinity', nor a year that no datetime has
        "sqlite": f"date({day}) IS {day} AND {column} >= '{first}'"
        f" AND (length({column}) = 10 OR substr({column}, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')",
    }


def _readable_object(column: str) -> dict[str, str]:
    """Likewise that JSON is an object."""
    return {
        "postgresql": f"jsonb_typeof({column}) = 'object'",
        "sqlite": f"{column} IS NULL OR CASE WHEN json_valid({column}) THEN json_type({column}) = 'object' ELSE 0 END",
    }


def _readable_list(column: str) -> dict[str, str]:
    """Likewise that a list is one, without gaps."""
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
