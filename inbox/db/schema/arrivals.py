"""Tables of what arrives: events, their payloads, duplicates and rejected requests."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from inbox.db.columns import (
    PRUNED,
    BigId,
    JsonValue,
    TextList,
    UtcDateTime,
    metadata,
    number,
    optional,
    partial_index,
    required,
)

inbox = Table(
    "inbox",
    metadata,
    number("seq", "number of the event in arrival order; gaps mean nothing"),
    required("source", Text, "sender: a name of [sources] in inbox.toml"),
    required(
        "dedup_key",
        Text,
        "key of the event: a request of the source with the same key is a duplicate; it has a digest in place of an entity's id",
    ),
    optional("entity_type", Text, "type of the entity that changed, such as USER; empty when the event has no entity"),
    optional("entity_id", Text, "id of the entity that changed, as the source gives it; a pseudonym after erasure"),
    required("event_type", Text, "event type, verbatim from the sender"),
    required("action", Text, "effect on the entity: create, update, delete or other"),
    optional("event_id", Text, "the sender's own id of the event, if any"),
    required(
        "occurred_at",
        UtcDateTime,
        "the event's own time, to the microsecond; of its arrival where none can be true",
    ),
    required("received_at", UtcDateTime, "time at which the receiver had read the request"),
    required("routes", TextList, "names of the routes that matched when it arrived; empty: unrouted"),
    required("content_type", Text, "Content-Type of the body"),
    required("body_bytes", Integer, "size of the body in bytes; stays after its payload is gone"),
    required(
        "body_is_text", Boolean, "true: the body is UTF-8 without NUL; the view event has it as text", default="false"
    ),
    required("body_sha256", LargeBinary, "SHA-256 of the body; stays after its payload is gone"),
    optional(
        "traceparent",
        Text,
        "W3C trace context of the request: of the receiver's span where that is sampled, else the sender's; empty after erasure",
    ),
    optional(
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
    required("headers", JsonValue, "allow-listed request headers"),
    required("body", LargeBinary, "body of the request, byte for byte"),
    comment="Headers and body of each event, until retention or erasure deletes them. The views and commands join it by seq.",
    # ranges of seq, as retention gives the space of a whole range back at once: see inbox.db.leaves
    postgresql_partition_by="RANGE (seq)",
)

duplicate_request = Table(
    "duplicate_request",
    metadata,
    number("id", "number of the duplicate"),
    required("seq", BigInteger, "the event that it duplicates: inbox.seq"),
    required("received_at", UtcDateTime, "time of its arrival"),
    required("body_sha256", LargeBinary, "SHA-256 of its body"),
    optional("body", LargeBinary, "its body, only when it differs from the event's"),
    optional("handled_at", UtcDateTime, "time at which a relay judged it; empty: not judged yet"),
    required(
        "times",
        BigInteger,
        "number of requests in this row: after the first 20 of an event, further ones are only counted",
        default="1",
    ),
    optional("last_received_at", UtcDateTime, "if times is more than 1: time of the last arrival"),
    optional("error", Text, "reason why it could not be judged; clear it to have it judged again"),
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
    required("received_at", UtcDateTime, "time of its arrival"),
    required("source", Text, "source in the URL, known or unknown"),
    required("status", Integer, "HTTP status of the answer"),
    required("cause", Text, "cause in one word, as in the metrics"),
    required("reason", Text, "reason in one sentence"),
    optional("field", Text, "invalid field, if any"),
    optional("remote_address", Text, "address of the client"),
    optional("headers", JsonValue, "allow-listed request headers, only of an authenticated sender"),
    required("body_sha256", LargeBinary, "SHA-256 of the body"),
    optional("body", LargeBinary, "the body, only of an authenticated sender, so that it can be readmitted"),
    optional("readmitted_at", UtcDateTime, "time at which an operator readmitted it; empty: not readmitted"),
    optional(
        "readmitted_seq",
        BigInteger,
        "the event that it became or duplicates: inbox.seq; the first, when its body has several",
    ),
    optional("readmitted_by", Text, "operator who readmitted it"),
    optional("readmit_reason", Text, "reason for readmitting it"),
    # those that can be readmitted, beside very many of strangers
    partial_index("ix_rejected_request_whole", "id", where="body IS NOT NULL"),
    comment="A rejected request. Each receiver process stores at most 10 a second; beyond that only metrics count them.",
    postgresql_with=PRUNED,
    sqlite_autoincrement=True,
)
