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
from sqlalchemy.sql import ColumnElement
from sqlalchemy.types import TypeEngine

from inbox.db.columns import BigId, DatabaseRole, DatabaseTime, JsonValue, TextList, UtcDateTime, readable
from inbox.events.commands import COMMAND_KINDS, COMMAND_STATES, KEYS, OPEN_COMMANDS
from inbox.events.states import HEADS, OPEN_STATES, SUSPECT_CRASHES, THROUGHPUT_KINDS

_Type = type[TypeEngine[Any]] | TypeEngine[Any]

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

PRUNED = {"autovacuum_vacuum_scale_factor": 0.02}
"""Storage of rows that retention deletes: VACUUM frees them for new rows at 2 % of the table, not at 20 %."""


def _number(name: str, comment: str) -> Column[int]:
    """Make a primary key that counts up by itself."""
    return Column(name, BigId, primary_key=True, autoincrement=True, comment=comment)


def _required(name: str, kind: _Type, comment: str, *, default: str | ColumnElement[Any] | None = None) -> Column[Any]:
    """Make a column that is never empty; `default` is an SQL expression."""
    given = text(default) if isinstance(default, str) else default
    return Column(name, kind, nullable=False, server_default=given, comment=comment)


def _optional(name: str, kind: _Type, comment: str) -> Column[Any]:
    return Column(name, kind, comment=comment)


def _count(name: str, kind: _Type, comment: str) -> Column[Any]:
    return _required(name, kind, comment, default="0")


def _partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


def _one_of(states: Iterable[str]) -> str:
    return ", ".join(f"'{state}'" for state in states)


inbox = Table(
    "inbox",
    metadata,
    _number("seq", "number of the event in arrival order; gaps mean nothing"),
    _required("source", Text, "sender: a name of [sources] in inbox.toml"),
    _required(
        "dedup_key",
        Text,
        "key of the event: a request of the source with the same key is a duplicate; it has a digest in place of an entity's id",
    ),
    _optional("entity_type", Text, "type of the entity that changed, such as USER; empty when the event has no entity"),
    _optional("entity_id", Text, "id of the entity that changed, as the source gives it; a pseudonym after erasure"),
    _required("event_type", Text, "event type, verbatim from the sender"),
    _required("action", Text, "effect on the entity: create, update, delete or other"),
    _optional("event_id", Text, "the sender's own id of the event, if any"),
    _required("occurred_at", UtcDateTime, "the event's own time, to the microsecond"),
    _required("received_at", UtcDateTime, "time at which the receiver had read the request"),
    _required("routes", TextList, "names of the routes that matched when it arrived; empty: unrouted"),
    _required("content_type", Text, "Content-Type of the body"),
    _required("body_bytes", Integer, "size of the body in bytes; stays after its payload is gone"),
    _required(
        "body_is_text", Boolean, "true: the body is UTF-8 without NUL; the view event has it as text", default="false"
    ),
    _required("body_sha256", LargeBinary, "SHA-256 of the body; stays after its payload is gone"),
    _optional("traceparent", Text, "W3C trace context of the request; empty after erasure"),
    _optional(
        "erased_at",
        UtcDateTime,
        "time at which the entity was erased: entity_id is a pseudonym, and nothing else names it",
    ),
    UniqueConstraint("source", "dedup_key"),
    Index("ix_inbox_entity", "source", "entity_type", "entity_id", "seq"),
    CheckConstraint("action IN ('create', 'update', 'delete', 'other')", name="action"),
    comment="One row per accepted webhook, immutable. Written by the receiver before it answers 200.",
    postgresql_with=PRUNED,
    sqlite_autoincrement=True,  # a number is never used again, even when the newest row is pruned
)

inbox_payload = Table(
    "inbox_payload",
    metadata,
    Column("seq", BigId, primary_key=True, autoincrement=False, comment="the event: inbox.seq"),
    _required("headers", JsonValue, "allow-listed request headers"),
    _required("body", LargeBinary, "body of the request, byte for byte"),
    comment="Headers and body of each event, until retention or erasure deletes them. The views and commands join it by seq.",
    # ranges of seq, as retention gives the space of a whole range back at once: see inbox.db.leaves
    postgresql_partition_by="RANGE (seq)",
)

duplicate_request = Table(
    "duplicate_request",
    metadata,
    _number("id", "number of the duplicate"),
    _required("seq", BigInteger, "the event that it duplicates: inbox.seq"),
    _required("received_at", UtcDateTime, "time of its arrival"),
    _required("body_sha256", LargeBinary, "SHA-256 of its body"),
    _optional("body", LargeBinary, "its body, only when it differs from the event's"),
    _optional("handled_at", UtcDateTime, "time at which a relay judged it; empty: not judged yet"),
    _required(
        "times",
        BigInteger,
        "number of requests in this row: after the first 20 of an event, further ones are only counted",
        default="1",
    ),
    _optional("last_received_at", UtcDateTime, "if times is more than 1: time of the last arrival"),
    _optional("error", Text, "reason why it could not be judged; clear it to have it judged again"),
    Index("ix_duplicate_request_seq", "seq"),
    _partial_index("ix_duplicate_request_open", "seq", where="handled_at IS NULL"),
    comment="A duplicate: a request whose key is already stored. The answer was 200 with the stored seq. sum(times) counts them.",
    postgresql_with=PRUNED,
    sqlite_autoincrement=True,
)

rejected_request = Table(
    "rejected_request",
    metadata,
    _number("id", "number of the rejected request"),
    _required("received_at", UtcDateTime, "time of its arrival"),
    _required("source", Text, "source in the URL, known or unknown"),
    _required("status", Integer, "HTTP status of the answer"),
    _required("cause", Text, "cause in one word, as in the metrics"),
    _required("reason", Text, "reason in one sentence"),
    _optional("field", Text, "invalid field, if any"),
    _optional("remote_address", Text, "address of the client"),
    _optional("headers", JsonValue, "allow-listed request headers, only of an authenticated sender"),
    _required("body_sha256", LargeBinary, "SHA-256 of the body"),
    _optional("body", LargeBinary, "the body, only of an authenticated sender, so that it can be readmitted"),
    _optional("readmitted_at", UtcDateTime, "time at which an operator readmitted it; empty: not readmitted"),
    _optional(
        "readmitted_seq",
        BigInteger,
        "the event that it became or duplicates: inbox.seq; the first, when its body has several",
    ),
    _optional("readmitted_by", Text, "operator who readmitted it"),
    _optional("readmit_reason", Text, "reason for readmitting it"),
    # They count the newest rows of each class for the caps of [retention].
    _partial_index("ix_rejected_request_whole", "id", where="body IS NOT NULL"),
    _partial_index("ix_rejected_request_bare", "id", where="body IS NULL"),
    comment="A rejected request. Each receiver process stores at most 10 a second; beyond that only metrics count them.",
    postgresql_with=PRUNED,
    sqlite_autoincrement=True,
)

FIRST_DUE, LAST_DUE = "1970-01-01 00:00:00.000000Z", "9000-01-01 00:00:00.000000Z"

open_delivery = Table(
    "open_delivery",
    metadata,
    _required("seq", BigInteger, "the event: inbox.seq"),
    _required("route", Text, "the route it takes: a name of [routes] in inbox.toml"),
    _required("lane", Text, "the unit of order on the route: TYPE|ID of the entity, * or the event itself"),
    _required("occurred_at", UtcDateTime, "copy of inbox.occurred_at: order in the lane, before seq"),
    _required("state", Text, "received, waiting (behind its head), ready, in_flight, blocked or dead"),
    _count("attempt", Integer, "attempts used in this run"),
    _count("run", Integer, "number of times it was replayed or re-armed"),
    _count("crashes", Integer, "attempts in a row whose lease expired"),
    _optional("due_at", UtcDateTime, "if ready: time of the next attempt; database clock"),
    _optional("lease_until", UtcDateTime, "if in_flight: end of the lease; database clock"),
    _optional(
        "lease_token", BigInteger, "if in_flight: fencing token of the claim; a result with another token is discarded"
    ),
    _optional("relay_node", Text, "if in_flight: relay_node.id of the process that delivers it"),
    PrimaryKeyConstraint("seq", "route"),
    CheckConstraint(f"state IN ({_one_of(OPEN_STATES)})", name="state"),
    CheckConstraint("(state = 'ready') = (due_at IS NOT NULL)", name="due_when_ready"),
    # 'infinity', or a year outside datetime's range, could not be read.
    CheckConstraint(f"due_at BETWEEN '{FIRST_DUE}' AND '{LAST_DUE}'", name="due_at"),
    CheckConstraint(
        "(state = 'in_flight') = (lease_until IS NOT NULL AND lease_token IS NOT NULL AND relay_node IS NOT NULL)",
        name="leased_when_in_flight",
    ),
    # The database itself keeps the invariant of order: one head per lane.
    _partial_index("ux_open_delivery_head", "route", "lane", where=f"state IN ({_one_of(HEADS)})", unique=True),
    _partial_index("ix_open_delivery_received", "seq", where="state = 'received'"),
    _partial_index("ix_open_delivery_ready", "route", "due_at", "seq", where="state = 'ready'"),
    _partial_index(
        "ix_open_delivery_suspect", "due_at", "seq", where=f"state = 'ready' AND crashes >= {SUSPECT_CRASHES}"
    ),
    _partial_index("ix_open_delivery_waiting", "route", "lane", "occurred_at", "seq", where="state = 'waiting'"),
    _partial_index("ix_open_delivery_in_flight", "seq", "route", where="state = 'in_flight'"),
    _partial_index("ix_open_delivery_dead", "route", "lane", "occurred_at", "seq", where="state = 'dead'"),
    _partial_index(
        "ix_open_delivery_replayed", "route", where="run > 0 AND state IN ('received', 'waiting', 'ready', 'in_flight')"
    ),
    _partial_index("ix_open_delivery_given_up", "seq", "route", where="state IN ('dead', 'blocked')"),
    _partial_index("ix_open_delivery_blocked", "route", "lane", where="state = 'blocked'"),
    comment="Every open delivery. A projection of delivery_log: relay verify compares the two, relay rebuild repairs it.",
    postgresql_with=HOT,
)


lane = Table(
    "lane",
    metadata,
    _required("route", Text, "the route"),
    _required("lane", Text, "the lane, as in open_delivery"),
    _required("occurred_at", UtcDateTime, "time of the newest event delivered in this lane"),
    _required("seq", BigInteger, "the newest event delivered in this lane: inbox.seq"),
    _optional("fetch_began_at", UtcDateTime, "time at which that delivery fetched the entity; sync routes only"),
    _optional("last_modified", UtcDateTime, "the source's own time of the applied state"),
    _optional("applied_hash", LargeBinary, "SHA-256 of the data sent downstream"),
    _optional("etag", Text, "ETag of the entity in that state; only where the route fetches conditionally"),
    _optional(
        "etag_config", LargeBinary, "SHA-256 of the route as it was configured then: another one fetches it whole"
    ),
    _optional(
        "healing_seq",
        BigInteger,
        "while older dead deliveries of the lane are ended in batches: inbox.seq of the success that replaces them",
    ),
    PrimaryKeyConstraint("route", "lane"),
    _partial_index("ix_lane_healing", "route", "lane", where="healing_seq IS NOT NULL"),
    comment="Last delivery of each lane. One row per route and lane that ever succeeded; an event's own lane has none.",
    postgresql_with=HOT,
)

delivery_log = Table(
    "delivery_log",
    metadata,
    _number("id", "number of the fact"),
    _required("at", UtcDateTime, "time of recording; database clock"),
    _required("seq", BigInteger, "the event: inbox.seq"),
    _required("route", Text, "the route"),
    _required("kind", Text, "kind of fact; explained in docs/reference/states.md"),
    _required("attempt", Integer, "attempts used in this run at that time"),
    _optional("relay_node", Text, "relay_node.id of the process that recorded it; empty for an operator's command"),
    _required("detail", JsonValue, "calls, statuses, durations, error, next due time, operator and reason"),
    CheckConstraint(
        "kind IN ('delivered', 'unchanged', 'superseded', 'skipped', 'cancelled', 'attempt_failed', 'abandoned', 'took_over',"
        " 'rescheduled', 'dead', 'replayed', 'rearmed', 'unblocked', 'corrected', 'erased')",
        name="kind",
    ),
    Index("ix_delivery_log_delivery", "seq", "route", "id"),
    # Without autosummarize, a look at the last minute reads all that has been added since the last VACUUM.
    Index("ix_delivery_log_at", "at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    _partial_index("ix_delivery_log_attempt", "id", where="kind IN ('attempt_failed', 'abandoned')"),
    comment="Facts about deliveries, append-only. The state of every delivery is the fold of its facts.",
    postgresql_with=PRUNED,
    sqlite_autoincrement=True,
)

relay_node = Table(
    "relay_node",
    metadata,
    Column("id", Text, primary_key=True, comment="new at every start of a relay process"),
    _required("host", Text, "machine that it runs on"),
    _required("pid", Integer, "process id on that machine"),
    _required("version", Text, "version of Inbox Relay"),
    _required("started_at", UtcDateTime, "time of its start; database clock"),
    _required("heartbeat_at", UtcDateTime, "time of its last heartbeat; database clock"),
    _optional("stopped_at", UtcDateTime, "time of a graceful stop; empty while it runs or if it died"),
    _optional(
        "routes", JsonValue, "routes of its configuration, each with the kinds and names of the gates on its way"
    ),
    _optional("failing", JsonValue, "steps that fail now, with the errors; empty: none"),
    Index("ix_relay_node_started_at", "started_at"),
    comment="One row per run of a relay process.",
    postgresql_with=HOT,
)

gate = Table(
    "gate",
    metadata,
    _required("kind", Text, "source, route, destination, api or entity"),
    _required("name", Text, "its name in inbox.toml; SOURCE|TYPE|ID for an entity"),
    _optional("paused_at", UtcDateTime, "time at which an operator paused it; empty: not paused"),
    _optional("paused_by", Text, "operator who paused it"),
    _optional("pause_reason", Text, "reason for the pause"),
    _required("breaker", Text, "closed, open, half_open or retired", default="'closed'"),
    _optional("breaker_until", UtcDateTime, "if open: time of the next probe; database clock"),
    _optional("breaker_cause", Text, "cause of its opening"),
    _count("open_count", Integer, "number of times it opened in a row; each doubles the open time"),
    _count("failures", Integer, "failed calls in the present window"),
    _count("calls", Integer, "calls in the present window"),
    _optional("window_began_at", UtcDateTime, "start of the present window"),
    _optional(
        "rate_used_until",
        UtcDateTime,
        "rate limit: time until which calls have used it up; no call goes out while it is more than a burst ahead",
    ),
    _optional(
        "held_until", UtcDateTime, "rate hold: time until which the endpoint asked for no further call; database clock"
    ),
    _optional("hold_reason", Text, "header that asked for it"),
    PrimaryKeyConstraint("kind", "name"),
    CheckConstraint("kind IN ('source', 'route', 'destination', 'api', 'entity')", name="kind"),
    CheckConstraint("breaker IN ('closed', 'open', 'half_open', 'retired')", name="breaker"),
    comment="Gates in front of deliveries: pauses, circuit breakers and rate limits, shared by all relays.",
    postgresql_with=HOT,
)

relay_command = Table(
    "relay_command",
    metadata,
    _number("id", "number of the command"),
    _required("kind", Text, ", ".join(COMMAND_KINDS[:-1]) + f" or {COMMAND_KINDS[-1]}"),
    _required("selection", JsonValue, f"what it is about, as a JSON object: {', '.join(KEYS)}", default="'{}'"),
    _required("reason", Text, "reason given by the operator"),
    _required("asked_by", Text, "operator; by default the database role", default=DatabaseRole()),
    _required("asked_at", UtcDateTime, "time of the request; database clock", default=DatabaseTime()),
    _required("dry_run", Boolean, "true: only answer what it would change", default="false"),
    _required("state", Text, "asked, running, done, failed, refused or cancelled", default="'asked'"),
    _optional("progress_seq", BigInteger, "progress: everything up to this seq is done"),
    _count("affected", BigInteger, "deliveries changed so far; rows, for a command of another kind"),
    _optional("finished_at", UtcDateTime, "time of its end"),
    _optional("answer", Text, "answer of the daemon"),
    _optional(
        "matched",
        BigInteger,
        "number of deliveries or rows that it would change, by a dry run or the plan before; empty: unknown",
    ),
    _optional("sample", JsonValue, "of a dry run: groups, the first deliveries, what is left out, and consequences"),
    _count("failed", BigInteger, "deliveries that could not be changed"),
    _optional("error", Text, "last delivery that could not be changed, with its error"),
    CheckConstraint(f"kind IN ({_one_of(COMMAND_KINDS)})", name="kind"),
    CheckConstraint(f"state IN ({_one_of(COMMAND_STATES)})", name="state"),
    CheckConstraint("trim(reason) <> ''", name="reason"),
    _partial_index("ix_relay_command_open", "id", where=f"state IN ({_one_of(OPEN_COMMANDS)})"),
    comment="Command of an operator, by SQL or command line; the daemon executes and answers it.",
    sqlite_autoincrement=True,
)

alert = Table(
    "alert",
    metadata,
    _number("id", "number of the alert"),
    _required("at", UtcDateTime, "time of the change"),
    _required(
        "kind",
        Text,
        "delivery_dead, breaker_open, retired, backlog_old, source_silent, webhooks_missed, sweep_failed, step_failed,"
        " intake_stopped or retention_behind",
    ),
    _required("subject", Text, "subject, such as a destination's name"),
    _required("firing", Boolean, "true: it began; false: it recovered"),
    _required("detail", JsonValue, "figures and causes"),
    _optional("told_at", UtcDateTime, "time at which a relay wrote it to its log"),
    _optional(
        "post_after", UtcDateTime, "earliest time of the next post, while another relay posts it or after a failure"
    ),
    _optional("sent_at", UtcDateTime, "time of posting to the alerts url; empty when none is configured"),
    _required("is_unsendable", Boolean, "true: it can't be posted, and is not tried again", default="false"),
    _optional("error", Text, "error of the last post"),
    Index("ix_alert_subject", "kind", "subject", "id"),
    _partial_index("ix_alert_untold", "id", where="told_at IS NULL"),
    _partial_index("ix_alert_unsent", "at", where="sent_at IS NULL"),
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

payload_lock = Table(
    "payload_lock",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    CheckConstraint("id = 1", name="one_row"),
    comment="One row. What opens deliveries of stored events shares its lock; what deletes payloads or events has it alone.",
)

sweep_watermark = Table(
    "sweep_watermark",
    metadata,
    _required("source", Text, "the source that was swept"),
    _required("entity_type", Text, "kind of entity"),
    _optional(
        "compared_until",
        UtcDateTime,
        "every change up to here has been compared with the inbox; empty: no sweep has finished yet",
    ),
    _optional("swept_at", UtcDateTime, "time at which the last sweep ended or failed; database clock"),
    _count("missed", BigInteger, "missing webhooks found in all"),
    _optional("last_compared", BigInteger, "entities compared by the last sweep that finished"),
    _optional("last_missed", BigInteger, "changes among them that no webhook reported"),
    _optional("last_added", BigInteger, "events that it added for these"),
    _optional("error", Text, "error of the last sweep; empty: it finished"),
    _optional("lease_until", UtcDateTime, "while a relay sweeps: end of its lease; database clock"),
    _optional("relay_node", Text, "while a relay sweeps: relay_node.id of the process"),
    _optional(
        "command_id", BigInteger, "command that asked for a sweep now: relay_command.id; empty once it has ended"
    ),
    PrimaryKeyConstraint("source", "entity_type"),
    comment="Watermark of the sweeps of a source, with the result of the last one and the relay that runs one.",
)

pruner = Table(
    "pruner",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    _optional("lease_until", UtcDateTime, "while somebody prunes: end of the lease; database clock"),
    _optional("held_by", Text, "while somebody prunes: relay_node.id of the relay, or the person, host and process"),
    _optional("ran_at", UtcDateTime, "time at which the last round ended; database clock"),
    _optional(
        "clock",
        UtcDateTime,
        "time that ages count from: the database clock, but after a step forward only a day for each hour",
    ),
    CheckConstraint("id = 1", name="one_row"),
    comment="One row: the relay or person that prunes, and the time that ages count from.",
    postgresql_with=HOT,
)

pruning = Table(
    "pruning",
    metadata,
    Column("kind", Text, primary_key=True, comment="kind of rows: a key of [retention] in inbox.toml"),
    _count("position", BigInteger, "number up to which expired rows are gone; what is left below has to stay"),
    _optional("lap_began_at", UtcDateTime, "time at which the walk last began at the first row; once a day"),
    _optional("pruned_until", UtcDateTime, "rows older than this have expired"),
    _count("rows", BigInteger, "rows pruned in all"),
    _count("bytes", BigInteger, "bytes in these rows, about; without indexes"),
    _optional("day_began_at", UtcDateTime, "beginning of the present day of the next four figures"),
    _count("rows_today", BigInteger, "rows pruned since then"),
    _count("rows_yesterday", BigInteger, "rows pruned on the day before"),
    _count("newest_at_begin", BigInteger, "highest number at the beginning of the day"),
    _count("arrived_yesterday", BigInteger, "numbers taken on the day before: about the rows that arrived"),
    _count("behind_seconds", BigInteger, "seconds for which the oldest expired row has been expired; 0: none is left"),
    _optional("behind_since", UtcDateTime, "time since which that is more than a day"),
    _optional("ran_at", UtcDateTime, "time of the last batch; database clock"),
    _count("passed_over", BigInteger, "rows that could not be deleted and were passed over, in the present lap"),
    _optional("error", Text, "error of the last batch that failed; empty: the last one went well"),
    comment="Progress of retention: one row for each kind of rows that expires.",
    postgresql_with=HOT,
)

write_probe = Table(
    "write_probe",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    _required("probed_at", UtcDateTime, "time of the last health check"),
    CheckConstraint("id = 1", name="one_row"),
    comment="One row, written by health checks: a database that can be read but not written is not ready.",
)

throughput_minute = Table(
    "throughput_minute",
    metadata,
    _required("kind", Text, "source, route or destination"),
    _required("name", Text, "its name in inbox.toml; (unknown) for all unknown sources together"),
    _required(
        "outcome",
        Text,
        "of a source: stored, duplicate, swept (added by a sweep), rejected or unavailable (answered with 503); of a route or"
        " destination: a kind of fact, as in delivery_log",
    ),
    _required("minute", UtcDateTime, "beginning of the minute; database clock"),
    _count("count", BigInteger, "events, requests or facts in this minute"),
    _count("bytes", BigInteger, "bytes of the bodies that were stored; 0 for routes and destinations"),
    # The look of a view is one range: of one outcome, or of all in some minutes.
    PrimaryKeyConstraint("kind", "name", "outcome", "minute"),
    Index("ix_throughput_minute_minute", "minute"),
    CheckConstraint(f"kind IN ({_one_of(THROUGHPUT_KINDS)})", name="kind"),
    comment="Figures of each minute, added up by receivers and relays about every ten seconds. Figures, not facts: a process"
    " that is killed takes its last ones with it.",
    postgresql_with=HOT,
)


payload_reveal = Table(
    "payload_reveal",
    metadata,
    _number("id", "number of the reveal"),
    _required("at", UtcDateTime, "time of the reveal; database clock"),
    _required("seq", BigInteger, "the event whose headers and body were shown: inbox.seq"),
    _required("who", Text, "person or program that saw them, as the operator's page knows it"),
    _required("reason", Text, "reason that it gave"),
    CheckConstraint("trim(who) <> ''", name="who"),
    CheckConstraint("trim(reason) <> ''", name="reason"),
    Index("ix_payload_reveal_seq", "seq"),
    comment="One row each time that the operator's page showed the headers and body of an event, written before it did.",
    postgresql_with=PRUNED,
    sqlite_autoincrement=True,
)


for _table in metadata.sorted_tables:
    for _column in list(_table.columns):
        for _dialect, _condition in readable(_column).items():
            _table.append_constraint(
                CheckConstraint(_condition, name=f"{_column.name}_is_readable").ddl_if(dialect=_dialect)
            )
