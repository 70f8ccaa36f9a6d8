"""Roles of a Postgres database, and what each may do with every table, view, sequence and function: literal tables.

Everything of the schema has a line here, and a test fails for a line that is missing. A role may do nothing else.
`inbox.db.grants` turns the tables into statements.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import msgspec

from inbox.db.schema import metadata
from inbox.db.view_comments import VIEWS as VIEW_COMMENTS

Role = Literal["owner", "receiver", "relay", "web", "operator", "reader", "reader_without_payloads"]
"""A group role: its name in the database has a prefix. Login roles become its members."""
ROLES: tuple[Role, ...] = get_args(Role)


class Setting(msgspec.Struct, frozen=True):
    """A setting of every login role of a group."""

    value: str
    why: str
    since: int = 0
    """First major version of Postgres that has it."""


_FORGOTTEN = Setting("1min", "a transaction that somebody forgot keeps dead rows, which every look for work reads")
_NO_QUEUE = Setting("2s", "every statement that comes later waits behind one that waits for a lock")
_READER = {
    "default_transaction_read_only": Setting("on", "a reader has no reason to write"),
    "statement_timeout": Setting("5min", "a report keeps dead rows as long as it runs"),
    "transaction_timeout": Setting("10min", "so does a transaction of many short statements", since=17),
    "idle_in_transaction_session_timeout": _FORGOTTEN,
    "lock_timeout": _NO_QUEUE,
}

SETTINGS: Mapping[Role, Mapping[str, Setting]] = {
    "owner": {"lock_timeout": _NO_QUEUE},
    "receiver": {"statement_timeout": Setting("30s", "its sender gave up long before")},
    "relay": {"statement_timeout": Setting("15min", "a step takes seconds; verify and rebuild read for longer")},
    "web": {
        "statement_timeout": Setting("30s", "the page gives up after 2 s by itself"),
        "idle_in_transaction_session_timeout": Setting(
            "10s", "a locked row that somebody forgot stops what waits for it"
        ),
        "lock_timeout": _NO_QUEUE,
    },
    "operator": {
        "statement_timeout": Setting("5min", "a report keeps dead rows as long as it runs"),
        "idle_in_transaction_session_timeout": Setting(
            "10s", "a locked row that somebody forgot stops what waits for it"
        ),
        "lock_timeout": _NO_QUEUE,
    },
    "reader": _READER,
    "reader_without_payloads": _READER,
}
"""Settings of login roles. Both programs set their own on each connection as well, which count before these."""

PAYLOAD_COLUMNS = ("headers", "body")
"""Columns of what a sender sent: a reader without payloads sees none of them in any table or view."""


def _columns_of(name: str) -> Iterable[str]:
    if name in metadata.tables:
        return [column.name for column in metadata.tables[name].columns]
    return next(view.columns for view in VIEW_COMMENTS if view.name == name)


def _without_payloads(name: str) -> str:
    return f"SELECT ({', '.join(column for column in _columns_of(name) if column not in PAYLOAD_COLUMNS)})"


Grants = Mapping[Role, str]
"""Privileges of each role on one thing, as GRANT takes them. The owner needs none."""

_READ: Grants = {"web": "SELECT", "operator": "SELECT", "reader": "SELECT", "reader_without_payloads": "SELECT"}
_WORK: Grants = {**_READ, "relay": "SELECT, INSERT, UPDATE, DELETE"}
"""Hot tables, and those of which the relay erases or prunes rows. Triggers reject any other change of events and facts."""
_LOCKED: Grants = {**_READ, "relay": "SELECT, UPDATE"}
_VIEW: Grants = {**_READ, "relay": "SELECT"}

TABLES: Mapping[str, Grants] = {
    "alembic_version": {**_VIEW, "receiver": "SELECT"},
    "inbox": {
        **_WORK,
        # the keys of deduplication, the hash that tells another body, and the number for the check of the sequence
        "receiver": "INSERT, SELECT (seq, source, dedup_key, body_sha256, erased_at)",
    },
    "inbox_payload": {
        "web": "SELECT",
        "operator": "SELECT",
        "reader": "SELECT",
        "relay": "SELECT, INSERT, DELETE",
        "receiver": "INSERT",
    },
    "open_delivery": {
        **_WORK,
        # the state answers `Prefer: wait`
        "receiver": "INSERT (seq, route, lane, occurred_at, state), SELECT (seq, route, state)",
    },
    "duplicate_request": {
        **_WORK,
        "reader_without_payloads": _without_payloads("duplicate_request"),
        "receiver": (
            "INSERT, SELECT (id, seq, times, last_received_at), UPDATE (times, last_received_at, handled_at, error)"
        ),
    },
    "rejected_request": {
        **_WORK,
        "reader_without_payloads": _without_payloads("rejected_request"),
        "receiver": (
            "INSERT (received_at, source, status, cause, reason, field, remote_address, body_sha256, headers, body),"
            " SELECT (id)"
        ),
    },
    "write_probe": {**_LOCKED, "receiver": "SELECT (id), UPDATE (probed_at)"},
    "alert": {
        **_WORK,
        # its one alert, only when the last one said otherwise
        "receiver": "INSERT (at, kind, subject, firing, detail), SELECT (id, kind, subject, firing)",
    },
    "throughput_minute": {**_WORK, "receiver": "SELECT, INSERT, UPDATE (count, bytes)"},
    "relay_command": {
        **_WORK,
        # the page knows who has signed in, and signs with that name; it never changes what was asked
        "web": (
            "SELECT, INSERT (kind, selection, reason, asked_by, asked_at, dry_run, matched),"
            " UPDATE (state, finished_at, answer)"
        ),
        # without asked_by, nobody signs as somebody else; a state set to `cancelled` stops a command
        "operator": "SELECT, INSERT (kind, selection, reason, dry_run), UPDATE (state)",
    },
    "delivery_log": _WORK,
    # only an erasure changes a row, and only its reason
    "payload_reveal": {
        **_READ,
        "web": "SELECT, INSERT (at, seq, who, reason)",
        "relay": "SELECT, INSERT, UPDATE (reason), DELETE",
    },
    "gate": _WORK,
    "lane": _WORK,
    # who stops a command must lock out a relay that carries it out
    "order_lock": {**_LOCKED, "web": "SELECT, UPDATE"},
    "route_lock": {**_READ, "relay": "SELECT, INSERT, UPDATE", "web": "SELECT, UPDATE"},
    "payload_lock": _LOCKED,
    "pruner": _LOCKED,
    "pruning": _WORK,
    "relay_node": _WORK,
    "sweep_watermark": _WORK,
}

VIEWS: Mapping[str, Grants] = {
    "backlog": _VIEW,
    "dead_letter": {**_VIEW, "receiver": "SELECT (seq, route, error)"},  # the answer to `Prefer: wait`
    "dead_cause": _VIEW,
    "delivery": _VIEW,
    "destination_health": _VIEW,
    "entity_timeline": _VIEW,
    "event": {**_VIEW, "reader_without_payloads": _without_payloads("event")},
    "long_transaction": _VIEW,
    "relay_health": _VIEW,
    "route_gate": _VIEW,
    "source_health": _VIEW,
    "stuck": _VIEW,
    "table_size": _VIEW,
    "throughput": _VIEW,
}

_BY_RECEIVER: Grants = {"receiver": "USAGE, SELECT", "relay": "USAGE, SELECT"}
_BY_RELAY: Grants = {"relay": "USAGE, SELECT"}

SEQUENCES: Mapping[str, Grants] = {
    "alert_id_seq": _BY_RECEIVER,
    "delivery_log_id_seq": _BY_RELAY,
    "duplicate_request_id_seq": _BY_RECEIVER,
    "inbox_seq_seq": _BY_RECEIVER,
    "payload_reveal_id_seq": {**_BY_RELAY, "web": "USAGE"},
    "rejected_request_id_seq": _BY_RECEIVER,
    "relay_command_id_seq": {**_BY_RELAY, "web": "USAGE", "operator": "USAGE"},
}

FUNCTIONS: Mapping[str, Grants] = {
    # a view's reader runs its functions with rights of his own
    "inbox_body_text": dict.fromkeys(_VIEW, "EXECUTE"),
    "inbox_is_append_only": {},
    "inbox_changes_by_erasure_only": {},
    "delivery_log_changes_by_erasure_only": {},
    "inbox_deletes_old_rows_only": {},
    "inbox_payload_is_append_only": {},
    "inbox_payload_add_leaf": {"relay": "EXECUTE"},
    "inbox_payload_expire_leaf": {"relay": "EXECUTE"},
    "inbox_payload_retire_leaf": {"relay": "EXECUTE"},
    "delivery_log_is_append_only": {},
    "relay_command_is_valid": {},
    "delivery_log_deletes_old_attempts_only": {},
}
"""A trigger runs its function for everybody who may change the table, so nobody needs EXECUTE for that."""
