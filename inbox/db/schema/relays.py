"""Tables of relays and operators: retention, reveals, processes, gates, commands, alerts, sweeps and figures."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
)

from inbox.db.columns import (
    HOT,
    PRUNED,
    DatabaseRole,
    DatabaseTime,
    JsonValue,
    UtcDateTime,
    count,
    metadata,
    number,
    one_of,
    optional,
    partial_index,
    required,
    says_nothing,
)
from inbox.db.dialect import POSTGRES, SQLITE
from inbox.events.commands import COMMAND_KINDS, COMMAND_STATES, MOST_REASON, MOST_WHO, OPEN_COMMANDS
from inbox.events.states import THROUGHPUT_KINDS

payload_lock = Table(
    "payload_lock",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    CheckConstraint("id = 1", name="one_row"),
    comment="One row. What opens deliveries of stored events shares its lock; what deletes payloads or events has it alone.",
)

pruner = Table(
    "pruner",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    optional("lease_until", UtcDateTime, "while somebody prunes: end of the lease; database clock"),
    optional("held_by", Text, "while somebody prunes: relay_node.id of the relay, or the person, host and process"),
    optional("ran_at", UtcDateTime, "time at which the last round ended; database clock"),
    optional(
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
    count("position", BigInteger, "number up to which expired rows are gone; what is left below has to stay"),
    optional("lap_began_at", UtcDateTime, "time at which the walk last began at the first row; once a day"),
    optional("pruned_until", UtcDateTime, "rows older than this have expired"),
    count("rows", BigInteger, "rows pruned in all"),
    count("bytes", BigInteger, "bytes in these rows, about; without indexes"),
    count("behind_seconds", BigInteger, "seconds for which the oldest expired row has been expired; 0: none is left"),
    optional("behind_since", UtcDateTime, "time since which that is more than a day"),
    optional("ran_at", UtcDateTime, "time of the last batch; database clock"),
    count("passed_over", BigInteger, "rows that could not be deleted and were passed over, in the present lap"),
    optional("error", Text, "error of the last batch that failed; empty: the last one went well"),
    comment="Progress of retention: one row for each kind of rows that expires.",
    postgresql_with=HOT,
)

payload_reveal = Table(
    "payload_reveal",
    metadata,
    number("id", "number of the reveal"),
    required("at", UtcDateTime, "time of the reveal; database clock"),
    required("seq", BigInteger, "the event whose headers and body were shown: inbox.seq"),
    required("who", Text, "person or program that saw them, as the operator's page knows it"),
    required("reason", Text, "reason that it gave"),
    CheckConstraint("trim(who) <> ''", name="who"),
    *(
        CheckConstraint(f"NOT ({says_nothing('reason', dialect)})", name="reason").ddl_if(dialect=dialect)
        for dialect in (POSTGRES, SQLITE)
    ),
    Index("ix_payload_reveal_seq", "seq"),
    comment="One row each time that the operator's page showed the headers and body of an event, written before it did.",
    postgresql_with=PRUNED,
    sqlite_autoincrement=True,
)

relay_node = Table(
    "relay_node",
    metadata,
    Column("id", Text, primary_key=True, comment="new at every start of a relay process"),
    required("host", Text, "machine that it runs on"),
    required("pid", Integer, "process id on that machine"),
    required("version", Text, "version of Inbox Relay"),
    required("started_at", UtcDateTime, "time of its start; database clock"),
    required("heartbeat_at", UtcDateTime, "time of its last heartbeat; database clock"),
    optional("stopped_at", UtcDateTime, "time of a graceful stop; empty while it runs or if it died"),
    optional("routes", JsonValue, "routes of its configuration, each with the kinds and names of the gates on its way"),
    optional("config_hash", Text, "SHA-256 of the apis, destinations and routes that it runs with"),
    optional("failing", JsonValue, "steps that fail now, with the errors; empty: none"),
    Index("ix_relay_node_started_at", "started_at"),
    comment="One row per run of a relay process.",
    postgresql_with=HOT,
)

gate = Table(
    "gate",
    metadata,
    required("kind", Text, "source, route, destination, api or entity"),
    required("name", Text, "its name in inbox.toml; SOURCE|TYPE|ID for an entity"),
    optional("paused_at", UtcDateTime, "time at which an operator paused it; empty: not paused"),
    optional("paused_by", Text, "operator who paused it"),
    optional("pause_reason", Text, "reason for the pause"),
    required("breaker", Text, "closed, open, half_open or retired", default="'closed'"),
    optional("breaker_until", UtcDateTime, "if open: time of the next probe; database clock"),
    optional("breaker_cause", Text, "cause of its opening"),
    count("open_count", Integer, "number of times it opened in a row; each doubles the open time"),
    count("failures", Integer, "failed calls in the present window"),
    count("calls", Integer, "calls in the present window"),
    optional("window_began_at", UtcDateTime, "start of the present window"),
    optional(
        "rate_used_until",
        UtcDateTime,
        "rate limit: time until which calls have used it up; no call goes out while it is more than a burst ahead",
    ),
    optional(
        "held_until", UtcDateTime, "rate hold: time until which the endpoint asked for no further call; database clock"
    ),
    optional("hold_reason", Text, "header that asked for it"),
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
    required("kind", Text, ", ".join(COMMAND_KINDS[:-1]) + f" or {COMMAND_KINDS[-1]}"),
    required("selection", JsonValue, "what it is about, as a JSON object with the keys of its kind", default="'{}'"),
    required("reason", Text, "reason given by the operator"),
    required("asked_by", Text, "operator; by default the database role", default=DatabaseRole()),
    required("asked_at", UtcDateTime, "time of the request; database clock", default=DatabaseTime()),
    required("dry_run", Boolean, "true: only answer what it would change", default="false"),
    required("state", Text, "asked, running, done, failed, refused or cancelled", default="'asked'"),
    optional("progress_seq", BigInteger, "progress: everything up to this seq is done"),
    count("affected", BigInteger, "deliveries changed so far; rows, for a command of another kind"),
    optional("finished_at", UtcDateTime, "time of its end"),
    optional("answer", Text, "answer of the daemon"),
    optional(
        "matched",
        BigInteger,
        "number of deliveries or rows that it would change, by a dry run or the plan before; empty: unknown",
    ),
    optional("sample", JsonValue, "of a dry run: groups, the first deliveries, what is left out, and consequences"),
    count("failed", BigInteger, "deliveries that could not be changed"),
    optional("error", Text, "last delivery that could not be changed, with its error"),
    optional(
        "until_seq",
        BigInteger,
        "highest seq when it was asked, of a readmit highest rejected_request.id: the rest came later",
    ),
    CheckConstraint("id > 0 AND id < 4000000000000000000", name="id"),  # above that SQLite may soon have no next one
    CheckConstraint(f"kind IN ({one_of(COMMAND_KINDS)})", name="kind"),
    CheckConstraint(f"state IN ({one_of(COMMAND_STATES)})", name="state"),
    CheckConstraint(f"length(reason) <= {MOST_REASON}", name="reason_length"),
    *(
        CheckConstraint(f"NOT ({says_nothing('reason', dialect)})", name="reason").ddl_if(dialect=dialect)
        for dialect in (POSTGRES, SQLITE)
    ),
    CheckConstraint(f"trim(asked_by) <> '' AND length(asked_by) <= {MOST_WHO}", name="asked_by"),
    partial_index("ix_relay_command_open", "id", where=f"state IN ({one_of(OPEN_COMMANDS)})"),
    comment="Command of an operator, by SQL or command line; the daemon executes and answers it.",
    sqlite_autoincrement=True,
)

alert = Table(
    "alert",
    metadata,
    number("id", "number of the alert"),
    required("at", UtcDateTime, "time of the change"),
    required(
        "kind",
        Text,
        "delivery_dead, breaker_open, endpoint_retired, backlog_old, source_silent, webhooks_missed, sweep_failed, step_failed,"
        " intake_stopped or retention_behind",
    ),
    required("subject", Text, "subject, such as a destination's name"),
    required("firing", Boolean, "true: it began; false: it recovered"),
    required("detail", JsonValue, "figures and causes"),
    optional("told_at", UtcDateTime, "time at which a relay wrote it to its log"),
    optional(
        "post_after", UtcDateTime, "earliest time of the next post, while another relay posts it or after a failure"
    ),
    optional("sent_at", UtcDateTime, "time of posting to the alerts url; empty when none is configured"),
    required("is_unsendable", Boolean, "true: it can't be posted, and is not tried again", default="false"),
    optional("error", Text, "error of the last post"),
    Index("ix_alert_subject", "kind", "subject", "id"),
    partial_index("ix_alert_untold", "id", where="told_at IS NULL"),
    partial_index("ix_alert_unsent", "at", where="sent_at IS NULL"),
    comment="One row when a problem begins and one when it ends, never a second while it lasts.",
    sqlite_autoincrement=True,
)

sweep_watermark = Table(
    "sweep_watermark",
    metadata,
    required("source", Text, "the source that was swept"),
    required("entity_type", Text, "kind of entity"),
    optional(
        "compared_until",
        UtcDateTime,
        "every change up to here has been compared with the inbox; empty: no sweep has finished yet",
    ),
    optional("swept_at", UtcDateTime, "time at which the last sweep ended or failed; database clock"),
    count("missed", BigInteger, "missing webhooks found in all"),
    optional("last_compared", BigInteger, "entities compared by the last sweep that finished"),
    optional("last_missed", BigInteger, "changes among them that no webhook reported"),
    optional("last_added", BigInteger, "events that it added for these"),
    optional("error", Text, "error of the last sweep; empty: it finished"),
    optional("lease_until", UtcDateTime, "while a relay sweeps: end of its lease; database clock"),
    optional("relay_node", Text, "while a relay sweeps: relay_node.id of the process"),
    optional("command_id", BigInteger, "command that asked for a sweep now: relay_command.id; empty once it has ended"),
    PrimaryKeyConstraint("source", "entity_type"),
    comment="Watermark of the sweeps of a source, with the result of the last one and the relay that runs one.",
)

write_probe = Table(
    "write_probe",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    required("probed_at", UtcDateTime, "time of the last health check"),
    CheckConstraint("id = 1", name="one_row"),
    comment="One row, written by health checks: a database that can be read but not written is not ready.",
)

throughput_minute = Table(
    "throughput_minute",
    metadata,
    required("kind", Text, "source, route or destination"),
    required("name", Text, "its name in inbox.toml; (unknown) for all unknown sources together"),
    required(
        "outcome",
        Text,
        "of a source: stored, duplicate, swept (added by a sweep), rejected or unavailable (answered with 503); of a route or"
        " destination: a kind of fact, as in delivery_log",
    ),
    required("minute", UtcDateTime, "beginning of the minute; database clock"),
    count("count", BigInteger, "events, requests or facts in this minute"),
    count("bytes", BigInteger, "bytes of the bodies that were stored; 0 for routes and destinations"),
    # The look of a view is one range: of one outcome, or of all in some minutes.
    PrimaryKeyConstraint("kind", "name", "outcome", "minute"),
    Index("ix_throughput_minute_minute", "minute"),
    CheckConstraint(f"kind IN ({one_of(THROUGHPUT_KINDS)})", name="kind"),
    comment="Figures of each minute, added up by receivers and relays about every ten seconds. Figures, not facts: a process"
    " that is killed takes its last ones with it.",
    postgresql_with=HOT,
)
