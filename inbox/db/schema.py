"""Tables of both programs. Their names are public: DBAs write queries against them.

Every change needs a migration and a changelog line. Append-only tables hold facts, protected by `inbox.db.triggers`;
small hot tables hold the work.
"""

from __future__ import annotations

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
)

from inbox.db.columns import (
    DATABASE_ROLE,
    DATABASE_TIME,
    HOT,
    PRUNED,
    BigId,
    JsonValue,
    TextList,
    UtcDateTime,
    checks,
    count,
    format_values,
    not_null,
    nullable,
    number,
    only_row,
    partial_index,
    readable,
    says_why,
)
from inbox.events.states import (
    COMMAND_KINDS,
    COMMAND_STATES,
    HEADS,
    LOGGED_STATES,
    MOST_REASON,
    MOST_WHO,
    OPEN_COMMANDS,
    OPEN_STATES,
    SUSPECT_CRASHES,
    THROUGHPUT_KINDS,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

inbox = Table(
    "inbox",
    metadata,
    number("seq", "number of the event in arrival order; gaps mean nothing"),
    not_null("source", Text, "sender: a name of [sources] in inbox.toml"),
    not_null(
        "dedup_key",
        Text,
        "key of the event: another request of the source with this key is a duplicate; has a digest in place of an entity's id",
    ),
    nullable("entity_type", Text, "type of the entity that changed, such as USER; empty when the event has no entity"),
    nullable("entity_id", Text, "id of the entity that changed, as the source gives it; a pseudonym after erasure"),
    not_null("event_type", Text, "event type, verbatim from the sender"),
    not_null("action", Text, "effect on the entity: create, update, delete or other"),
    nullable("event_id", Text, "the sender's own id of the event, if any"),
    not_null(
        "occurred_at",
        UtcDateTime,
        "the event's own time, to the microsecond; its arrival where it has no plausible one",
    ),
    not_null("received_at", UtcDateTime, "time at which the receiver had read the request"),
    not_null("routes", TextList, "names of the routes that matched when it arrived; empty: unrouted"),
    not_null("content_type", Text, "Content-Type of the body"),
    not_null("body_bytes", Integer, "size of the body in bytes; stays after its payload is gone"),
    not_null(
        "body_is_text", Boolean, "true: the body is UTF-8 without NUL; the view event has it as text", default="false"
    ),
    not_null("body_sha256", LargeBinary, "SHA-256 of the body; stays after its payload is gone"),
    nullable(
        "traceparent",
        Text,
        "W3C trace context of the request: of the receiver's span where that is sampled, else the sender's; empty after erasure",
    ),
    nullable(
        "erased_at",
        UtcDateTime,
        "time at which the entity was erased: entity_id is a pseudonym, and nothing else names it",
    ),
    UniqueConstraint("source", "dedup_key"),
    Index("ix_inbox_entity", "source", "entity_type", "entity_id", "seq"),
    partial_index("ix_inbox_event_id", "event_id", "seq", where="event_id IS NOT NULL"),
    CheckConstraint("action IN ('create', 'update', 'delete', 'other')", name="action"),
    comment="One row per accepted webhook, immutable. Written by the receiver before it answers 200.",
    postgresql_with=PRUNED,
    sqlite_autoincrement=True,  # numbers are never reused, even after pruning the newest row
)

inbox_payload = Table(
    "inbox_payload",
    metadata,
    Column("seq", BigId, primary_key=True, autoincrement=False, comment="the event: inbox.seq"),
    not_null("headers", JsonValue, "allow-listed request headers"),
    not_null("body", LargeBinary, "body of the request, byte for byte"),
    comment="Headers and body of each event, until retention or erasure deletes them. The views and commands join it by seq.",
    # by ranges of seq, whose space retention frees at once: see inbox.db.leaves
    postgresql_partition_by="RANGE (seq)",
)

edited_body = Table(
    "edited_body",
    metadata,
    number(
        "id", "number of the edited body, as in the selection of its replay and in the detail of its fact `replayed`"
    ),
    not_null("seq", BigInteger, "the event: inbox.seq"),
    not_null(
        "body", LargeBinary, "body that an operator wrote; a replay that names it delivers it in place of the event's"
    ),
    Index("ix_edited_body_seq", "seq"),
    comment="Edited bodies, append-only. The body of the event stays as it is, and both are deleted together.",
    sqlite_autoincrement=True,
)

duplicate_request = Table(
    "duplicate_request",
    metadata,
    number("id", "number of the duplicate"),
    not_null("seq", BigInteger, "the event that it duplicates: inbox.seq"),
    not_null("received_at", UtcDateTime, "time of its arrival"),
    not_null("body_sha256", LargeBinary, "SHA-256 of its body"),
    nullable("body", LargeBinary, "its body, only when it differs from the event's"),
    nullable("handled_at", UtcDateTime, "time at which a relay judged it; empty: not judged yet"),
    not_null(
        "times",
        BigInteger,
        "number of requests in this row: after the first 20 of an event, further ones are only counted",
        default="1",
    ),
    nullable("last_received_at", UtcDateTime, "if times is more than 1: time of the last arrival"),
    nullable("error", Text, "reason why it could not be judged; clear it to have it judged again"),
    Index("ix_duplicate_request_seq", "seq"),
    partial_index("ix_duplicate_request_open", "seq", where="handled_at IS NULL"),
    comment="A duplicate: a request whose key is already stored. The answer was 200 with the stored seq. sum(times) counts them.",
    postgresql_with=PRUNED,
    sqlite_autoincrement=True,
)

rejected_request = Table(
    "rejected_request",
    metadata,
    number("id", "number of the rejected request"),
    not_null("received_at", UtcDateTime, "time of its arrival"),
    not_null("source", Text, "source in the URL, known or unknown"),
    not_null("status", Integer, "HTTP status of the answer"),
    not_null("cause", Text, "cause in one word, as in the metrics"),
    not_null("reason", Text, "reason in one sentence"),
    nullable("field", Text, "invalid field, if any"),
    nullable("remote_address", Text, "address of the client"),
    nullable("headers", JsonValue, "allow-listed request headers, only of an authenticated sender"),
    not_null("body_sha256", LargeBinary, "SHA-256 of the body"),
    nullable("body", LargeBinary, "the body, only of an authenticated sender, so that it can be readmitted"),
    nullable("readmitted_at", UtcDateTime, "time at which an operator readmitted it; empty: not readmitted"),
    nullable(
        "readmitted_seq",
        BigInteger,
        "the event that it became or duplicates: inbox.seq; the first, when its body has several",
    ),
    nullable("readmitted_by", Text, "operator who readmitted it"),
    nullable("readmit_reason", Text, "reason for readmitting it"),
    # those that can be readmitted, among very many from strangers
    partial_index("ix_rejected_request_whole", "id", where="body IS NOT NULL"),
    comment="A rejected request. Each receiver process stores at most 10 a second; beyond that only metrics count them.",
    postgresql_with=PRUNED,
    sqlite_autoincrement=True,
)


FIRST_DUE, LAST_DUE = "1970-01-01 00:00:00.000000Z", "9000-01-01 00:00:00.000000Z"

open_delivery = Table(
    "open_delivery",
    metadata,
    not_null("seq", BigInteger, "the event: inbox.seq"),
    not_null("route", Text, "the route it takes: a name of [routes] in inbox.toml"),
    not_null("lane", Text, "the unit of order on the route: TYPE|ID of the entity, * or the event itself"),
    not_null("occurred_at", UtcDateTime, "copy of inbox.occurred_at: order in the lane, before seq"),
    not_null("state", Text, "received, waiting (behind its head), ready, in_flight, blocked or dead"),
    count("attempt", Integer, "attempts used in this run"),
    count("run", Integer, "number of times it was replayed or re-armed"),
    count("crashes", Integer, "attempts in a row whose lease expired"),
    nullable("due_at", UtcDateTime, "if ready: time of the next attempt; database clock"),
    nullable("lease_until", UtcDateTime, "if in_flight: end of the lease; database clock"),
    nullable(
        "lease_token", BigInteger, "if in_flight: fencing token of the claim; a result with another token is discarded"
    ),
    nullable("relay_node", Text, "if in_flight: relay_node.id of the process that delivers it"),
    PrimaryKeyConstraint("seq", "route"),
    CheckConstraint(f"state IN ({format_values(OPEN_STATES)})", name="state"),
    CheckConstraint("(state = 'ready') = (due_at IS NOT NULL)", name="due_when_ready"),
    # Excludes 'infinity' and years outside datetime's range, which can't be read.
    CheckConstraint(f"due_at BETWEEN '{FIRST_DUE}' AND '{LAST_DUE}'", name="due_at"),
    CheckConstraint(
        "(state = 'in_flight') = (lease_until IS NOT NULL AND lease_token IS NOT NULL AND relay_node IS NOT NULL)",
        name="leased_when_in_flight",
    ),
    # The database enforces the invariant of order: one head per lane.
    partial_index("ux_open_delivery_head", "route", "lane", where=f"state IN ({format_values(HEADS)})", unique=True),
    partial_index("ix_open_delivery_received", "seq", where="state = 'received'"),
    partial_index("ix_open_delivery_ready", "route", "due_at", "seq", where="state = 'ready'"),
    partial_index(
        "ix_open_delivery_suspect", "due_at", "seq", where=f"state = 'ready' AND crashes >= {SUSPECT_CRASHES}"
    ),
    partial_index("ix_open_delivery_waiting", "route", "lane", "occurred_at", "seq", where="state = 'waiting'"),
    partial_index("ix_open_delivery_in_flight", "seq", "route", where="state = 'in_flight'"),
    partial_index("ix_open_delivery_dead", "route", "lane", "occurred_at", "seq", where="state = 'dead'"),
    partial_index("ix_open_delivery_given_up", "seq", "route", where="state IN ('dead', 'blocked')"),
    partial_index("ix_open_delivery_blocked", "route", "lane", where="state = 'blocked'"),
    comment="Every open delivery. A projection of delivery_log: relay verify compares the two, relay rebuild repairs it.",
    postgresql_with=HOT,
)

lane = Table(
    "lane",
    metadata,
    not_null("route", Text, "the route"),
    not_null("lane", Text, "the lane, as in open_delivery"),
    not_null("occurred_at", UtcDateTime, "time of the newest event delivered in this lane"),
    not_null("seq", BigInteger, "the newest event delivered in this lane: inbox.seq"),
    nullable("fetch_began_at", UtcDateTime, "time at which that delivery fetched the entity; sync routes only"),
    nullable("last_modified", UtcDateTime, "the source's own time of the applied state"),
    nullable("applied_hash", LargeBinary, "SHA-256 of the data sent downstream"),
    PrimaryKeyConstraint("route", "lane"),
    comment="Last delivery of each lane. One row per route and lane that ever succeeded; an event's own lane has none.",
    postgresql_with=HOT,
)

delivery_log = Table(
    "delivery_log",
    metadata,
    number("id", "number of the fact"),
    not_null("at", UtcDateTime, "time of recording; database clock"),
    not_null("seq", BigInteger, "the event: inbox.seq"),
    not_null("route", Text, "the route"),
    not_null("kind", Text, "kind of fact; explained in docs/reference/states.md"),
    not_null("state", Text, "state of the delivery after it; ready and received are open"),
    not_null("attempt", Integer, "attempts used in this run after it"),
    count("run", Integer, "number of times that it had been replayed or re-armed"),
    count("crashes", Integer, "attempts in a row whose lease had expired"),
    nullable("relay_node", Text, "relay_node.id of the process that recorded it; empty for an operator's command"),
    not_null("detail", JsonValue, "calls, statuses, durations, error, next due time, operator and reason"),
    CheckConstraint(
        "kind IN ('delivered', 'unchanged', 'superseded', 'skipped', 'cancelled', 'attempt_failed', 'abandoned', 'took_over',"
        " 'rescheduled', 'dead', 'replayed', 'rearmed', 'unblocked', 'corrected', 'erased')",
        name="kind",
    ),
    CheckConstraint(f"state IN ({format_values(LOGGED_STATES)})", name="state"),
    Index("ix_delivery_log_delivery", "seq", "route", "id"),
    # Without autosummarize, a query of the last minute would read all rows added since the last VACUUM.
    Index("ix_delivery_log_at", "at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    partial_index("ix_delivery_log_attempt", "id", where="kind IN ('attempt_failed', 'abandoned', 'dead')"),
    comment="Facts about deliveries, append-only. The last fact of a delivery has its state.",
    postgresql_with=PRUNED,
    sqlite_autoincrement=True,
)

order_lock = Table(
    "order_lock",
    metadata,
    *only_row(),
    comment="One row, locked by every transaction that may end or create the head of a lane on any route.",
)

route_lock = Table(
    "route_lock",
    metadata,
    Column("route", Text, primary_key=True, comment="name of the route"),
    comment=(
        "One row for each route, locked by every transaction that ends or creates the head of a lane on it."
        " Added by relays, and never removed. Empty on SQLite."
    ),
)

route_failure = Table(
    "route_failure",
    metadata,
    Column("route", Text, primary_key=True, comment="name of the route"),
    not_null("kind", Text, "endpoint whose call failed last: destination or api"),
    not_null("name", Text, "its name in inbox.toml"),
    not_null("began_at", UtcDateTime, "time of the first failure since the last success; database clock"),
    count("failures", BigInteger, "attempts that failed since then"),
    not_null("seq", BigInteger, "event of the last one: inbox.seq"),
    CheckConstraint("kind IN ('destination', 'api')", name="kind"),
    comment="One row for each route whose last attempt failed. Its next success deletes it.",
    postgresql_with=HOT,
)

payload_lock = Table(
    "payload_lock",
    metadata,
    *only_row(),
    comment="One row. Transactions that open deliveries of stored events share its lock; those that delete payloads or"
    " events hold it alone.",
)

pruner = Table(
    "pruner",
    metadata,
    *only_row(),
    nullable("lease_until", UtcDateTime, "during pruning: end of the lease; database clock"),
    nullable("held_by", Text, "during pruning: relay_node.id of the relay, or the person, host and process"),
    nullable("ran_at", UtcDateTime, "time at which the last round ended; database clock"),
    nullable(
        "clock",
        UtcDateTime,
        "time from which ages count: the database clock; after a step forward, it catches up a day per hour",
    ),
    comment="One row: the relay or person that prunes, and the time from which ages count.",
    postgresql_with=HOT,
)

pruning = Table(
    "pruning",
    metadata,
    Column("kind", Text, primary_key=True, comment="kind of rows: a key of [retention] in inbox.toml"),
    count("position", BigInteger, "number up to which expired rows are gone; rows left below it must stay"),
    nullable("lap_began_at", UtcDateTime, "time at which the lap last began at the first row; once a day"),
    nullable("pruned_until", UtcDateTime, "rows older than this have expired"),
    count("rows", BigInteger, "rows pruned in all"),
    count("behind_seconds", BigInteger, "seconds since the oldest remaining row expired; 0: none is left"),
    nullable("behind_since", UtcDateTime, "time since which behind_seconds is more than a day"),
    nullable("ran_at", UtcDateTime, "time of the last batch; database clock"),
    count("passed_over", BigInteger, "rows that could not be deleted and were skipped, in the current lap"),
    nullable("error", Text, "error of the last batch; empty: it succeeded"),
    comment="Progress of retention: one row for each kind of rows that expires.",
    postgresql_with=HOT,
)

payload_reveal = Table(
    "payload_reveal",
    metadata,
    number("id", "number of the reveal"),
    not_null("at", UtcDateTime, "time of the reveal; database clock"),
    not_null("seq", BigInteger, "the event whose headers and body were shown: inbox.seq"),
    not_null("who", Text, "person or program that saw them, as the operator's page knows it"),
    not_null("reason", Text, "reason given"),
    CheckConstraint("trim(who) <> ''", name="who"),
    *says_why("reason"),
    Index("ix_payload_reveal_seq", "seq"),
    comment="One row each time the operator's page shows the headers and body of an event, written before it does.",
    postgresql_with=PRUNED,
    sqlite_autoincrement=True,
)

relay_node = Table(
    "relay_node",
    metadata,
    Column("id", Text, primary_key=True, comment="new at every start of a relay process"),
    not_null("host", Text, "machine that it runs on"),
    not_null("pid", Integer, "process id on that machine"),
    not_null("version", Text, "version of Inbox Relay"),
    not_null("started_at", UtcDateTime, "time of its start; database clock"),
    not_null("heartbeat_at", UtcDateTime, "time of its last heartbeat; database clock"),
    nullable("stopped_at", UtcDateTime, "time of a graceful stop; empty while it runs or if it died"),
    nullable("routes", JsonValue, "routes of its configuration, each with the kinds and names of the gates on its way"),
    nullable("config_hash", Text, "SHA-256 of the apis, destinations and routes that it runs with"),
    nullable("configured_at", UtcDateTime, "time at which it took up that configuration; database clock"),
    nullable("failing", JsonValue, "steps that fail now, with the errors; empty: none"),
    Index("ix_relay_node_started_at", "started_at"),
    comment="One row per run of a relay process.",
    postgresql_with=HOT,
)

gate = Table(
    "gate",
    metadata,
    not_null("kind", Text, "source, route, destination, api or entity"),
    not_null("name", Text, "its name in inbox.toml; SOURCE|TYPE|ID for an entity"),
    nullable("paused_at", UtcDateTime, "time at which an operator paused it; empty: not paused"),
    nullable("paused_by", Text, "operator who paused it"),
    nullable("pause_reason", Text, "reason for the pause"),
    not_null("breaker", Text, "closed, open, half_open or retired", default="'closed'"),
    nullable("breaker_until", UtcDateTime, "if open: time of the next probe; database clock"),
    nullable("breaker_cause", Text, "cause of its opening"),
    count("open_count", Integer, "number of times it opened in a row; each doubles the open time"),
    count("failures", Integer, "failed calls in the current window"),
    count("calls", Integer, "calls in the current window"),
    nullable("window_began_at", UtcDateTime, "start of the current window"),
    nullable(
        "rate_used_until",
        UtcDateTime,
        "rate limit: time until which calls have used it up; no call goes out while it is more than a burst ahead",
    ),
    nullable(
        "held_until", UtcDateTime, "rate hold: time until which the endpoint asked not to be called; database clock"
    ),
    nullable("hold_reason", Text, "header that asked for it"),
    PrimaryKeyConstraint("kind", "name"),
    CheckConstraint("kind IN ('source', 'route', 'destination', 'api', 'entity')", name="kind"),
    CheckConstraint("breaker IN ('closed', 'open', 'half_open', 'retired')", name="breaker"),
    comment="Gates in front of deliveries: pauses, circuit breakers and rate limits, shared by all relays.",
    postgresql_with=HOT,
)

relay_command = Table(
    "relay_command",
    metadata,
    number("id", "number of the command"),
    not_null("kind", Text, ", ".join(COMMAND_KINDS[:-1]) + f" or {COMMAND_KINDS[-1]}"),
    not_null("selection", JsonValue, "its selection, as a JSON object with the keys of its kind", default="'{}'"),
    not_null("reason", Text, "reason given by the operator"),
    not_null("asked_by", Text, "operator; by default the database role", default=DATABASE_ROLE),
    not_null("asked_at", UtcDateTime, "time of the request; database clock", default=DATABASE_TIME),
    not_null("dry_run", Boolean, "true: only answer what it would change", default="false"),
    not_null("state", Text, "asked, running, done, failed, refused or cancelled", default="'asked'"),
    nullable("progress_seq", BigInteger, "progress: everything up to this seq is done"),
    count("affected", BigInteger, "deliveries changed so far; rows, for a command of another kind"),
    nullable("finished_at", UtcDateTime, "time of its end"),
    nullable("answer", Text, "answer of the daemon"),
    nullable(
        "matched",
        BigInteger,
        "number of deliveries or rows that it would change, by a dry run or the plan before; empty: unknown",
    ),
    nullable("sample", JsonValue, "of a dry run: its plan; of other commands: the number skipped for each reason"),
    count("failed", BigInteger, "deliveries that could not be changed"),
    nullable("error", Text, "last delivery that could not be changed, with its error"),
    nullable(
        "until_seq",
        BigInteger,
        "highest seq when it was asked; of a readmit, highest rejected_request.id; later rows are not included",
    ),
    CheckConstraint("id > 0 AND id < 4000000000000000000", name="id"),  # above that SQLite could run out of ids
    CheckConstraint(f"kind IN ({format_values(COMMAND_KINDS)})", name="kind"),
    CheckConstraint(f"state IN ({format_values(COMMAND_STATES)})", name="state"),
    CheckConstraint(f"length(reason) <= {MOST_REASON}", name="reason_length"),
    *says_why("reason"),
    CheckConstraint(f"trim(asked_by) <> '' AND length(asked_by) <= {MOST_WHO}", name="asked_by"),
    partial_index("ix_relay_command_open", "id", where=f"state IN ({format_values(OPEN_COMMANDS)})"),
    comment="Command of an operator, by SQL or command line; the daemon executes and answers it.",
    sqlite_autoincrement=True,
)

alert = Table(
    "alert",
    metadata,
    number("id", "number of the alert"),
    not_null("at", UtcDateTime, "time of the change"),
    not_null(
        "kind",
        Text,
        "delivery_dead, breaker_open, endpoint_retired, backlog_old, source_silent, webhooks_missed, sweep_failed, step_failed,"
        " intake_stopped or retention_behind",
    ),
    not_null("subject", Text, "subject, such as a destination's name"),
    not_null("firing", Boolean, "true: it began; false: it recovered"),
    not_null("detail", JsonValue, "figures and causes"),
    nullable("told_at", UtcDateTime, "time at which a relay wrote it to its log"),
    nullable(
        "post_after", UtcDateTime, "earliest time of the next post, while another relay posts it or after a failure"
    ),
    nullable("sent_at", UtcDateTime, "time of posting to the alerts url; empty when none is configured"),
    not_null("is_unsendable", Boolean, "true: it can't be posted, and is not tried again", default="false"),
    nullable("error", Text, "error of the last post"),
    Index("ix_alert_subject", "kind", "subject", "id"),
    partial_index("ix_alert_untold", "id", where="told_at IS NULL"),
    partial_index("ix_alert_unsent", "at", where="sent_at IS NULL"),
    comment="One row when a problem begins and one when it ends, never a second while it lasts.",
    sqlite_autoincrement=True,
)

sweep_watermark = Table(
    "sweep_watermark",
    metadata,
    not_null("source", Text, "the source that was swept"),
    not_null("entity_type", Text, "kind of entity"),
    nullable(
        "compared_until",
        UtcDateTime,
        "every change up to here has been compared with the inbox; empty: no sweep has finished yet",
    ),
    nullable("swept_at", UtcDateTime, "time at which the last sweep ended or failed; database clock"),
    count("missed", BigInteger, "missing webhooks found in all"),
    nullable("last_compared", BigInteger, "entities compared by the last sweep that finished"),
    nullable("last_missed", BigInteger, "changes among them that no webhook reported"),
    nullable("last_added", BigInteger, "events that it added for these"),
    nullable("error", Text, "error of the last sweep; empty: it finished"),
    nullable("lease_until", UtcDateTime, "while a relay sweeps: end of its lease; database clock"),
    nullable("relay_node", Text, "while a relay sweeps: relay_node.id of the process"),
    nullable("command_id", BigInteger, "command that asked for a sweep now: relay_command.id; empty once it has ended"),
    PrimaryKeyConstraint("source", "entity_type"),
    comment="Watermark of the sweeps of a source, with the result of the last one and the relay that runs one.",
)

write_probe = Table(
    "write_probe",
    metadata,
    *only_row(),
    not_null("probed_at", UtcDateTime, "time of the last health check"),
    comment="One row, written by health checks: a database that can be read but not written is not ready.",
)

throughput_minute = Table(
    "throughput_minute",
    metadata,
    not_null("kind", Text, "source, route or destination"),
    not_null("name", Text, "its name in inbox.toml; (unknown) for all unknown sources together"),
    not_null(
        "outcome",
        Text,
        "of a source: stored, duplicate, swept (added by a sweep), rejected or unavailable (answered with 503); of a route or"
        " destination: a kind of fact, as in delivery_log",
    ),
    not_null("minute", UtcDateTime, "beginning of the minute; database clock"),
    count("count", BigInteger, "events, requests or facts in this minute"),
    count("bytes", BigInteger, "bytes of the bodies that were stored; 0 for routes and destinations"),
    # Views read one range: of one outcome, or of all outcomes in some minutes.
    PrimaryKeyConstraint("kind", "name", "outcome", "minute"),
    Index("ix_throughput_minute_minute", "minute"),
    CheckConstraint(f"kind IN ({format_values(THROUGHPUT_KINDS)})", name="kind"),
    comment="Figures of each minute, added up by receivers and relays about every ten seconds. Figures, not facts: a"
    " killed process loses its latest ones.",
    postgresql_with=HOT,
)

for _table in metadata.sorted_tables:
    for _column in list(_table.columns):
        for _check in checks(f"{_column.name}_is_readable", readable(_column)):
            _table.append_constraint(_check)
