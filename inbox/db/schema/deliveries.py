"""Tables of deliveries: the open ones, their lanes, the log of facts, and the locks of their order."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
)

from inbox.db.columns import (
    HOT,
    PRUNED,
    JsonValue,
    UtcDateTime,
    count,
    metadata,
    number,
    one_of,
    optional,
    partial_index,
    required,
)
from inbox.events.states import HEADS, OPEN_STATES, SUSPECT_CRASHES

FIRST_DUE, LAST_DUE = "1970-01-01 00:00:00.000000Z", "9000-01-01 00:00:00.000000Z"

open_delivery = Table(
    "open_delivery",
    metadata,
    required("seq", BigInteger, "the event: inbox.seq"),
    required("route", Text, "the route it takes: a name of [routes] in inbox.toml"),
    required("lane", Text, "the unit of order on the route: TYPE|ID of the entity, * or the event itself"),
    required("occurred_at", UtcDateTime, "copy of inbox.occurred_at: order in the lane, before seq"),
    required("state", Text, "received, waiting (behind its head), ready, in_flight, blocked or dead"),
    count("attempt", Integer, "attempts used in this run"),
    count("run", Integer, "number of times it was replayed or re-armed"),
    count("crashes", Integer, "attempts in a row whose lease expired"),
    optional("due_at", UtcDateTime, "if ready: time of the next attempt; database clock"),
    optional("lease_until", UtcDateTime, "if in_flight: end of the lease; database clock"),
    optional(
        "lease_token", BigInteger, "if in_flight: fencing token of the claim; a result with another token is discarded"
    ),
    optional("relay_node", Text, "if in_flight: relay_node.id of the process that delivers it"),
    PrimaryKeyConstraint("seq", "route"),
    CheckConstraint(f"state IN ({one_of(OPEN_STATES)})", name="state"),
    CheckConstraint("(state = 'ready') = (due_at IS NOT NULL)", name="due_when_ready"),
    # 'infinity', or a year outside datetime's range, could not be read.
    CheckConstraint(f"due_at BETWEEN '{FIRST_DUE}' AND '{LAST_DUE}'", name="due_at"),
    CheckConstraint(
        "(state = 'in_flight') = (lease_until IS NOT NULL AND lease_token IS NOT NULL AND relay_node IS NOT NULL)",
        name="leased_when_in_flight",
    ),
    # The database itself keeps the invariant of order: one head per lane.
    partial_index("ux_open_delivery_head", "route", "lane", where=f"state IN ({one_of(HEADS)})", unique=True),
    partial_index("ix_open_delivery_received", "seq", where="state = 'received'"),
    partial_index("ix_open_delivery_ready", "route", "due_at", "seq", where="state = 'ready'"),
    partial_index(
        "ix_open_delivery_suspect", "due_at", "seq", where=f"state = 'ready' AND crashes >= {SUSPECT_CRASHES}"
    ),
    partial_index("ix_open_delivery_waiting", "route", "lane", "occurred_at", "seq", where="state = 'waiting'"),
    partial_index("ix_open_delivery_in_flight", "seq", "route", where="state = 'in_flight'"),
    partial_index("ix_open_delivery_dead", "route", "lane", "occurred_at", "seq", where="state = 'dead'"),
    partial_index(
        "ix_open_delivery_replayed", "route", where="run > 0 AND state IN ('received', 'waiting', 'ready', 'in_flight')"
    ),
    partial_index("ix_open_delivery_given_up", "seq", "route", where="state IN ('dead', 'blocked')"),
    partial_index("ix_open_delivery_blocked", "route", "lane", where="state = 'blocked'"),
    comment="Every open delivery. A projection of delivery_log: relay verify compares the two, relay rebuild repairs it.",
    postgresql_with=HOT,
)

lane = Table(
    "lane",
    metadata,
    required("route", Text, "the route"),
    required("lane", Text, "the lane, as in open_delivery"),
    required("occurred_at", UtcDateTime, "time of the newest event delivered in this lane"),
    required("seq", BigInteger, "the newest event delivered in this lane: inbox.seq"),
    optional("fetch_began_at", UtcDateTime, "time at which that delivery fetched the entity; sync routes only"),
    optional("last_modified", UtcDateTime, "the source's own time of the applied state"),
    optional("applied_hash", LargeBinary, "SHA-256 of the data sent downstream"),
    optional("etag", Text, "ETag of the entity in that state; only where the route fetches conditionally"),
    optional(
        "etag_config", LargeBinary, "SHA-256 of the route as it was configured then: another one fetches it whole"
    ),
    optional(
        "healing_seq",
        BigInteger,
        "while older dead deliveries of the lane are ended in batches: inbox.seq of the success that replaces them",
    ),
    PrimaryKeyConstraint("route", "lane"),
    partial_index("ix_lane_healing", "route", "lane", where="healing_seq IS NOT NULL"),
    comment="Last delivery of each lane. One row per route and lane that ever succeeded; an event's own lane has none.",
    postgresql_with=HOT,
)

delivery_log = Table(
    "delivery_log",
    metadata,
    number("id", "number of the fact"),
    required("at", UtcDateTime, "time of recording; database clock"),
    required("seq", BigInteger, "the event: inbox.seq"),
    required("route", Text, "the route"),
    required("kind", Text, "kind of fact; explained in docs/reference/states.md"),
    required("attempt", Integer, "attempts used in this run at that time"),
    optional("relay_node", Text, "relay_node.id of the process that recorded it; empty for an operator's command"),
    required("detail", JsonValue, "calls, statuses, durations, error, next due time, operator and reason"),
    CheckConstraint(
        "kind IN ('delivered', 'unchanged', 'superseded', 'skipped', 'cancelled', 'attempt_failed', 'abandoned', 'took_over',"
        " 'rescheduled', 'dead', 'replayed', 'rearmed', 'unblocked', 'corrected', 'erased')",
        name="kind",
    ),
    Index("ix_delivery_log_delivery", "seq", "route", "id"),
    # Without autosummarize, a look at the last minute reads all that has been added since the last VACUUM.
    Index("ix_delivery_log_at", "at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    partial_index("ix_delivery_log_attempt", "id", where="kind IN ('attempt_failed', 'abandoned')"),
    comment="Facts about deliveries, append-only. The state of every delivery is the fold of its facts.",
    postgresql_with=PRUNED,
    sqlite_autoincrement=True,
)

order_lock = Table(
    "order_lock",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    CheckConstraint("id = 1", name="one_row"),
    comment="One row, locked by every transaction that may end or make heads on any route.",
)

route_lock = Table(
    "route_lock",
    metadata,
    Column("route", Text, primary_key=True, comment="name of the route"),
    comment=(
        "One row for each route, locked by every transaction that ends or makes the head of a lane on it."
        " Added by relays, and never removed. Empty on SQLite."
    ),
)
