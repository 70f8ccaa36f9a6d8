"""An installation with rows in every table, and every row of a database in a form that both databases share."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, select

from inbox.db.columns import TextList
from inbox.db.engine import reading
from inbox.db.intake import Rejected
from inbox.db.schema import metadata
from relay.store import claim, sequence
from relay.store.database import Database
from tests.helpers import relaying
from tests.helpers.relaying import work_of
from tests.helpers.storing import START, Intake, an_event
from tests.helpers.traffic import events

AT = datetime(2026, 3, 4, 5, 6, 7, 891234, tzinfo=UTC)
NUMBERS = (
    '{"whole": 12345678901234567890123, "exact": 0.1, "power": 1e22, "small": 1.0, "text": "ä\\u2028\\"", "none": null}'
)


def install(engine: Engine, url: str) -> None:
    """Store events through the product, leave deliveries of every state open, and add a row to each other table."""
    relaying.give_up(engine, url, events(3))
    relaying.fail_once(engine, url, [("x1", "2026-01-02T00:00:00Z"), ("x1", "2026-01-02T00:00:01Z")])
    intake = Intake(url)
    intake.append(*(an_event(n, f"u{n % 2}", routes=("strict", "blocking")) for n in range(1, 9)))
    intake.append(an_event(50, "nobody", routes=()))
    intake.repeat(an_event(1, "u1"), an_event(1, "u1"))
    intake.reject(
        Rejected(START, "trivore", 422, "invalid_event", "no id", "id", "192.0.2.1", b"h" * 32, {"a": "b"}, b"\x00\xff")
    )
    database = Database(engine)
    sequence.sequence(work_of(database))
    claim.claim(work_of(database), [claim.FreeCapacity(["strict"], 1)])
    with engine.begin() as connection:
        for name, row in OTHERS.items():
            connection.execute(metadata.tables[name].insert(), row)


NODE = {"id": "r1", "host": "h", "pid": 7, "version": "0", "started_at": START, "heartbeat_at": START}
COMMAND = {"kind": "replay", "selection": {"route": "everything", "everything": True}, "reason": "ä", "asked_by": "kim"}
FIGURE = {"kind": "route", "name": "strict", "outcome": "delivered", "minute": AT.replace(second=0, microsecond=0)}
WATERMARK = {"source": "trivore", "entity_type": "USER", "compared_until": AT, "relay_node": "r1"}
LANE = {"route": "everything", "lane": "USER|ä|*", "occurred_at": AT, "seq": 1}
OTHERS: dict[str, dict[str, Any]] = {
    "route_lock": {"route": "elsewhere"},
    "lane": {**LANE, "fetch_began_at": AT, "applied_hash": b"\0" * 32},
    "relay_node": {**NODE, "failing": {"claim": "no"}},
    "gate": {"kind": "route", "name": "strict", "breaker": "open", "breaker_until": AT, "held_until": AT},
    "relay_command": {**COMMAND, "asked_at": AT, "state": "running", "progress_seq": 3},
    "alert": {"at": AT, "kind": "delivery_dead", "subject": "x", "firing": True, "detail": json.loads(NUMBERS)},
    "pruning": {"kind": "attempts", "position": 5, "pruned_until": AT, "rows": 2**40, "ran_at": AT},
    "payload_reveal": {"at": AT, "seq": 2**40, "who": "kim", "reason": "ä"},
    "throughput_minute": {**FIGURE, "count": 3, "bytes": 2**40},
    "sweep_watermark": {**WATERMARK, "swept_at": AT + timedelta(seconds=1)},
}


def everything(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Every column of every row of every table, sorted."""
    found = {}
    with engine.connect() as connection, reading(connection).begin():
        for table in metadata.tables.values():
            rows = [
                tuple(_plain(column.type, value) for column, value in zip(table.columns, row, strict=True))
                for row in connection.execute(select(table))
            ]
            keys = [list(table.columns).index(column) for column in table.primary_key]
            found[table.name] = sorted(rows, key=lambda row: repr([row[at] for at in keys]))
    return found


def _plain(kind: object, value: Any) -> Any:  # noqa: ANN401  # any value of a row
    if kind is TextList:
        return tuple(value)
    return bytes(value) if isinstance(value, memoryview) else value
