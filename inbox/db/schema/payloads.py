"""Tables about payloads: what deletes them, and who saw one."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
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
from inbox.db.schema.parts import HOT, PRUNED, count, metadata, number, optional, required

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
