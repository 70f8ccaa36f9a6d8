"""Decides for each column that can hold a text what an erasure does with it. A test fails for a column without a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Decision = Literal["kept", "pseudonym", "emptied", "deleted", "searched"]
"""kept: it never says anything of a person. pseudonym, emptied, deleted: in the rows of the erased events and their lanes.
searched: whatever names the entity goes, in any row of the table."""

DECISIONS: Mapping[str, Mapping[str, Decision]] = {
    "inbox": {
        "source": "kept",
        "dedup_key": "kept",  # has a digest in place of the id: `inbox.events.event.dedup_key`
        "entity_type": "kept",
        "entity_id": "pseudonym",
        "event_type": "kept",
        "action": "kept",
        "event_id": "emptied",  # where it names the entity
        "routes": "kept",
        "content_type": "kept",
        "body_sha256": "kept",  # proves which body it was, to somebody who has it
        "traceparent": "emptied",
    },
    "inbox_payload": {"headers": "deleted", "body": "deleted"},
    "duplicate_request": {"body_sha256": "kept", "body": "emptied", "error": "emptied"},
    "rejected_request": {
        "source": "kept",
        "cause": "kept",
        "reason": "searched",
        "field": "searched",
        "remote_address": "searched",
        "headers": "searched",
        "body_sha256": "kept",
        "body": "searched",
        "readmitted_by": "kept",  # an operator
        "readmit_reason": "searched",
    },
    "open_delivery": {
        "route": "kept",
        "lane": "kept",
        "state": "kept",
        "relay_node": "kept",
    },  # an erased event has none
    "lane": {
        "route": "kept",
        "lane": "pseudonym",
        "applied_hash": "emptied",
        "etag": "emptied",
        "etag_config": "emptied",
    },
    "route_lock": {"route": "kept"},
    "delivery_log": {"route": "kept", "kind": "kept", "relay_node": "kept", "detail": "emptied"},
    "relay_node": {
        "id": "kept",
        "host": "kept",
        "version": "kept",
        "failing": "searched",
        "routes": "kept",
        "config_hash": "kept",
    },
    "gate": {
        "kind": "kept",
        "name": "deleted",  # the row of the entity; every other one is of the configuration
        "paused_by": "kept",  # an operator
        "pause_reason": "searched",
        "breaker": "kept",
        "breaker_cause": "searched",
        "hold_reason": "searched",
    },
    "relay_command": {
        "kind": "kept",
        "selection": "searched",
        "reason": "searched",
        "asked_by": "kept",  # an operator
        "state": "kept",
        "sample": "searched",
        "answer": "searched",
        "error": "searched",
    },
    "alert": {"kind": "kept", "subject": "searched", "detail": "searched", "error": "searched"},
    "pruner": {"held_by": "kept"},  # a relay, or an operator
    "pruning": {"kind": "kept", "error": "searched"},
    "payload_reveal": {"who": "kept", "reason": "searched"},  # an operator or viewer
    "throughput_minute": {"kind": "kept", "name": "kept", "outcome": "kept"},
    "sweep_watermark": {"source": "kept", "entity_type": "kept", "error": "searched", "relay_node": "kept"},
}


def searched(table: str) -> tuple[str, ...]:
    """Return the columns of a table that are searched."""
    return tuple(name for name, decision in DECISIONS[table].items() if decision == "searched")
