"""Tables of both sides. Their names are public: DBAs write queries against them.

A change here needs a migration, a changelog line and a reason. Append-only tables hold facts, small hot tables hold the
work. The triggers that protect the append-only ones are in `inbox.db.views`.
"""

from __future__ import annotations

from sqlalchemy import CheckConstraint

from inbox.db.columns import metadata, readable
from inbox.db.schema.arrivals import duplicate_request, inbox, inbox_payload, rejected_request
from inbox.db.schema.deliveries import delivery_log, lane, open_delivery, order_lock, route_lock
from inbox.db.schema.relays import (
    alert,
    gate,
    payload_lock,
    payload_reveal,
    pruner,
    pruning,
    relay_command,
    relay_node,
    sweep_watermark,
    throughput_minute,
    write_probe,
)

__all__ = [
    "alert",
    "delivery_log",
    "duplicate_request",
    "gate",
    "inbox",
    "inbox_payload",
    "lane",
    "metadata",
    "open_delivery",
    "order_lock",
    "payload_lock",
    "payload_reveal",
    "pruner",
    "pruning",
    "rejected_request",
    "relay_command",
    "relay_node",
    "route_lock",
    "sweep_watermark",
    "throughput_minute",
    "write_probe",
]

for _table in metadata.sorted_tables:
    for _column in list(_table.columns):
        for _dialect, _condition in readable(_column).items():
            _table.append_constraint(
                CheckConstraint(_condition, name=f"{_column.name}_is_readable").ddl_if(dialect=_dialect)
            )
