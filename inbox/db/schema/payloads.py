"""Tables about payloads: what deletes them, what was learned of them, and who saw one."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    Table,
    Text,
)

from inbox.db.columns import UtcDateTime
from inbox.db.dialect import POSTGRES, SQLITE
from inbox.db.reasons import says_nothing
from inbox.db.schema.parts import HOT, PRUNED, count, metadata, number, one_of, optional, partial_index, required
from inbox.events.states import PAYLOAD_CHANGES

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
    optional("day_began_at", UtcDateTime, "beginning of the present day of the next four figures"),
    count("rows_today", BigInteger, "rows pruned since then"),
    count("rows_yesterday", BigInteger, "rows pruned on the day before"),
    count("newest_at_begin", BigInteger, "highest number at the beginning of the day"),
    count("arrived_yesterday", BigInteger, "numbers taken on the day before: about the rows that arrived"),
    count("behind_seconds", BigInteger, "seconds for which the oldest expired row has been expired; 0: none is left"),
    optional("behind_since", UtcDateTime, "time since which that is more than a day"),
    optional("ran_at", UtcDateTime, "time of the last batch; database clock"),
    count("passed_over", BigInteger, "rows that could not be deleted and were passed over, in the present lap"),
    optional("error", Text, "error of the last batch that failed; empty: the last one went well"),
    comment="Progress of retention: one row for each kind of rows that expires.",
    postgresql_with=HOT,
)

payload_field = Table(
    "payload_field",
    metadata,
    number("id", "number of the row"),
    required("source", Text, "source of the events"),
    required("event_type", Text, "event type; * for all beyond the first 100 of a source, and for very long ones"),
    required("path", Text, "path in the payload, such as $.items[].sku; keys that are data are *"),
    required(
        "type",
        Text,
        "JSON type that was seen there; text: the body is no JSON; any: this row counts the events that have the path at all",
    ),
    count("events", BigInteger, "learned events that have it"),
    required("first_seq", BigInteger, "first of them: inbox.seq"),
    required("first_at", UtcDateTime, "time of its arrival"),
    required("last_seq", BigInteger, "last of them: inbox.seq"),
    required("last_at", UtcDateTime, "time of its arrival"),
    count("absent", BigInteger, "of type any: later events without the path, though the object around it was there"),
    count("missed", BigInteger, "of type any: the last of these in a row"),
    optional("missed_seq", BigInteger, "of type any: first of these in a row: inbox.seq"),
    optional("missed_at", UtcDateTime, "of type any: time of its arrival"),
    required(
        "is_map",
        Boolean,
        "of type any: true: an object with so many different keys that they are data; below it, all are *",
        default="false",
    ),
    Index("ix_payload_field_shape", "source", "event_type"),
    comment="Shape of the payloads of each event type, as relays learn it: paths and types, no values. Figures, not facts: relays"
    " learn from some events only while many arrive.",
    postgresql_with=HOT,
    sqlite_autoincrement=True,
)

payload_change = Table(
    "payload_change",
    metadata,
    number("id", "number of the change"),
    required("found_at", UtcDateTime, "time at which a relay found it; database clock"),
    required("source", Text, "source of the events"),
    required("event_type", Text, "event type, as in payload_field"),
    required("path", Text, "path in the payload, as in payload_field"),
    required("change", Text, "added: a new field; type: a new type of a known one; missing: nearly all events had it"),
    required("seq", BigInteger, "first event that shows it: inbox.seq"),
    required("at", UtcDateTime, "time of its arrival"),
    optional("type", Text, "of added and type: the new JSON type"),
    optional("usual", Text, "of type: types until then; of missing: how many events had it"),
    optional("returned_at", UtcDateTime, "of missing: time at which a relay found the field again; the change is over"),
    optional("acknowledged_at", UtcDateTime, "time at which an operator acknowledged it; the change is over"),
    optional("acknowledged_by", Text, "operator who acknowledged it"),
    CheckConstraint(f"change IN ({one_of(PAYLOAD_CHANGES)})", name="change"),
    Index("ix_payload_change_source", "source", "id"),
    partial_index("ix_payload_change_open", "id", where="acknowledged_at IS NULL AND returned_at IS NULL"),
    comment="Changes of payloads that relays found. One is open for 14 days, unless it is acknowledged or the field returns."
    " The newest 500 of each source stay.",
    sqlite_autoincrement=True,
)

payload_learner = Table(
    "payload_learner",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    optional("position", BigInteger, "every event up to here was learned or passed over: inbox.seq; empty: none yet"),
    optional("horizon", BigInteger, "highest inbox.seq at horizon_at: a minute later, all up to it are committed"),
    optional("horizon_at", UtcDateTime, "time of that look; database clock"),
    count("learned", BigInteger, "events learned in all"),
    count("passed_over", BigInteger, "events in all that were not learned, as too many had arrived"),
    optional("ran_at", UtcDateTime, "time at which the last round ended; database clock"),
    optional("lease_until", UtcDateTime, "while a relay learns: end of its lease; database clock"),
    optional("held_by", Text, "while a relay learns: relay_node.id of the process"),
    CheckConstraint("id = 1", name="one_row"),
    comment="One row: how far relays have learned the shapes of payloads, and the relay that learns now.",
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
